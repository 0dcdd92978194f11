"""Identities of the other gradient methods, and of all on a network whose importances are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_attribution import SHAPE, drawn, explain, silent
from tiny import CLASSES, conv_net, explainer_of, inferer_of, normed_net, scan_of

from agg2exp_core.attribution import quantile
from agg2exp_core.attribution.attribute import Subject, attribute
from agg2exp_core.attribution.integrated import BASELINES, baseline_of, path_nodes, path_passes
from agg2exp_core.attribution.quantile import Quantile
from agg2exp_core.model.windows import plan_windows
from agg2exp_core.records import InputError, Method


def test_gradient_x_input_is_their_product():
    network, scan = normed_net(), scan_of(SHAPE)
    slope, product = (explain(network, scan, Method(name)) for name in ("gradient", "gradient_x_input"))
    assert torch.allclose(drawn(product), drawn(slope) * scan)


# ---- quantile gradient ------------------------------------------------------------------------------


def voxel_gradients(network, scan, explained, name) -> torch.Tensor:
    """The oracle: the gradient of each voxel of the mask by itself (voxels, I, J, K), through MONAI's inference."""
    leaf, channel = scan.clone().requires_grad_(), CLASSES.index(name)
    logits = inferer_of()(leaf[None], network)[0, channel][explained.prediction == channel]
    return torch.stack([torch.autograd.grad(logit, leaf, retain_graph=True)[0][0] for logit in logits])


def test_the_quantile_is_taken_over_all_gradients_of_the_mask():
    network, scan = normed_net(), scan_of(SHAPE)
    explained = explain(network, scan, Method("quantile_gradient", samples=10_000))
    name = min(explained.targets, key=lambda name: int((explained.prediction == CLASSES.index(name)).sum()))
    each = voxel_gradients(network, scan, explained, name)
    oracle = torch.quantile(each, 0.9, dim=0)
    assert (explained.saliency[name] - oracle).abs().max() <= 1e-5 * each.abs().max()


def test_the_quantile_of_one_voxel_is_its_gradient_and_no_voxel_is_outside_the_mask():
    network, scan = normed_net(), scan_of(SHAPE)
    first = explain(network, scan, Method("quantile_gradient", samples=1, seed=3))
    again, other = (explain(network, scan, Method("quantile_gradient", samples=1, seed=seed)) for seed in (3, 4))
    assert torch.equal(drawn(first), drawn(again)) and not torch.equal(drawn(first), drawn(other))
    for name in first.targets:
        each = voxel_gradients(network, scan, first, name)
        off = (each - first.saliency[name]).abs().amax(dim=(1, 2, 3))
        assert off.min() <= 1e-5 * each.abs().max()


def test_gradients_that_do_not_reach_a_voxel_count_as_nothing():
    found = Quantile(q=0.5).of([torch.full((1, 1, 1, 1), value) for value in (4.0, -2.0)], 4)
    assert found.flatten().tolist() == [0.0]


def test_few_numbers_are_sorted_at_a_time(monkeypatch):
    """A hundred gradients of a window of 96³ were sorted at once, which took as much again five times."""
    gradients, many = [*torch.randn(5, 12, 8, 8, generator=torch.Generator().manual_seed(0))], []
    sort = torch.Tensor.sort
    monkeypatch.setattr(quantile, "SORTED", 7 * 3 * 64)
    monkeypatch.setattr(torch.Tensor, "sort", lambda one, **how: many.append(one.numel()) or sort(one, **how))
    found = Quantile().of(gradients, 7)
    assert many == [7 * 3 * 64] * 4
    assert torch.allclose(found, torch.quantile(torch.stack([*gradients, *torch.zeros(2, 12, 8, 8)]), 0.9, dim=0))


# ---- integrated gradients ---------------------------------------------------------------------------


@pytest.mark.parametrize("nodes", ["linear", "logarithmic"])
def test_nodes_are_a_rule_of_integration(nodes):
    alphas, weights = path_nodes(conv_net(), Method("integrated_gradients", samples=24, nodes=nodes)).T
    assert (alphas > 0).all() and (alphas < 1).all()
    for power in (0, 1, 3):
        assert weights @ alphas**power == pytest.approx(1 / (power + 1), abs=1e-4)


@pytest.mark.parametrize(
    ("network", "baseline", "nodes"),
    [
        (normed_net(), "air", "logarithmic"), (normed_net(), "blurred", "linear"), (conv_net(), "air", "linear"),
        (torch.nn.Sequential(torch.nn.BatchNorm3d(1)), "air", "linear"),
    ],
)  # fmt: skip
def test_nodes_suit_network_and_baseline(network, baseline, nodes):
    method = Method("integrated_gradients", samples=4, baseline=baseline)
    expected = path_nodes(network, replace(method, nodes=nodes))
    np.testing.assert_array_equal(path_nodes(network, method), expected)
    scripted = torch.jit.trace(network.eval(), torch.rand(1, 1, 16, 16, 16))
    np.testing.assert_array_equal(path_nodes(scripted, method), expected)


