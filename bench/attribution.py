"""Peak memory of an attribution over 17 targets, over the network's own, in float32 volumes of the scan."""

from __future__ import annotations

import resource
import subprocess
import sys

EDGE, TARGETS = 192, 17


def main() -> list[tuple[str, str]]:
    """Measured in a process of its own, whose peak is not another measurement's."""
    asked = subprocess.run([sys.executable, "-m", "bench.attribution"], capture_output=True, text=True, check=True)
    volumes = float(asked.stdout)
    return [
        (f"attribution peak memory over the network's, {TARGETS} targets, {EDGE}³", f"{volumes:.1f} float32 volumes")
    ]


def _measure() -> float:
    import torch
    from monai.inferers import SlidingWindowInferer

    from agg2exp_core.attribution.attribute import Explainer, Subject, attribute
    from agg2exp_core.records import Method

    torch.manual_seed(0)
    # Of little memory and time of its own; each class holds a band of grey values, so that all are there everywhere.
    network = torch.nn.Conv3d(1, TARGETS, 1).requires_grad_(False)
    centres = torch.linspace(0, 1, TARGETS)
    network.weight.copy_((2 * centres).view(TARGETS, 1, 1, 1, 1))
    network.bias.copy_(-(centres**2))
    classes = tuple(f"class {index}" for index in range(TARGETS))
    explainer = Explainer(network, SlidingWindowInferer((64,) * 3), classes, torch.device("cpu"))
    method = Method(samples=2)

    def explain(edge: int) -> int:
        attribute(explainer, Subject(torch.rand(1, edge, edge, edge)), classes, method, lambda *_: None, keep=())
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    networks_own = explain(64)
    return (explain(EDGE) - networks_own) / (4 * EDGE**3)


if __name__ == "__main__":
    print(_measure())
