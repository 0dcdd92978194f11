"""Filters: a link, the widgets and the Selection say the same; words tell a reader which filters are on."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from agg2exp_core.organs import load_label_set
from agg2exp_core.records import Condition, Selection
from agg2exp_core.store.lists import CaseList
from dashboard import data, filters, words
from dashboard.address import Link

LABELS = load_label_set("thorax17")
BASE = Selection("clinic", "a-run")
EVERYTHING = Selection(
    "clinic", "a-run", "neg", "mean", False,
    (
        Condition("age", low=40.0, high=80.0), Condition("sex", values=("F",)),
        Condition("planted", values=("", "metal")),
    ),
    ("heart", 0.5, 0.95), ("aorta", "ribs"), True, ("doubtful", "to_show"), ("seen",),
)  # fmt: skip


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cohort with two categories, two numbers, one of them the same in every case, and three saved lists."""
    columns = pd.DataFrame(
        {
            "column": ["age", "sex", "planted", "dose"],
            "kind": ["number", "category", "category", "number"],
            "values": [[], ["F", "M"], ["", "metal", "pleural effusion"], []],
            "low": [30.0, np.nan, np.nan, 2.0],
            "high": [87.0, np.nan, np.nan, 2.0],
        }
    )
    monkeypatch.setattr(data, "metadata_columns", lambda root, cohort: columns)
    saved = [CaseList(name, "clinic", ("c1",)) for name in ("doubtful", "seen", "to_show")]
    monkeypatch.setattr(data, "lists", lambda root, cohort: saved)
    monkeypatch.setattr(data, "targets", lambda root, cohort, run: ["background", "aorta", "heart", "ribs"])
    monkeypatch.setattr(data, "cases", lambda root, selection: pd.DataFrame({"dice": [0.9]}))


def _script() -> None:
    """A page of nothing but the filters; what they say is left in the session."""
    from pathlib import Path

    import streamlit as st

    from agg2exp_core.organs import load_label_set
    from agg2exp_core.records import Selection
    from dashboard import filters
    from dashboard.address import Address

    labels = load_label_set("thorax17")
    address = Address("cohort")
    address.follow()
    sign, value, background = filters.measures(address, shares_only=False)
    joined = filters.joining(address, labels)
    base = Selection("clinic", "a-run", sign, value, background, joined=joined)
    said = filters.Filters(address, "clinic").narrow(Path(), base, labels)
    st.session_state["said"] = said
    st.button("Clear", on_click=filters.clear, args=(address,))
    address.write(filters.link_of(said, "heart"))


def _opened(link: Link) -> AppTest:
    app = AppTest.from_function(_script)
    for name, values in link.items():
        app.query_params[name] = values
    app.run()
    assert not app.exception
    return app


def _address(app: AppTest) -> Link:
    """The parameters after a run; AppTest unpacks single ones."""
    return {name: [found] if isinstance(found, str) else found for name, found in app.query_params.items()}


@pytest.mark.parametrize("selection", [BASE, EVERYTHING], ids=["nothing chosen", "everything chosen"])
def test_a_link_opens_the_selection_it_was_made_of(selection: Selection) -> None:
    link = filters.link_of(selection, "heart")
    app = _opened(link)
    assert app.session_state["said"] == selection
    assert _address(app) == link


def test_untouched_widgets_filter_nothing_and_a_constant_column_gets_none() -> None:
    app = _opened({})
    said = app.session_state["said"]
    assert (said.where, said.dice, said.present) == ((), None, ())
    assert [slider.label for slider in app.slider] == ["Age", "Dice"]


def test_widgets_change_the_selection_and_its_link() -> None:
    app = _opened({})
    app.slider[0].set_value((50.0, 87.0)).run()
    app.multiselect[0].select("M").run()
    assert app.session_state["said"].where == (Condition("age", low=50.0, high=87.0), Condition("sex", values=("M",)))
    assert _address(app).items() >= {"is.sex": ["M"], "in.age": ["50.0~87.0"]}.items()


def test_a_range_stays_chosen_when_newer_cases_widen_its_column(monkeypatch: pytest.MonkeyPatch) -> None:
    app = _opened({})
    app.slider[0].set_value((50.0, 87.0)).run()
    wider = data.metadata_columns(None, "clinic").assign(
        low=[20.0, np.nan, np.nan, 2.0], high=[91.0, np.nan, np.nan, 2.0]
    )
    monkeypatch.setattr(data, "metadata_columns", lambda root, cohort: wider)
    app.run()
    assert app.session_state["said"].where == (Condition("age", low=50.0, high=91.0),)
    app.button[0].click().run()
    assert app.session_state["said"].where == ()


