"""Stitched logits, box by box, and the predicted organs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from agg2exp_core.model.forward import run
from agg2exp_core.model.mosaic import mosaics
from agg2exp_core.model.windows import WindowPlan
from agg2exp_core.records import InputError
from agg2exp_core.settings import checked_device

Tick = Callable[[int], None]
"""Told how many more windows are done."""
Place = tuple[slice, ...]

HELD_BYTES = 2**30
"""Of logits that wait for more windows, where nothing less is asked for."""


def stitched_logits(
    network: torch.nn.Module,
    plan: WindowPlan,
    scan: torch.Tensor,
    tick: Tick = lambda windows: None,
    held: int = HELD_BYTES,
) -> Iterator[tuple[Place, torch.Tensor]]:
    """Boxes of a scan (channels, I, J, K) and their logits (classes, box), as by MONAI's sliding window of the whole.

    held: bytes of logits that may wait for more windows, or those of one window if that is more. Where all would not
    fit, the scan is put together in columns, at whose borders windows are run again.
    Logits are overwritten when the next are asked for. InputError: logits that are not finite.
    """
    padded, seen = plan.extend(scan), set[int]()
    first = range(min(plan.batch, len(plan.slices)))
    ahead: dict[tuple[int, ...], torch.Tensor] = {(*first,): _logits(network, plan, padded, first)}
    classes = ahead[*first,].shape[1]
    columns = mosaics(plan, held / (4 * classes))
    while columns:
        mosaic = columns.pop(0)  # so that each one's memory goes with it
        for start in range(0, len(mosaic.numbers), plan.batch):
            numbers = (*mosaic.numbers[start : start + plan.batch],)
            logits = ahead.pop(numbers) if numbers in ahead else _logits(network, plan, padded, numbers)
            for index, number in enumerate(numbers):
                mosaic.add(number, (0, 0), logits[index])
            del logits  # of many classes they are large: the next ones, or who asked for these, need the room
            tick(len({*numbers} - seen))
            seen.update(numbers)
            for number in numbers:
                for place, sums in mosaic.finished(number):
                    yield place, sums[0, 0]


def _logits(network: torch.nn.Module, plan: WindowPlan, padded: torch.Tensor, numbers: Sequence[int]) -> torch.Tensor:
    """What windows add to the stitched logits (windows, classes, window)."""
    windows = [plan.slices[number] for number in numbers]
    with torch.no_grad():
        logits = run(network, torch.stack([padded[(slice(None), *window)] for window in windows]))
    for window, part in zip(windows, logits, strict=True):
        check_finite(part, window)
        part *= plan.share(window)
    return logits


def check_finite(logits: torch.Tensor, window: Place) -> None:
    """InputError: logits of a window that are NaN or infinite."""
    if not torch.isfinite(torch.stack(logits.aminmax())).all():  # nothing of their own size is made
        voxels = ", ".join(f"{edge.start}:{edge.stop}" for edge in window)
        raise InputError("a network must give finite logits", f"NaN or infinity in voxels {voxels}")


def segment(
    network: torch.nn.Module,
    plan: WindowPlan,
    scan: torch.Tensor,
    tick: Tick = lambda windows: None,
    held: int = HELD_BYTES,
) -> tuple[torch.Tensor, int]:
    """The predicted organs (I, J, K) of a scan (channels, I, J, K), and the number of the network's classes.

    held: as stitched_logits.
    """
    prediction, classes = torch.empty(0), 0
    for place, logits in stitched_logits(network, plan, scan, tick, held):
        if not classes:
            classes = len(logits)
            dtype = torch.uint8 if classes <= 256 else torch.int16
            prediction = torch.empty(plan.shape, dtype=dtype, device=scan.device)
        prediction[place] = predicted_organs(logits, last_wins(network)).to(prediction.dtype)
    return prediction, classes


def predicted_organs(logits: torch.Tensor, nested: bool = False) -> torch.Tensor:
    """ŷ(v) = argmax_k z_k(v) of logits (classes, …); ties go to the lower class.

    nested: of classes that may hold each other it is the last with a positive logit, a probability above a half.
    """
    if not nested:
        return logits.argmax(dim=0)
    found = torch.zeros(logits.shape[1:], dtype=torch.int64, device=logits.device)
    for number, one in enumerate(logits[1:], 1):
        found[one > 0] = number
    return found


def last_wins(network: torch.nn.Module) -> bool:
    """Whether the network's classes may hold each other, so that a voxel is given to the last that it is in."""
    return bool(getattr(network, "last_wins", False))


def pick_device(name: str) -> torch.device:
    """auto: the first CUDA device where there is one."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if checked_device(name).startswith("cpu") or (name == "auto" and not count):
        return torch.device("cpu")
    number = int(name.partition(":")[2] or 0)
    if number >= count:
        known = [f"cuda:{other}" for other in range(count)]
        raise InputError(f"device {name} needs a CUDA device", f"{count} found", ", ".join(["auto", "cpu", *known]))
    return torch.device("cuda", number)
