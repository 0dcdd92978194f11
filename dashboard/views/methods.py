"""Attribution methods in words, and the form that asks for one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import streamlit as st

from agg2exp_core.precision import Measured
from agg2exp_core.records import USUAL_SAMPLES, Method
from dashboard.views import effort

METHODS = {
    "smoothgrad": "SmoothGrad",
    "gradient": "Gradient",
    "gradient_x_input": "Gradient × input",
    "integrated_gradients": "Integrated gradients",
    "quantile_gradient": "Quantile gradient",
    "ablation": "Ablation",
    "kernelshap": "KernelSHAP",
}
MASKS = {
    "prediction": "Where the prediction is",
    "label": "Where the label is",
    "tp": "Correct voxels",
    "fp": "False positives",
    "fn": "False negatives",
}
MASK_HELP = (
    "The attribution explains the organ’s score summed over these voxels. **False positives** asks why the model drew "
    "the organ where the label has none, **false negatives** what spoke for it where the model missed it."
)
SAMPLES = {
    "integrated_gradients": "Steps",
    "quantile_gradient": "Voxels of the organ",
    "kernelshap": "Coalitions",
}
MOST = 10_000
MORE = {"cubes": 1000, "supervoxels": 1000}
"""Coalitions, where there are more features than organs."""

CHOICES = {
    "baseline": {
        "air": "Air",
        "blurred": "Blurred scan",
        "mean": "Mean grey value",
        "ones": "Ones",
        "uniform": "Uniform noise",
        "normal": "Gaussian noise",
    },
    "features": {"regions": "Predicted organs", "cubes": "Cubes", "supervoxels": "Supervoxels"},
    "value": {"logits": "Score", "dice": "Overlap (soft Dice)", "counts": "Correct voxels less new false ones"},
}
LABELS = {"baseline": "Baseline", "features": "Taken away", "value": "Effect on"}
HELPS = {
    "baseline": (
        "What the scan is compared with. From **air** or another even grey value, networks that normalise contrast "
        "see almost nothing until late on the path; a **blurred scan** keeps contrast and loses detail."
    ),
    "features": (
        "The parts that are replaced by the baseline. **Cubes** and **supervoxels** are about 512 and need more "
        "coalitions than organs do."
    ),
    "value": (
        "What is watched while parts are taken away: the organ’s **score** (the logits’ sum over its voxels), how well "
        "the new segmentation **overlaps** with those voxels, or how many of them stay **correct**."
    ),
}
ASKED = {
    "integrated_gradients": ("baseline",),
    "kernelshap": ("features", "value", "baseline"),
    "ablation": ("value",),
}


def ask_method(usual: Method) -> Method:
    """A method and its parameters; `usual` is what is shown first."""
    names = list(METHODS)
    name = st.selectbox(
        "Method", names, index=names.index(usual.name), format_func=METHODS.__getitem__, key="compute_method"
    )
    if name == "smoothgrad":
        return _ask_effort(usual)
    method = usual if name == usual.name else Method(name, USUAL_SAMPLES.get(name, 1))
    parameters = ASKED.get(name, ())
    asked: dict[str, Any] = {one: _choose(name, one, getattr(method, one)) for one in parameters}
    method = replace(method, **asked)
    if name not in SAMPLES:
        return method
    alike = (name, method.features) == (usual.name, usual.features)
    wanted = usual.samples if alike else MORE.get(method.features, USUAL_SAMPLES[name])
    least = 2 if name == "kernelshap" else 1
    samples = st.number_input(
        SAMPLES[name],
        min_value=least,
        max_value=MOST,
        value=min(max(wanted, least), MOST),  # a run made elsewhere may have any number
        key=f"compute_samples_{name}_{method.features}",
        help="More of them give a steadier map and take proportionally longer.",
    )
    return replace(method, samples=int(samples))


def ask_mask(usual: str) -> str:
    """The voxels whose score is explained."""
    names = list(MASKS)
    return st.selectbox(
        "Explained voxels",
        names,
        index=names.index(usual) if usual in names else 0,
        format_func=MASKS.__getitem__,
        key="compute_mask",
        help=MASK_HELP,
    )


def ask_precision(measured: Measured | None) -> str:
    """Of gradients; there is a choice only where half of it is known to be faster, and what it does to the shares."""
    if measured is None or measured.speedup <= 1:
        return "float32"
    told = {
        "float32": "Full",
        "bfloat16": f"Half: {measured.speedup:.1f} times as fast, shares within ± {100 * measured.mass_error:.2g} %",
    }
    names = list(told)
    index = names.index(measured.chosen)
    return st.selectbox("Precision", names, index=index, format_func=told.__getitem__, key="compute_precision")


def method_words(method: Method) -> str:
    """A method with how much of it there is: `SmoothGrad, settled`, `SmoothGrad × 4`, `Integrated gradients × 24`.

    As plain text, like all words here: most of them stand in select boxes, tables and reports.
    """
    name = METHODS.get(method.name) or method.name
    if method.name == "smoothgrad" and (word := effort.effort_of(method)):
        return f"{name}, {word.lower()}"
    if method.name == "smoothgrad" and method.estimator != "plain":
        return f"{name}, {copies(method)}"
    return f"{name} × {method.samples}" if method.name in ("smoothgrad", *SAMPLES) else name


def copies(method: Method) -> str:
    """How many of what a method averages: `4 copies`, `up to 8 pairs`; empty where nothing is."""
    if method.name == "smoothgrad":
        return f"{method.samples} copies" if method.estimator == "plain" else f"up to {method.samples} pairs"
    return f"{method.samples} {SAMPLES[method.name].split()[0].lower()}" if method.name in SAMPLES else ""


def mask_words(method: Method) -> list[str]:
    """The mask in words, if it is not the usual one."""
    if method.mask == "prediction":
        return []
    drawn = f"in mask {method.mask.removeprefix('file-')}"
    return [MASKS[method.mask].lower() if method.mask in MASKS else drawn]


def parameter_words(method: Method) -> list[str]:
    """What else of a method is not usual: `baseline: blurred scan`, `half precision`, `seed 7`."""
    usual, told = Method(method.name), [*("samples", "estimator", "mask")]
    told += ["tolerance"] if effort.effort_of(method) else []
    found = {key: value for key, value in method.parameters().items() if key not in told}
    return [_parameter(key, value) for key, value in found.items() if value != getattr(usual, key)]


def _parameter(key: str, value: object) -> str:
    if key in CHOICES:
        shown = CHOICES[key].get(str(value), str(value))
        return f"{LABELS[key].lower()} {shown[0].lower()}{shown[1:]}"
    if key == "precision":
        return "half precision"
    if key == "skip":
        return f"without windows under {100 * float(str(value)):.3g} %"
    return f"{key} {value}"


def _choose(name: str, parameter: str, usual: str) -> str:
    choices = CHOICES[parameter]
    return st.selectbox(
        LABELS[parameter],
        list(choices),
        index=list(choices).index(usual) if usual in choices else 0,
        format_func=choices.__getitem__,
        key=f"compute_{parameter}_{name}",
        help=HELPS[parameter],
    )


def _ask_effort(usual: Method) -> Method:
    """SmoothGrad by what it is for; or as the run that is shown has it, if that is none of these."""
    choices = dict(effort.EFFORTS)
    if usual.name == "smoothgrad" and effort.effort_of(usual) is None:
        choices = {f"As this run ({copies(usual)})": usual} | choices
    word = st.selectbox("Effort", list(choices), key="compute_effort", help=effort.HELP)
    return choices[word]
