"""Methods in words, and the form that asks for one."""

from __future__ import annotations

import pytest
from streamlit.testing.v1 import AppTest

from agg2exp_core.precision import Measured
from agg2exp_core.records import Method
from dashboard.views import effort, methods


@pytest.mark.parametrize(
    ("method", "told"),
    [
        (Method(samples=20), "SmoothGrad, settled"), (Method(samples=8), "SmoothGrad, up to 8 pairs"),
        (Method(samples=20, estimator="plain"), "SmoothGrad, as published"), (Method("gradient"), "Gradient"),
        (Method("integrated_gradients", samples=24), "Integrated gradients × 24"),
    ],
)  # fmt: skip
def test_methods_are_told_in_words(method: Method, told: str) -> None:
    assert methods.method_words(method) == told


@pytest.mark.parametrize(
    ("method", "told"),
    [
        (Method("integrated_gradients", baseline="blurred"), ["baseline blurred scan"]),
        (Method("integrated_gradients", baseline="a*b"), ["baseline a*b"]),
        (Method("kernelshap", features="cubes", value="dice"), ["taken away cubes", "effect on overlap (soft Dice)"]),
        (Method(skip=0.005, precision="bfloat16", seed=7), ["seed 7", "without windows under 0.5 %", "half precision"]),
        (Method(tolerance=0.02), ["tolerance 0.02"]),
        (Method(), []),
    ],
)  # fmt: skip
def test_what_is_not_usual_is_told(method: Method, told: list[str]) -> None:
    assert methods.parameter_words(method) == told


@pytest.mark.parametrize(
    ("mask", "told"),
    [("prediction", []), ("fp", ["false positives"]), ("file-cyst_1", ["in mask cyst_1"])],
)
def test_masks_are_told_if_they_are_not_usual(mask: str, told: list[str]) -> None:
    assert methods.mask_words(Method(mask=mask)) == told


# ---- the form -------------------------------------------------------------------------------------


def form(usual: Method, measured: Measured | None = None) -> AppTest:
    def page(usual, measured):
        from dataclasses import replace

        import streamlit as st

        from dashboard.views import methods

        st.session_state["asked"] = replace(methods.ask_method(usual), precision=methods.ask_precision(measured))

    return AppTest.from_function(page, args=(usual, measured)).run()


def asked(app: AppTest) -> Method:
    assert not app.exception
    return app.session_state["asked"]


def test_every_method_can_be_asked_for_and_starts_as_usual() -> None:
    app = form(Method(samples=4))
    assert asked(app) == effort.EFFORTS["Quick look"]
    for name in methods.METHODS:
        app.selectbox(key="compute_method").select(name).run()
        assert asked(app).name == name
    for name, samples in (("integrated_gradients", 24), ("quantile_gradient", 100), ("kernelshap", 200)):
        app.selectbox(key="compute_method").select(name).run()
        assert asked(app).samples == samples


def test_kernelshap_asks_what_is_taken_away_and_how_often() -> None:
    app = form(Method("kernelshap", samples=60))
    assert asked(app) == Method("kernelshap", samples=60)
    app.selectbox(key="compute_features_kernelshap").select("cubes").run()
    app.selectbox(key="compute_value_kernelshap").select("dice").run()
    assert asked(app) == Method("kernelshap", samples=1000, features="cubes", value="dice")


@pytest.mark.parametrize(("samples", "offered"), [(20_000, 10_000), (1, 2)])
def test_a_run_made_elsewhere_may_have_any_number(samples: int, offered: int) -> None:
    assert asked(form(Method("kernelshap", samples=samples))).samples == offered


def test_what_a_run_made_elsewhere_took_away_need_not_be_known() -> None:
    assert asked(form(Method("kernelshap", samples=50, features="slabs"))).features == "regions"


def test_organs_need_their_own_number_of_coalitions_again() -> None:
    app = form(Method("kernelshap", samples=1000, features="cubes"))
    app.selectbox(key="compute_features_kernelshap").select("regions").run()
    assert asked(app).samples == 200


def test_a_baseline_can_be_chosen() -> None:
    app = form(Method("integrated_gradients", samples=12, baseline="blurred"))
    assert asked(app).baseline == "blurred"
    app.selectbox(key="compute_baseline_integrated_gradients").select("uniform").run()
    assert asked(app) == Method("integrated_gradients", samples=12, baseline="uniform")


def test_an_unusual_smoothgrad_is_offered_as_it_is() -> None:
    unusual = Method(samples=6, seed=3)
    app = form(unusual)
    assert asked(app) == unusual and app.selectbox(key="compute_effort").value == "As this run (up to 6 pairs)"


def test_precision_is_asked_for_where_it_was_measured() -> None:
    assert "compute_precision" not in [box.key for box in form(Method()).selectbox]
    good, bad = form(Method(), Measured(0.0011, 1.6)), form(Method(), Measured(0.1, 1.6))
    assert asked(good).precision == "bfloat16" and asked(bad).precision == "float32"
    assert good.selectbox(key="compute_precision").options[1] == "Half: 1.6 times as fast, shares within ± 0.11 %"
    good.selectbox(key="compute_precision").select("float32").run()
    assert asked(good).precision == "float32"
    slow = form(Method(), Measured(0.001, 0.2))
    assert "compute_precision" not in [box.key for box in slow.selectbox] and asked(slow).precision == "float32"