def test_logarithmic_nodes_close_the_gap_of_a_normalised_network():
    network, scan = normed_net(), scan_of(SHAPE)
    gaps = {}
    for nodes in ("linear", "logarithmic"):
        explained = explain(network, scan, Method("integrated_gradients", samples=24, nodes=nodes))
        gaps[nodes] = max(completeness.gap for completeness in explained.completeness.values())
    assert gaps["logarithmic"] < 0.2 * gaps["linear"]


@pytest.mark.parametrize("baseline", BASELINES)
def test_every_baseline_is_complete_on_a_smooth_network(baseline):
    explained = explain(conv_net(), scan_of(SHAPE), Method("integrated_gradients", samples=32, baseline=baseline))
    assert explained.targets
    for completeness in explained.completeness.values():
        assert completeness.gap <= 0.01 or abs(completeness.output_difference) < 1e-3


def test_baselines_are_what_they_say():
    scan = scan_of((20, 20, 20))
    made = {name: baseline_of(scan, Method("integrated_gradients", baseline=name, seed=1), -0.5) for name in BASELINES}
    assert all(one.shape == scan.shape and one.dtype == scan.dtype for one in made.values())
    assert [made[name].unique().tolist() for name in ("air", "ones")] == [[-0.5], [1.0]]
    assert made["mean"].unique().item() == pytest.approx(0.2302)
    assert made["uniform"].min() >= 0 and made["uniform"].max() <= 1
    assert made["normal"].mean().item() == pytest.approx(0.2302, abs=0.01)
    assert made["blurred"].std() < 0.3 * scan.std() and abs(made["blurred"].mean() - scan.mean()) < 0.05
    again = baseline_of(scan, Method("integrated_gradients", baseline="uniform", seed=1), None)
    other = baseline_of(scan, Method("integrated_gradients", baseline="uniform", seed=2), None)
    assert torch.equal(made["uniform"], again) and not torch.equal(made["uniform"], other)
    with pytest.raises(InputError, match="air needs a chain"):
        baseline_of(scan, Method("integrated_gradients", baseline="air"), None)


@pytest.mark.parametrize("estimator", ["antithetic", "plain"])
def test_a_scan_of_one_value_has_no_noise_to_average(estimator):
    flat = torch.full((1, *SHAPE), 0.25)
    with pytest.raises(InputError, match=r"share of the scan's range; got a scan of one value, 0\.25"):
        explain(conv_net(), flat, Method(samples=2, estimator=estimator))
    assert explain(conv_net(), flat, Method(samples=2, sigma=0.0, estimator=estimator)).targets


def test_a_baseline_of_another_shape_is_refused():
    scan = scan_of(SHAPE)
    plan, nodes = plan_windows(inferer_of(), SHAPE, scan), np.array([[0.5, 1.0]])
    with pytest.raises(InputError, match="a baseline must have the scan's shape"):
        path_passes(scan, scan[:, 1:], plan, nodes)


# ---- a network that is known ------------------------------------------------------------------------


class GlassBox(torch.nn.Module):
    """Logit of class k at every voxel: Σ_R w[k, R] · mean of x over region R of the window, plus its own grey value.

    Regions are slabs of the window, and a bias in proportion to grey values makes each slab a predicted class.
    """

    def __init__(self, slabs: torch.Tensor, importances: torch.Tensor):
        super().__init__()
        self.slabs, self.importances = slabs, importances

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        means = torch.stack([windows[:, 0, self.slabs == k].mean(dim=1) for k in range(len(self.importances))], dim=1)
        logits = means @ self.importances.T
        bias = 100.0 * torch.nn.functional.one_hot(self.slabs, len(self.importances)).permute(3, 0, 1, 2)
        return logits[:, :, None, None, None] + bias


@pytest.mark.parametrize(
    "method",
    [
        Method("gradient"), Method("gradient_x_input"), Method(samples=3), Method(samples=4, estimator="plain"),
        Method("quantile_gradient", samples=5), Method("integrated_gradients", samples=4, baseline="ones"),
    ],
    ids=lambda method: f"{method.name}-{method.estimator}",
)  # fmt: skip
def test_a_glass_box_gives_its_table_back(method):
    """A linear network: every gradient method finds the share of each region that its weights give it."""
    slabs = torch.arange(9).div(3, rounding_mode="floor")[:, None, None].expand(9, 8, 8).contiguous()
    importances = torch.tensor([[0.5, -0.2, 0.3], [0.1, 0.8, -0.1], [-0.25, 0.25, 0.5]])
    network, scan = GlassBox(slabs, importances), scan_of((9, 8, 8))
    explained = attribute(explainer_of(network, inferer_of((9, 8, 8))), Subject(scan), CLASSES, method, silent)
    amounts = torch.tensor(np.array([np.sum(tally.sums(), axis=0) for tally in explained.tallies.values()]))
    known = importances.abs()
    if method.name == "integrated_gradients":  # which counts how far each region is from the baseline
        known = known * torch.stack([(1 - scan[0][slabs == k]).mean() for k in range(3)])
    if method.name == "gradient_x_input":  # which counts grey values from 0
        known = known * torch.stack([scan[0][slabs == k].mean() for k in range(3)])
    known /= known.sum(dim=1, keepdim=True)
    assert torch.equal(explained.prediction.long(), slabs)
    assert (amounts / amounts.sum(dim=1, keepdim=True) - known).abs().max() <= 1e-5
