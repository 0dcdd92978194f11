"""What the numbers mean, within reach on every page."""

from __future__ import annotations

from importlib import metadata

import streamlit as st

from agg2exp_core.access import sign_in_file
from agg2exp_core.settings import is_own_address

DEFINITIONS = """
##### How the numbers are defined

**What is explained.** For a target organ, the sum of its logits over the voxels that the model gave to it.

**Attribution**, one number *a* a voxel: how that sum changes with the voxel. *Gradient*; *SmoothGrad*, the mean
gradient over noisy copies of the scan; *integrated gradients* from a baseline.

**Share** of a region: Σ φ(*a*) over it ÷ Σ φ(*a*) over the whole scan, φ the absolute value, or only the positive or
negative part. Regions are the predicted organs and the background, so the shares of a target sum to 100 %.
**Mean per voxel** divides by the region’s voxels instead.

**Absent is not zero.** An organ that the model did not predict has no value, and says why.

**Cohort.** Boxes are quartiles, whiskers reach the last scan within 1.5 box lengths, the matrix shows medians.

**Outlier.** Higher scores are more unusual; flagged is what exceeds 95 % of the scores that the reference cohort gets
itself, each scan scored by detectors that have not seen it.

**Dice** is the overlap of prediction and label, 0 to 1, where a label map is stored.

**Slices** are in radiological convention: the patient’s left is at the right of the picture.

Attribution says what moved the model’s output, not whether that is medically sound.
**For research only; not a medical device.**
"""


def button() -> None:
    """A button at the head of the sidebar that shows the definitions."""
    with (
        st.sidebar,
        st.container(key="about", width="content"),
        st.popover("About", icon=":material/info:", type="tertiary"),
    ):
        st.markdown(DEFINITIONS)
        st.caption(f"Agg²Exp Explorer {_version()} · method: Agg²Exp, arXiv 2407.16653".replace("  ", " "))


def warn_if_insecure() -> None:
    """Say that other machines may reach this dashboard without sign-in, where they do."""
    known = [st.get_option("server.address") or "", *st.get_option("server.allowedHosts")]
    if sign_in_file() is None and not all(map(is_own_address, known)):
        st.sidebar.caption(
            ":orange-badge[:material/lock_open: Without sign-in]",
            help="Other machines may reach this dashboard: whoever does sees and changes everything in it.",
        )


def _version() -> str:
    """Of the installed package; nothing where it runs from its folder alone."""
    try:
        return metadata.version("agg2exp-explorer")
    except metadata.PackageNotFoundError:
        return ""
