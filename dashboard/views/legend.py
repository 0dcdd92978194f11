"""The words at an attribution map's colour bar: what its two ends mean depends on the method."""

from __future__ import annotations

from dashboard.viewer.stage import Attribution, Legend
from dashboard.views.methods import METHODS

CONTRIBUTIONS = ("integrated_gradients", "gradient_x_input", "ablation", "kernelshap")
"""Methods that share out the score; the others tell what a little more brightness would do to it."""


def legend(organ: str, method: str, attribution: Attribution, signed: bool) -> Legend:
    """organ: the target's title. method: its id, "" where it is not known."""
    if not signed:
        low, high = "no influence", "strong influence"
    elif method in CONTRIBUTIONS:
        low, high = "speaks against", "speaks for"
    else:
        low, high = f"higher HU here: less {organ.lower()}", f"higher HU here: more {organ.lower()}"
    end = "the 99.9th percentile of this map; stronger voxels share its colour"
    if attribution.sparse:
        end = "the peak of this map, of which few voxels have a value"
    note = f"100 % is {attribution.end:.2g}, {end}."
    return Legend(": ".join(filter(None, [organ, METHODS.get(method, method)])), low, high, note)
