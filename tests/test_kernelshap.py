"""KernelSHAP and its features: exact on additive models, Captum's own on one window."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from captum.attr import KernelShap
from test_attribution import SHAPE, drawn, explain
from tiny import CLASSES, conv_net, inferer_of, normed_net, scan_of

from agg2exp_core.attribution.features import cube_map, feature_map
from agg2exp_core.attribution.kernelshap import kernelshap
from agg2exp_core.records import InputError, Method

SHAP = Method("kernelshap", samples=60, seed=2)


@pytest.mark.parametrize("shape", [(13, 8, 6), (17, 31, 5), (40, 1, 1)])
@pytest.mark.parametrize("count", [1, 7, 300])
def test_cubes_tile_any_shape(shape, count):
    if count > np.prod(shape):
        with pytest.raises(InputError, match="cubes must be from 1 to the voxels of the scan; got 300"):
            cube_map(shape, count)
        return
    cubes = cube_map(shape, count)
    numbers = np.unique(cubes)
    assert cubes.shape == shape and numbers.tolist() == list(range(len(numbers)))
    assert count / 3 <= len(numbers) <= 3 * count
    for number in numbers[:: max(1, len(numbers) // 20)]:  # each is a box without a hole
        inside = np.argwhere(cubes == number)
        assert len(inside) == np.prod(np.ptp(inside, axis=0) + 1)


def test_regions_that_are_not_there_are_no_features():
    regions = np.array([[[4, 0, 4, 2]]], np.uint8)
    assert feature_map("regions", regions).tolist() == [[[2, 0, 2, 1]]]


@pytest.mark.parametrize("features", ["regions", "cubes"])
def test_on_an_additive_model_it_is_each_features_own_part(features, monkeypatch):
    monkeypatch.setattr("agg2exp_core.attribution.features.CUBES", 12)
    monkeypatch.setattr("agg2exp_core.attribution.attribute.feature_map", lambda kind, r: feature_map(kind, r, 12))
    torch.manual_seed(2)
    network = torch.nn.Conv3d(1, 3, 3, padding=1).requires_grad_(False)
    scan = scan_of(SHAPE)
    slope = explain(network, scan, Method("gradient"))
    found = explain(network, scan, Method("kernelshap", samples=60, features=features))
    groups = feature_map(features, found.prediction.numpy(), 12)
    product = drawn(slope) * scan  # the baseline is air, 0
    for name, expected in zip(found.targets, product, strict=True):
        parts = [expected[groups == group].sum().item() for group in range(groups.max() + 1)]
        sums = [found.saliency[name][groups == group].sum().item() for group in range(groups.max() + 1)]
        np.testing.assert_allclose(sums, parts, rtol=2e-3, atol=2e-3 * np.abs(parts).max())


def test_it_is_captums_own_on_one_window():
    network, scan, inferer = normed_net(), scan_of((8, 8, 8)), inferer_of()
    explained = explain(network, scan, SHAP, inferer)
    regions = explained.prediction.long()
    features = torch.as_tensor(feature_map("regions", regions.numpy())).long()
    for name, tally in explained.tallies.items():
        channel = CLASSES.index(name)

        def value(batch: torch.Tensor, channel: int = channel) -> torch.Tensor:
            return (network(batch)[:, channel] * (regions == channel)).double().sum(dim=(1, 2, 3))

        with torch.random.fork_rng():
            torch.manual_seed(2)
            oracle = KernelShap(value).attribute(
                scan[None], baselines=0.0, feature_mask=features[None, None], n_samples=60
            )
        expected = [oracle[0, 0][regions == organ].mean().item() for organ in regions.unique().tolist()]
        found = (tally.sums()[0] - tally.sums()[1])[regions.unique().tolist()]
        np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-3 * np.abs(expected).max())


def test_a_coalition_of_a_window_is_run_once_for_all_targets_and_the_global_generator_stays():
    network, seen = conv_net(), []
    network.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    before = torch.random.get_rng_state()
    explained = explain(network, scan_of((8, 8, 8)), SHAP)
    organs = len(explained.prediction.unique())
    assert len(explained.targets) >= 2 and sum(seen) <= 1 + 2**organs
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_same_seed_gives_the_same_bits():
    first, again = (drawn(explain(normed_net(), scan_of(SHAPE), SHAP)) for _ in range(2))
    assert torch.equal(first, again)


class Additive:
    """Values that are sums of the kept features' parts, far from 0 as sums of logits are."""

    targets = (None,)

    def __init__(self, count: int):
        self.parts = np.random.default_rng(0).normal(size=count)

    def values(self, kept: np.ndarray) -> np.ndarray:
        return np.array([1e6 + self.parts[kept].sum()])


@pytest.mark.parametrize(("count", "evaluations"), [(1, 2), (2, 20), (17, 200), (512, 1000)])
def test_parts_come_back_at_any_number_of_features(count, evaluations):
    additive = Additive(count)
    np.testing.assert_allclose(kernelshap(additive, count, evaluations, 0)[0], additive.parts, atol=1e-5)


@pytest.mark.parametrize("evaluations", [-1, 1, 3])
def test_too_few_evaluations_are_refused(evaluations):
    with pytest.raises(InputError, match=f"more than its features; got {evaluations} for 3 features; allowed: 4"):
        kernelshap(Additive(3), 3, evaluations, 0)


def test_a_scan_of_background_alone_is_explained():
    network = conv_net()
    network[-1].bias[0] = 1e3
    explained = explain(network, scan_of(SHAPE), SHAP)
    assert explained.targets == ("background",)
