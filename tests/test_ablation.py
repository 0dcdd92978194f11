"""Ablation of predicted organs: against Captum, against a linear network's weights, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from captum.attr import FeatureAblation
from test_attribution import SHAPE, drawn, explain, silent
from tiny import CLASSES, conv_net, explainer_of, inferer_of, normed_net, scan_of

from agg2exp_core.attribution.attribute import Explainer, Subject, attribute
from agg2exp_core.attribution.features import painted
from agg2exp_core.records import Method

ABLATION = Method("ablation")


def effects_of(explained) -> np.ndarray:
    return np.stack([tally.sums()[0] - tally.sums()[1] for tally in explained.tallies.values()])


@pytest.mark.parametrize("overlap", [0.25, 0.5])
def test_it_is_captums_through_monais_inference(overlap):
    """The oracle runs every window again for each organ."""
    network, scan, inferer = normed_net(), scan_of(SHAPE), inferer_of(overlap=overlap)
    explained = explain(network, scan, ABLATION, inferer)
    regions = explained.prediction.long()
    for name, found in zip(explained.targets, effects_of(explained), strict=True):
        channel = CLASSES.index(name)

        def value(batch: torch.Tensor, channel: int = channel) -> torch.Tensor:
            return (inferer(batch, network)[:, channel] * (regions == channel)).sum(dim=(1, 2, 3))

        neutral = float(scan.mean())
        oracle = FeatureAblation(value).attribute(scan[None], baselines=neutral, feature_mask=regions[None, None])
        expected = [
            oracle[0, 0][regions == organ].mean().item() if (regions == organ).any() else 0 for organ in range(3)
        ]
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_on_a_linear_network_it_is_the_weights_times_the_change():
    torch.manual_seed(2)
    network = torch.nn.Conv3d(1, 3, 3, padding=1).requires_grad_(False)
    scan = scan_of(SHAPE)
    slope, explained = explain(network, scan, Method("gradient")), explain(network, scan, ABLATION)
    products = drawn(slope) * (scan - scan.mean())
    for found, product in zip(effects_of(explained), products, strict=True):
        expected = [product[explained.prediction == organ].sum().item() for organ in range(3)]
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_tissue_that_the_chain_knows_is_what_organs_become():
    network, scan = conv_net(), scan_of(SHAPE)
    known = explainer_of(network)
    known = Explainer(known.network, known.inferer, known.classes, known.device, tissue=0.9)
    told = effects_of(attribute(known, Subject(scan), CLASSES, ABLATION, silent))
    assert not np.allclose(told, effects_of(explain(network, scan, ABLATION)))


def test_maps_sum_to_the_effects():
    regions = np.array([[[0, 0, 2]]], np.uint8)
    assert painted(np.array([1.0, 5.0, -3.0]), regions).flatten().tolist() == [0.5, 0.5, -3.0]
    explained = explain(normed_net(), scan_of(SHAPE), ABLATION)
    for name, found in zip(explained.targets, effects_of(explained), strict=True):
        sums = [explained.saliency[name][explained.prediction == organ].double().sum().item() for organ in range(3)]
        np.testing.assert_allclose(found, sums, rtol=1e-5, atol=1e-5)


def test_only_organs_of_a_window_are_run_there():
    """One run of the clean window and one for each organ in it."""
    network, scan, seen = normed_net(), scan_of((8, 8, 8)), []
    network.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    explained = explain(network, scan, ABLATION)
    organs = len(explained.prediction.unique())
    assert sum(seen) == 1 + 1 + organs  # the segmentation, the clean window, the organs
