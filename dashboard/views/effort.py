"""How thoroughly to explain, in words."""

from __future__ import annotations

from agg2exp_core.records import Method

EFFORTS = {
    "Quick look": Method(samples=4),
    "Settled": Method(samples=20, tolerance=0.005),
    "As published": Method(samples=20, estimator="plain"),
}
HELP = (
    "SmoothGrad averages gradients of noisy copies of the scan. **Quick look**: four pairs of copies. **Settled**: "
    "more pairs for the organs that need them, until every share is known to ± 0.5 % of the whole attribution, 20 "
    "pairs at most. "
    "**As published**: 20 independent copies, without error bars."
)


def effort_of(method: Method) -> str | None:
    """The words for a SmoothGrad, whatever its seed and mask."""
    for word, usual in EFFORTS.items():
        if (method.samples, method.estimator, method.sigma) == (usual.samples, usual.estimator, usual.sigma):
            return word if method.estimator == "plain" or method.tolerance == usual.tolerance else None
    return None
