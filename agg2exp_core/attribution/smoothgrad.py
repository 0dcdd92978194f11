"""SmoothGrad (Smilkov et al. 2017): the mean gradient over noisy copies of the scan."""

from __future__ import annotations

from collections.abc import Callable

import torch

from agg2exp_core.attribution.gradient import Pass
from agg2exp_core.attribution.target import Place
from agg2exp_core.model.windows import WindowPlan
from agg2exp_core.records import InputError, Method


def noisy_copies(scan: torch.Tensor, plan: WindowPlan, method: Method) -> Callable[[int, float, Place], torch.Tensor]:
    """x + sign · ε_i for copy i, a sign and a place in the padded scan, with noise σ = sigma · (max − min).

    scan: (channels, I, J, K); each channel has a σ of its own range. The noise covers all of it, so that overlapping
    windows see the same voxel. InputError: a channel without contrast, whose copies would all be the same.
    """
    padded = plan.extend(scan)
    ranges = [float(one.max() - one.min()) for one in scan]
    if method.sigma and 0 in ranges:
        flat, number = scan[ranges.index(0)].max(), ranges.index(0) + 1
        got = f"a scan of one value, {flat:.4g}" + (f", in channel {number} of {len(scan)}" if len(scan) > 1 else "")
        raise InputError("SmoothGrad's noise is a share of the scan's range", got, "sigma 0, or another method")
    sigma = torch.tensor([method.sigma * one for one in ranges], dtype=torch.float64).float().view(-1, 1, 1, 1)

    # One volume for all copies, as each is as large as the scan.
    room, drawn = torch.empty(scan.shape), dict[int, torch.Tensor]()

    def noise(copy: int) -> torch.Tensor:
        if copy not in drawn:  # the two of a pair are asked for in turn
            drawn.clear()
            # On the CPU: a seed then means the same noise on every device.
            generator = torch.Generator().manual_seed((method.seed << 20) + copy)
            drawn[copy] = plan.extend(room.normal_(generator=generator).mul_(sigma).to(scan), 0.0)
        return drawn[copy]

    return lambda copy, sign, place: padded[(slice(None), *place)] + sign * noise(copy)[(slice(None), *place)]


def plain_passes(scan: torch.Tensor, plan: WindowPlan, method: Method) -> list[Pass]:
    """The published estimator: `samples` independent copies, summed into their mean."""
    noisy = noisy_copies(scan, plan, method)
    return [Pass(lambda place, i=i: noisy(i, 1.0, place), 1 / method.samples) for i in range(method.samples)]  # type: ignore[misc]


def antithetic_passes(scan: torch.Tensor, plan: WindowPlan, method: Method, copies: range) -> list[Pass]:
    """Pairs x + ε_i, x − ε_i, each summed into its mean in a slot of its own, from 0 on.

    What is odd in the noise cancels within a pair, so that few pairs do the work of many copies.
    """
    noisy = noisy_copies(scan, plan, method)
    return [
        Pass(lambda place, copy=copy, sign=sign: noisy(copy, sign, place), 0.5, slot)  # type: ignore[misc]
        for slot, copy in enumerate(copies)
        for sign in (1.0, -1.0)
    ]
