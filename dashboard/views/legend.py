"""The words at an attribution map's colour bar: what its two ends mean depends on the method."""

from __future__ import annotations

from collections.abc import Sequence

from dashboard.charts.channels import channel_title
from dashboard.viewer.stage import Attribution, Legend
from dashboard.views.methods import METHODS
from dashboard.words import plain

CONTRIBUTIONS = ("integrated_gradients", "gradient_x_input", "ablation", "kernelshap")
"""Methods that share out the score; the others tell what a little more brightness would do to it."""


def summed(channels: Sequence[str]) -> str:
    """What a map of all input channels shows, in Markdown."""
    names = [channel_title(name) for name in channels]
    return (
        f"Drawn over {plain(names[0])}: the signed sum of {plain(', '.join(names))}. Where one is for and another "
        "against, they cancel here, and count both in the shares."
    )


def legend(organ: str, method: str, attribution: Attribution, signed: bool, brighter: str = "higher HU") -> Legend:
    """organ: the target's title. method: its id, "" where it is not known. brighter: a higher value, in words."""
    if not signed:
        low, high = "no influence", "strong influence"
    elif method in CONTRIBUTIONS:
        low, high = "speaks against", "speaks for"
    else:
        low, high = f"{brighter} here: less {organ.lower()}", f"{brighter} here: more {organ.lower()}"
    note, end = "one voxel in a thousand is stronger", "the 99.9th percentile of its absolute values"
    if attribution.sparse:
        note, end = "the strongest voxel", "its peak, as few voxels have a value"
    exact = f"100 % of this map is {attribution.end:.4g}, {end}. Stronger voxels share the colour of the end."
    note = f"Colours end at {attribution.end:.2g}: {note}."
    return Legend(": ".join(filter(None, [organ, METHODS.get(method, method)])), low, high, note, exact)
