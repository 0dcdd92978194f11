"""How thoroughly to explain, in words, and about how long that takes before it is asked for."""

from __future__ import annotations

from pathlib import Path

from agg2exp_core.jobs import queue
from agg2exp_core.records import Method
from agg2exp_core.store import results

EFFORTS = {
    "Quick look": Method(samples=2, tolerance=0.02),
    "Settled": Method(samples=20, tolerance=0.005),
    "As published": Method(samples=20, estimator="plain"),
}
HELP = (
    "SmoothGrad averages gradients of noisy copies of the scan. **Quick look**: two pairs of copies. **Settled**: more "
    "pairs for the organs that need them, until every share is known to ± 0.5 % of the whole attribution. **As "
    "published**: 20 independent copies, without error bars."
)
START_SECONDS = 12.0
"""For a process to load PyTorch and a network."""


def effort_of(method: Method) -> str | None:
    """The words for a SmoothGrad, whatever its seed and mask."""
    for word, usual in EFFORTS.items():
        if (method.samples, method.estimator, method.sigma) == (usual.samples, usual.estimator, usual.sigma):
            return word if method.estimator == "plain" or method.tolerance == usual.tolerance else None
    return None


def passes(method: Method) -> int:
    """Scans whose gradients a method takes, at most."""
    if method.name in ("gradient", "gradient_x_input", "ablation"):
        return 1
    return method.samples * (2 if method.name == "smoothgrad" and method.estimator == "antithetic" else 1)


def seconds(root: Path, model: str, method: Method, organs: int) -> float | None:
    """About how long one case takes, judged from what this model needed last; None if it was never run."""
    for job in queue.list_jobs(root):
        manifest = results.read_manifest(results.case_path(root, **job.result)) if job.result else None
        if manifest and manifest.get("model") == model and manifest.get("seconds"):
            done = Method.of(manifest["method"], manifest["parameters"])
            each = float(manifest["seconds"]) / _work(done, len(manifest["targets"]))
            return START_SECONDS + each * _work(method, organs)
    return None


def _work(method: Method, organs: int) -> int:
    """Passes forwards and backwards through the network; one forward serves all organs."""
    return passes(method) * (1 + organs)
