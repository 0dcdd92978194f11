"""Peak memory of an attribution over the network's own, in float32 volumes of the scan, of few classes and of many.

The network's own is what the scan and the gradient of one window take.

And of a single window, whose classes are all explained: time, and memory against that of one class. And of the demo's
model, with the usual settings, on the scan that its speed is measured on.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from agg2exp_core.records import Method

if TYPE_CHECKING:
    import torch

    from agg2exp_core.attribution.attribute import Explainer

EDGE, CLASSES = 160, (17, 117)
PAIRS = Method(samples=16, tolerance=1e-9)
"""Of which the last eight are a round, whose gradients are held side by side: the most that a round has.

One target is explained, as no more are held at a time: others would come after it, in the same room.
"""

WINDOW, WINDOW_CLASSES = 64, (17, 104, 117)

USUAL = "thorax17_segresnet"


def main() -> list[tuple[str, str]]:
    """Each measured in a process of its own, whose peak is not another measurement's."""
    rows = [
        (
            f"attribution peak memory over the network's, {count} classes, {EDGE}³",
            f"{_apart('scan', count)[0]:.1f} float32 volumes",
        )
        for count in CLASSES
    ]
    for count in WINDOW_CLASSES:
        times, seconds = _apart("window", count)
        told = f"{seconds:.0f} s, {seconds / count:.2f} s a class; memory {times:.2f} times that of one class"
        rows.append((f"gradient of all of {count} classes, one window of {WINDOW}³, SegResNet", told))
    more, before = _apart("usual", 0)
    told = f"{more / 1e6:.0f} MB over {before / 1e6:.0f} MB, which PyTorch, the scan and a gradient of one window need"
    return [*rows, (f"SmoothGrad, all organs, {USUAL}, peak memory", told)]


def _apart(what: str, classes: int) -> list[float]:
    asked = [sys.executable, "-m", "bench.attribution", what, str(classes)]
    return list(map(float, subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()))


def _scan(count: int) -> tuple[float]:
    import torch

    # Of little memory and time of its own; each class holds a band of grey values, so that all are there everywhere.
    network = torch.nn.Conv3d(1, count, 1).requires_grad_(False)
    centres = torch.linspace(0, 1, count)
    network.weight.copy_((2 * centres).view(count, 1, 1, 1, 1))
    network.bias.copy_(-(centres**2))
    explainer = _explainer(network, count)
    scan = torch.rand(1, EDGE, EDGE, EDGE)
    networks_own, _ = _explained(explainer, Method("gradient"), torch.rand(1, WINDOW, WINDOW, WINDOW), 1)
    peak, _ = _explained(explainer, PAIRS, scan, 1)
    return ((peak - networks_own) / (4 * EDGE**3),)


def _window(count: int) -> tuple[float, float]:
    """Memory of all classes as a multiple of one's, whose passes are the network's own; and seconds of all."""
    import torch
    from monai.networks.nets import SegResNet

    network = SegResNet(init_filters=8, in_channels=1, out_channels=count).eval().requires_grad_(False)
    explainer, method = _explainer(network, count), Method("gradient", mask="label")
    before, image = _peak(), torch.rand(1, WINDOW, WINDOW, WINDOW)
    one, _ = _explained(explainer, method, image, 1)
    peak, seconds = _explained(explainer, method, image, count)
    return (peak - before) / (one - before), seconds


def _usual(_: int) -> tuple[float, float]:
    """Bytes of all organs over one plain window gradient's, and those."""
    from bench.engine import ready

    explainer, image = ready(USUAL)
    window = image.new_zeros((1, 1, *explainer.inferer.roi_size)).requires_grad_()
    explainer.network(window)[0, 1].sum().backward()
    before = _peak()
    peak, _ = _explained(explainer, Method(samples=8), image, len(explainer.classes))
    return peak - before, before


def _explainer(network: torch.nn.Module, count: int) -> Explainer:
    import torch
    from monai.inferers import SlidingWindowInferer

    from agg2exp_core.attribution.attribute import Explainer
    from agg2exp_core.model.memory import keep_freed_memory

    keep_freed_memory()
    torch.manual_seed(0)
    classes = tuple(f"class {index}" for index in range(count))
    return Explainer(network, SlidingWindowInferer((64,) * 3), classes, torch.device("cpu"))


def _explained(explainer: Explainer, method: Method, image: torch.Tensor, targets: int) -> tuple[int, float]:
    """Peak memory in bytes and seconds of the attribution of the first classes, of a scan (1, I, J, K)."""
    import torch

    from agg2exp_core.attribution.attribute import Subject, attribute

    label, started = None, time.perf_counter()
    if method.mask == "label":  # each class has voxels of it, whatever a network that was never trained predicts
        label = torch.arange(image.numel()).reshape(image[0].shape) % len(explainer.classes)
    attribute(explainer, Subject(image, label), explainer.classes[:targets], method, lambda *_: None, keep=())
    seconds = time.perf_counter() - started
    return _peak(), seconds


def _peak() -> int:
    """Bytes that this process has held at most (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    print(*{"scan": _scan, "window": _window, "usual": _usual}[sys.argv[1]](int(sys.argv[2])))