def test_clear_lets_all_cases_through_and_keeps_the_measures() -> None:
    app = _opened(filters.link_of(EVERYTHING, "heart"))
    app.button[0].click().run()
    assert app.session_state["said"] == Selection("clinic", "a-run", "neg", "mean", False, joined=True)


@pytest.mark.parametrize(
    "link",
    [
        {"in.age": ["old~older"]}, {"in.age": ["90~99"]}, {"in.age": ["60~50"]}, {"in.age": ["nan~nan"]},
        {"is.sex": ["X"]}, {"dice": ["0.5"]}, {"dice_of": ["liver"]}, {"present": ["liver"]}, {"sign": ["both"]},
        {"is.gone": ["1"]},
    ],
    ids=str,
)  # fmt: skip
def test_nonsense_in_a_link_filters_nothing_and_is_told(link: Link) -> None:
    app = _opened(link)
    said = app.session_state["said"]
    assert (said.sign, said.where, said.dice, said.present) == ("abs", (), None, ())
    if "sign" not in link:
        (warning,) = app.warning
        assert "of the link is not here" in warning.value
        app.run()
        assert not app.warning


def test_a_column_of_another_name_is_told_by_its_name() -> None:
    assert "Column of the link is not here: 'gone'" in _opened({"is.gone": ["1"]}).warning[0].value


def test_an_ampersand_stays_one() -> None:
    """Markdown, which would make a sign of `&copy;`, takes an escaped one as it is."""
    assert words.plain("R&D, &copy; *x*") == r"R\&D, \&copy; \*x\*"


@pytest.mark.parametrize(
    "text",
    [
        "http://evil.org/x", "see HTTPS://evil.org", "www.evil.org", ":material/home:", ":material_home:", ":heart:",
        ":+1:", ":streamlit:",
    ],
)  # fmt: skip
def test_a_text_of_others_becomes_no_link_or_icon(text: str) -> None:
    """Streamlit's patterns, on what is left when the escapes are read."""
    left = words.plain(text).replace("\\", "")
    assert not re.search(r"https?://\w|www\.|:material[/_]|:[\w+-]+:", left, re.IGNORECASE)
    assert left.replace(words.JOINER, "") == text


@pytest.mark.parametrize("text", ["10:30, a: b", "c:d", "httpd", "ratio 1:2", "tls//x", "ada@hospital.org"])
def test_ordinary_text_gets_no_hidden_sign(text: str) -> None:
    assert words.JOINER not in words.plain(text)


def test_active_filters_in_words() -> None:
    assert filters.describe(BASE, LABELS) == []
    long = replace(BASE, where=(Condition("dose", low=1234567.0, high=7654321.5),))
    assert filters.describe(long, LABELS) == ["dose 1234567 to 7654321.5"]
    assert filters.describe(EVERYTHING, LABELS) == [
        "age 40 to 80", "sex is F", "planted is none or metal", "Dice of Heart 0.5 to 0.95", "Aorta present",
        "Ribs present", "in list doubtful or to_show", "not in list seen",
    ]  # fmt: skip


def test_a_list_of_the_link_that_is_not_here_is_told() -> None:
    app = _opened({"list": ["gone", "seen"]})
    assert app.session_state["said"].within == ("seen",)
    assert "In list of the link is not here" in app.warning[0].value


def test_a_list_that_is_removed_while_chosen_filters_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    app = _opened({"list": ["seen"]})
    monkeypatch.setattr(data, "lists", lambda root, cohort: [CaseList("other", "clinic", ("c1",))])
    app.run()
    assert not app.exception and app.session_state["said"].within == ()


def _imported() -> None:
    from dashboard import filters
    from dashboard.address import Address

    filters.measures(Address("cohort"), shares_only=True)


def test_an_imported_table_has_no_signs_to_switch() -> None:
    app = AppTest.from_function(_imported).run()
    assert not app.exception
    assert [group.label for group in app.segmented_control] == ["Measure"]


@pytest.mark.parametrize(("text", "shown"), [("- x", r"\- x"), ("1. x", r"1\. x"), ("1.5 mm", "1.5 mm")])
def test_a_text_of_others_starts_no_list(text: str, shown: str) -> None:
    assert words.plain(text) == shown
