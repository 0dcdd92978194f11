"""Peak memory of an attribution over the network's own, in float32 volumes of the scan, of few classes and of many."""

from __future__ import annotations

import resource
import subprocess
import sys

EDGE, CLASSES, EXPLAINED = 192, (17, 117), 3
"""Few are explained: gradients are held of no more at a time, and the others would come after them."""


def main() -> list[tuple[str, str]]:
    """Each measured in a process of its own, whose peak is not another measurement's."""
    return [
        (f"attribution peak memory over the network's, {count} classes, {EDGE}³", f"{_peak(count):.1f} float32 volumes")
        for count in CLASSES
    ]


def _peak(classes: int) -> float:
    asked = [sys.executable, "-m", "bench.attribution", str(classes)]
    return float(subprocess.run(asked, capture_output=True, text=True, check=True).stdout)


def _measure(count: int) -> float:
    import torch
    from monai.inferers import SlidingWindowInferer

    from agg2exp_core.attribution.attribute import Explainer, Subject, attribute
    from agg2exp_core.records import Method

    torch.manual_seed(0)
    # Of little memory and time of its own; each class holds a band of grey values, so that all are there everywhere.
    network = torch.nn.Conv3d(1, count, 1).requires_grad_(False)
    centres = torch.linspace(0, 1, count)
    network.weight.copy_((2 * centres).view(count, 1, 1, 1, 1))
    network.bias.copy_(-(centres**2))
    classes = tuple(f"class {index}" for index in range(count))
    explainer = Explainer(network, SlidingWindowInferer((64,) * 3), classes, torch.device("cpu"))
    method = Method(samples=2)

    def explain(edge: int) -> int:
        subject, wanted = Subject(torch.rand(1, edge, edge, edge)), classes[:EXPLAINED]
        attribute(explainer, subject, wanted, method, lambda *_: None, keep=())
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    networks_own = explain(64)
    return (explain(EDGE) - networks_own) / (4 * EDGE**3)


if __name__ == "__main__":
    print(_measure(int(sys.argv[1])))
