"""How thoroughly to explain, in words, and about how long that takes before it is asked for."""

from __future__ import annotations

from pathlib import Path

from agg2exp_core.jobs import queue
from agg2exp_core.precision import Measured, read_measured
from agg2exp_core.records import PERTURBING, Method
from agg2exp_core.store import results

EFFORTS = {
    "Quick look": Method(samples=4),
    "Settled": Method(samples=20, tolerance=0.005),
    "As published": Method(samples=20, estimator="plain"),
}
HELP = (
    "SmoothGrad averages gradients of noisy copies of the scan. **Quick look**: four pairs of copies. **Settled**: "
    "more pairs for the organs that need them, until every share is known to ± 0.5 % of the whole attribution. "
    "**As published**: 20 independent copies, without error bars."
)
ORGANS = 18
"""About as many as ablation takes away."""
START_SECONDS = 12.0
"""For a process to load PyTorch and a network."""


def effort_of(method: Method) -> str | None:
    """The words for a SmoothGrad, whatever its seed and mask."""
    for word, usual in EFFORTS.items():
        if (method.samples, method.estimator, method.sigma) == (usual.samples, usual.estimator, usual.sigma):
            return word if method.estimator == "plain" or method.tolerance == usual.tolerance else None
    return None


def measured(root: Path, model: str) -> Measured | None:
    """What half precision does to a model's explanations, on the fastest kind of device that it was tried on."""
    return read_measured(root, model, "cuda") or read_measured(root, model, "cpu")


def passes(method: Method) -> int:
    """Scans whose gradients a method takes, at most."""
    if method.name == "ablation":
        return ORGANS
    if method.name in ("gradient", "gradient_x_input"):
        return 1
    return method.samples * (2 if method.name == "smoothgrad" and method.estimator == "antithetic" else 1)


def seconds(root: Path, model: str, method: Method, organs: int) -> float | None:
    """About how long one case takes, judged from what this model needed last; None if it was never run."""
    for job in queue.list_jobs(root):
        manifest = results.read_manifest(results.case_path(root, **job.result)) if job.result else None
        if manifest and manifest.get("model") == model and manifest.get("seconds"):
            done = Method.of(manifest["method"], manifest["parameters"])
            faster = known.speedup if (known := measured(root, model)) else 1.0
            each = float(manifest["seconds"]) / _work(done, len(manifest["targets"]), faster)
            return START_SECONDS + each * _work(method, organs, faster)
    return None


def _work(method: Method, organs: int, faster: float) -> float:
    """Passes forwards and backwards through the network in single precision; one forward serves all organs.

    faster: how many times as fast half precision is.
    """
    if method.name in PERTURBING:
        return passes(method)
    return passes(method) * (1 + organs) / (faster if method.precision == "bfloat16" else 1.0)
