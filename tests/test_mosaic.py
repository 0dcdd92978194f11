"""Windows put together piece by piece: every voxel once, with all its windows, in no more room than was said."""

from __future__ import annotations

import pytest
import torch
from tiny import conv_net, inferer_of, scan_of

from agg2exp_core.model.mosaic import Mosaic, mosaics
from agg2exp_core.model.predict import segment, stitched_logits
from agg2exp_core.model.windows import WindowPlan, plan_windows

SHAPE = (26, 19, 6)  # windows of 8³: many along two axes, the third one is padded


def plan_of(overlap: float = 0.5, batch: int = 1) -> WindowPlan:
    return plan_windows(inferer_of(overlap=overlap, sw_batch_size=batch), SHAPE, torch.zeros(1))


def added(mosaic: Mosaic) -> torch.Tensor:
    """What comes out where each window says its share of 1, for two keys."""
    out = torch.zeros(2, *SHAPE)
    for start in range(0, len(mosaic.numbers), mosaic.batch):
        numbers = mosaic.numbers[start : start + mosaic.batch]
        for key in range(2):
            for number in numbers:
                mosaic.add(number, (key, 0), (key + 1) * mosaic.plan.share(mosaic.plan.slices[number]))
        for number in numbers:
            for place, sums in mosaic.finished(number):
                for (key, _), part in sums.items():
                    out[key][place] += part
    return out


@pytest.mark.parametrize("overlap", [0.1, 0.25, 0.5, 0.8])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_shares_sum_to_one_in_the_room_that_was_said(overlap, batch):
    mosaic = Mosaic(plan_of(overlap), batch)
    one, two = added(mosaic)
    torch.testing.assert_close(one, torch.ones(SHAPE))
    torch.testing.assert_close(two, 2 * torch.ones(SHAPE))
    assert all(room.numel() == mosaic.size for room in mosaic._memory.values())
    assert batch > 2 or overlap > 0.5 or mosaic.size < 0.8 * one.numel()


def test_columns_share_the_scan_and_are_as_small_as_asked():
    plan = plan_of()
    (whole,) = mosaics(plan, torch.inf)
    for most in (whole.size - 1, 8**3, 0):
        columns = mosaics(plan, most)
        assert len(columns) > 1 and max(column.size for column in columns) <= max(most, 8**3)
        torch.testing.assert_close(sum(added(column)[0] for column in columns), torch.ones(SHAPE))


def test_logits_in_columns_are_monais():
    """No logits may wait: those of one window are then the bound."""
    network, scan, done = conv_net(classes=9), scan_of(SHAPE), []
    plan = plan_of(0.5)
    whole = inferer_of(overlap=0.5)(scan[None], network)[0]
    found, ran = torch.zeros_like(whole), []
    network.register_forward_hook(lambda *seen: ran.append(len(seen[2])))
    for place, logits in stitched_logits(network, plan, scan, done.append, held=0):
        found[(slice(None), *place)] += logits
    torch.testing.assert_close(found, whole)
    assert sum(done) == len(plan.slices) < sum(ran)  # windows at the borders of columns are run again
    prediction, classes = segment(network, plan, scan, held=0)
    assert classes == 9 and prediction.dtype == torch.uint8
    assert torch.equal(prediction.long(), whole.argmax(0))
