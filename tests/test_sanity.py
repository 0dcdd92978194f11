"""Does an explanation depend on what the network learned? (Adebayo et al. 2018, on the demo's own network.)"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from scipy.ndimage import gaussian_gradient_magnitude
from scipy.stats import spearmanr

from agg2exp_core.attribution.gradient import Pass, StitchedModel, box_gradients
from agg2exp_core.attribution.target import Maps, Target, masked_targets
from agg2exp_core.model.bundle import find_bundle
from agg2exp_core.model.predict import segment
from agg2exp_core.model.preprocess import load_scan
from agg2exp_core.model.windows import WindowPlan, plan_windows
from agg2exp_core.phantom import training_plan, write_cohort
from agg2exp_core.settings import SHIPPED

ORGANS = ("heart", "aorta", "vertebraes")


def maps_of(network: torch.nn.Module, plan: WindowPlan, scan: torch.Tensor, targets: list[Target]) -> torch.Tensor:
    found = torch.zeros((len(targets), *plan.shape))
    padded = plan.extend(scan)
    for place, stacked in box_gradients(
        StitchedModel(network, plan), [Pass(lambda at: padded[(slice(None), *at)])], targets
    ):
        for index, slots in stacked.items():
            found[index][place] = slots[0][0]
    return found.abs()


def test_other_weights_another_explanation(tmp_path):
    """The same masks under random weights: |gradient| must not resemble what it was."""
    write_cohort(tmp_path, training_plan(1, 10_000))
    bundle = find_bundle(SHIPPED, "thorax17_segresnet")
    scan = load_scan(bundle, next((tmp_path / "images").iterdir())).voxels
    network, plan = bundle.network(torch.device("cpu")), plan_windows(bundle.inferer(), tuple(scan.shape[1:]), scan)
    prediction, _ = segment(network, plan, scan)
    targets, _ = masked_targets(Maps(prediction).padded(plan), bundle.classes, ORGANS, "prediction")
    torch.manual_seed(0)
    unlearned = copy.deepcopy(network)
    for layer in unlearned.modules():
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    assert [target.name for target in targets] == list(ORGANS)

    def resemblance(explain: Callable[[torch.nn.Module], torch.Tensor]) -> float:
        """Largest |rank correlation| of a target's map with what it was: turned round would be resemblance too."""
        pairs = zip(explain(network), explain(unlearned), strict=True)
        return max(abs(float(spearmanr(one.flatten(), other.flatten()).statistic)) for one, other in pairs)

    assert resemblance(lambda one: maps_of(one, plan, scan, targets)) < 0.3
    # An explanation that asks no network does not pass.
    edges = torch.as_tensor(gaussian_gradient_magnitude(scan[0].numpy(), 1.0))
    assert resemblance(lambda one: edges.expand(len(targets), *edges.shape)) > 0.3
