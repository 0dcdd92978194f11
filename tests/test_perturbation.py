"""Values of perturbed scans: the three by hand, against Captum through MONAI's inference, and what is run for them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from captum.attr import FeatureAblation, KernelShap
from tiny import CLASSES, conv_net, explainer_of, inferer_of, normed_net, scan_of

from agg2exp_core.attribution.ablation import ablation
from agg2exp_core.attribution.attribute import Subject, attribute
from agg2exp_core.attribution.features import cube_map, feature_map, painted
from agg2exp_core.attribution.gradient import Pass, StitchedModel, box_gradients
from agg2exp_core.attribution.kernelshap import kernelshap
from agg2exp_core.attribution.outcomes import OUTCOMES, Outcomes, count_features
from agg2exp_core.attribution.perturbation import Perturbed
from agg2exp_core.attribution.supervoxels import supervoxels
from agg2exp_core.attribution.target import Maps, Target, masked_targets
from agg2exp_core.model.windows import plan_windows
from agg2exp_core.records import InputError, Method

SHAPE = (13, 8, 6)  # longer than, equal to and shorter than a window of 8³


def perturbed_of(network, scan, features, value="dice", inferer=None, **others) -> Perturbed:
    """Of the masks that MONAI predicts; `others`: replacement (0.3 unless told), masks (I, J, K), held_bytes."""
    inferer = inferer or inferer_of()
    plan = plan_windows(inferer, tuple(scan.shape[1:]), scan)
    prediction = others.pop("masks", None)
    if prediction is None:
        prediction = inferer(scan[None], network)[0].argmax(0)
    targets, _ = masked_targets(Maps(prediction).padded(plan), CLASSES, CLASSES, "prediction")
    replacement = others.pop("replacement", torch.full(scan.shape[1:], 0.3))
    parts = (StitchedModel(network, plan), targets, scan, replacement.expand(scan.shape), torch.as_tensor(features))
    return Perturbed(*parts) if value == "logits" else Outcomes(*parts, value=value, **others)


def value_of(logits: torch.Tensor, mask: torch.Tensor, channel: int, value: str, clean: torch.Tensor) -> torch.Tensor:
    """The oracle, in its plainest form: of whole stitched logits (classes, I, J, K) and the clean scan's."""
    if value == "logits":
        return logits[channel][mask].double().sum()
    if value == "dice":
        chance = logits.softmax(0)[channel].double()
        return 2 * (chance * mask).sum() / (chance.sum() + mask.sum())
    drawn, before = logits.argmax(0) == channel, clean.argmax(0) == channel
    return ((drawn & mask).sum() - (drawn & ~mask & ~before).sum()).double()


def oracle_of(network, inferer, scan, channel: int, value: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """Runs every window again for each scan (1, 1, I, J, K)."""
    clean = inferer(scan[None], network)[0]
    mask = clean.argmax(0) == channel
    return lambda batch: value_of(inferer(batch, network)[0], mask, channel, value, clean).reshape(1)


def regions_of(network, inferer, scan) -> np.ndarray:
    return feature_map("regions", inferer(scan[None], network)[0].argmax(0).numpy())


def per_feature(voxels: torch.Tensor, features: np.ndarray) -> list[float]:
    """What Captum says of each feature, which it repeats at its voxels."""
    return [float(voxels[0, 0][torch.as_tensor(features) == one].mean()) for one in range(features.max() + 1)]


# ---- by hand ---------------------------------------------------------------------------------------


def logit_net(weights: list[float]) -> torch.nn.Module:
    """Logits of each voxel are its grey value times the classes' weights."""
    network = torch.nn.Conv3d(1, len(weights), 1, bias=False).requires_grad_(False)
    network.weight.copy_(torch.tensor(weights).view(-1, 1, 1, 1, 1))
    return network


@pytest.mark.parametrize("value", ["logits", "dice", "counts"])
def test_three_voxels_by_hand(value):
    """Grey values 1, 2, −1, mask of class 1 on the first two; each voxel in turn becomes −3, then 3.

    Logits are (0, x), so that p_1 = 1 / (1 + e^−x), and class 1 is predicted where x > 0.
    """
    scan, features = torch.tensor([1.0, 2.0, -1.0]).view(1, 3, 1, 1), np.arange(3).reshape(3, 1, 1)
    masks = torch.tensor([1, 1, 9]).view(3, 1, 1)
    found = {}
    for grey in (-3.0, 3.0):
        others = {"masks": masks, "replacement": torch.full((3, 1, 1), grey), "inferer": inferer_of((3, 1, 1))}
        found[grey] = ablation(perturbed_of(logit_net([0, 1]), scan, features, value, **others), 3)[0]

    def dice(x: list[float]) -> float:
        p = 1 / (1 + np.exp(-np.array(x)))
        return 2 * (p[0] + p[1]) / (p.sum() + 2)

    clean = dice([1, 2, -1])
    expected = {
        "logits": {-3.0: [4, 5, 0], 3.0: [-2, -1, 0]},
        "dice": {g: [clean - dice([g, 2, -1]), clean - dice([1, g, -1]), clean - dice([1, 2, g])] for g in (-3.0, 3.0)},
        "counts": {-3.0: [1, 1, 0], 3.0: [0, 0, 1]},  # the third, outside, is newly drawn: one less
    }[value]
    for grey, effects in found.items():
        np.testing.assert_allclose(effects, expected[grey], atol=1e-6)


def test_what_was_false_before_is_not_newly_so():
    """Voxel 2 is predicted in the clean scan too and lies outside the mask."""
    scan, masks = torch.tensor([1.0, -2.0, 1.0]).view(1, 3, 1, 1), torch.tensor([1, 9, 9]).view(3, 1, 1)
    others = {"masks": masks, "replacement": torch.full((3, 1, 1), 5.0), "inferer": inferer_of((3, 1, 1))}
    outcomes = perturbed_of(logit_net([0, 1]), scan, np.arange(3).reshape(3, 1, 1), "counts", **others)
    kept = [np.array(one, bool) for one in ([1, 1, 1], [1, 1, 0], [1, 0, 1])]
    assert outcomes.many(kept)[:, 0].tolist() == [1, 1, 0]


# ---- against Captum through MONAI's inference ------------------------------------------------------


@pytest.mark.parametrize("value", ["logits", "dice", "counts"])
@pytest.mark.parametrize("settings", [{}, {"overlap": 0.5, "cval": -1.0}, {"overlap": 0.5, "mode": "constant"}])
def test_ablation_is_captums_with_every_window_run_again(value, settings):
    network, scan, inferer = normed_net(), scan_of(SHAPE), inferer_of(**settings)
    features = regions_of(network, inferer, scan)
    perturbed = perturbed_of(network, scan, features, value, inferer)
    found = ablation(perturbed, features.max() + 1)
    assert len(perturbed.targets) >= 2 and np.abs(found).max() > 0
    for target, effects in zip(perturbed.targets, found, strict=True):
        oracle = oracle_of(network, inferer, scan, target.channel, value)
        captum = FeatureAblation(oracle).attribute(
            scan[None], baselines=0.3, feature_mask=torch.as_tensor(features).long()[None, None]
        )
        np.testing.assert_allclose(effects, per_feature(captum, features), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("value", ["dice", "counts"])
def test_kernelshap_is_captums_own_on_one_window(value):
    network, scan, inferer = normed_net(), scan_of((8, 8, 8)), inferer_of()
    features = cube_map((8, 8, 8), 8)
    perturbed = perturbed_of(network, scan, features, value, inferer)
    found = kernelshap(perturbed, 8, 40, seed=3)
    for target, effects in zip(perturbed.targets, found, strict=True):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            shap = KernelShap(oracle_of(network, inferer, scan, target.channel, value))
            mask = torch.as_tensor(features).long()[None, None]
            captum = shap.attribute(scan[None], baselines=0.3, feature_mask=mask, n_samples=40)
        expected = per_feature(captum, features)
        np.testing.assert_allclose(effects, expected, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize("value", OUTCOMES)
def test_coalitions_of_cubes_are_values_of_whole_scans(value):
    network, scan, inferer = normed_net(), scan_of(SHAPE), inferer_of(overlap=0.5, cval=0.7)
    features = cube_map(SHAPE, 20)
    perturbed = perturbed_of(network, scan, features, value, inferer)
    choices = list(np.random.default_rng(0).random((6, features.max() + 1)) < 0.5)
    found = perturbed.many(choices)
    for kept, values in zip(choices, found, strict=True):
        changed = torch.where(torch.as_tensor(kept[features]), scan, torch.tensor(0.3))
        for target, got in zip(perturbed.targets, values, strict=True):
            oracle = oracle_of(network, inferer, scan, target.channel, value)
            assert got == pytest.approx(float(oracle(changed[None])), rel=1e-5, abs=1e-6)


# ---- linear networks -------------------------------------------------------------------------------


def linear_parts(replacement: torch.Tensor, features: np.ndarray):
    """A linear network under overlapping windows and padding, and Σ w·(x − x₀) of each (target, feature)."""
    torch.manual_seed(2)
    network, scan = torch.nn.Conv3d(1, 3, 3, padding=1).double().requires_grad_(False), scan_of(SHAPE).double()
    inferer = inferer_of(overlap=0.5, cval=-1.0)
    perturbed = perturbed_of(network, scan, features, "logits", inferer, replacement=replacement)
    padded, products = perturbed.model.plan.pad(scan, -1.0), torch.zeros(len(perturbed.targets), *SHAPE).double()
    for place, stacked in box_gradients(
        perturbed.model, [Pass(lambda at: padded[(slice(None), *at)])], perturbed.targets
    ):
        for index, slots in stacked.items():
            products[index][place] = slots[0][0] * (scan[0] - replacement)[place]
    sums = [[float(one[torch.as_tensor(features) == f].sum()) for f in range(features.max() + 1)] for one in products]
    return perturbed, np.array(sums)


@pytest.mark.parametrize("neutral", ["one value", "a map"])
def test_ablation_of_a_linear_network_is_its_weights_times_the_change(neutral):
    replacement = torch.full(SHAPE, 0.4).double() if neutral == "one value" else scan_of(SHAPE, 9)[0].double()
    perturbed, expected = linear_parts(replacement, cube_map(SHAPE, 12))
    np.testing.assert_allclose(ablation(perturbed, expected.shape[1]), expected, rtol=1e-9, atol=1e-9)


def test_kernelshap_of_a_linear_network_is_each_cubes_part():
    perturbed, expected = linear_parts(torch.full(SHAPE, 0.4).double(), cube_map(SHAPE, 12))
    found = kernelshap(perturbed, expected.shape[1], 80, seed=0)
    np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())


# ---- what is run -----------------------------------------------------------------------------------


def counted(network: torch.nn.Module) -> list[int]:
    """Windows of each forward pass from now on."""
    seen: list[int] = []
    network.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    return seen


def corner_features(shape: tuple[int, int, int]) -> np.ndarray:
    """Feature 1 is one voxel in the first corner, 0 is all else but the last slab, which is 2."""
    features = np.zeros(shape, np.int32)
    features[0, 0, 0], features[-1] = 1, 2
    return features


@pytest.mark.parametrize("value", OUTCOMES)
def test_only_windows_that_a_feature_touches_are_run_again(value):
    network, scan = conv_net(), scan_of((26, 8, 8))
    outcomes = perturbed_of(network, scan, corner_features((26, 8, 8)), value)
    seen, windows = counted(network), len(outcomes.model.plan.slices)
    assert windows == 4
    outcomes.values(np.ones(3, bool))
    assert sum(seen) == windows
    outcomes.values(np.array([True, False, True]))
    assert sum(seen) == windows + 1
    outcomes.values(np.array([True, True, False]))
    assert sum(seen) == windows + 2
    outcomes.values(np.array([True, False, False]))  # both known, far from each other
    assert sum(seen) == windows + 2
    outcomes.values(np.array([False, True, True]))
    assert sum(seen) == 2 * windows + 2


@pytest.mark.parametrize("value", OUTCOMES)
def test_what_is_not_run_again_keeps_its_part_of_the_value(value):
    """Next to a window that is run again lies one that is not, whose other neighbour is not even looked at."""
    network, scan, inferer = normed_net(), scan_of((26, 8, 8)), inferer_of()
    features, choices = corner_features((26, 8, 8)), [np.ones(3, bool), *~np.eye(3, dtype=bool)]
    outcomes = perturbed_of(network, scan, features, value, inferer)
    for kept in [*choices, *choices]:
        changed = torch.where(torch.as_tensor(kept[features]), scan, torch.tensor(0.3))
        for target, got in zip(outcomes.targets, outcomes.values(kept), strict=True):
            oracle = oracle_of(network, inferer, scan, target.channel, value)
            assert got == pytest.approx(float(oracle(changed[None])), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("value", OUTCOMES)
def test_nothing_held_gives_the_same_numbers_and_costs_the_neighbours(value):
    features, choices = corner_features((26, 8, 8)), ~np.eye(3, dtype=bool)
    found, runs = [], []
    for held in (2**30, 14_000, 0):  # all windows, two of them, none
        network = normed_net()
        outcomes = perturbed_of(network, scan_of((26, 8, 8)), features, value, held_bytes=held)
        seen = counted(network)
        found.append(outcomes.many([*choices]))
        runs.append(sum(seen))
        assert sum(part.nbytes for part in outcomes._held.values()) <= held
    np.testing.assert_allclose(found[1:], [found[0]] * 2, rtol=1e-6)
    assert runs[0] < runs[1] < runs[2]


def test_targets_share_what_is_run():
    runs = []
    for names in (CLASSES, ("heart",)):
        network, scan = conv_net(), scan_of(SHAPE)
        outcomes = perturbed_of(network, scan, cube_map(SHAPE, 8))
        outcomes.targets = [target for target in outcomes.targets if target.name in names]
        outcomes._sizes = outcomes._sizes[-len(outcomes.targets) :]
        seen = counted(network)
        kernelshap(outcomes, int(outcomes.features.max()) + 1, 15, seed=0)
        runs.append(sum(seen))
    assert runs[0] == runs[1]


@pytest.mark.parametrize("value", ["logits", *OUTCOMES])
def test_the_network_and_the_generator_are_left_as_they_were(value):
    network, scan = normed_net().train().requires_grad_(True), scan_of(SHAPE)
    with torch.no_grad():
        perturbed = perturbed_of(network, scan, cube_map(SHAPE, 8), value)
    before, state = {n: t.clone() for n, t in network.state_dict().items()}, torch.random.get_rng_state()
    count = int(perturbed.features.max()) + 1
    ablation(perturbed, count)
    kernelshap(perturbed, count, 10, seed=1)
    assert torch.equal(state, torch.random.get_rng_state()) and torch.is_grad_enabled()
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert all(module.training for module in network.modules())
    assert all(p.requires_grad and p.grad is None for p in network.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_no_choices_are_no_values():
    outcomes = perturbed_of(conv_net(), scan_of(SHAPE), cube_map(SHAPE, 8))
    assert outcomes.many([]).shape == (0, len(outcomes.targets))


# ---- features --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(11, 13, 17), (37, 5, 9), (1, 50, 23)])
def test_many_cubes_are_numbered_beyond_a_byte(shape):
    cubes = cube_map(shape, 1000)
    assert cubes.max() > 256 and np.array_equal(np.unique(cubes), np.arange(cubes.max() + 1))
    assert np.bincount(cubes.ravel()).sum() == np.prod(shape) and count_features(torch.as_tensor(cubes)) > 256


def test_more_than_256_features_keep_their_own_effects():
    """On a network that looks at single voxels, each cube's effect on counts is that of its own voxels."""
    scan, cubes = scan_of((12, 9, 7)) - 0.5, cube_map((12, 9, 7), 300)
    outcomes = perturbed_of(logit_net([0.0, 1.0, -9.0]), scan, cubes, "counts", replacement=torch.full((12, 9, 7), -1))
    aorta = [target.channel for target in outcomes.targets].index(1)
    lost = np.bincount(cubes.ravel(), (scan[0] > 0).numpy().ravel())
    assert len(lost) > 256 and np.array_equal(ablation(outcomes, len(lost))[aorta], lost)


@pytest.mark.parametrize("shape", [(13, 8, 6), (17, 31, 5), (1, 1, 40)])
@pytest.mark.parametrize("count", [1, 7, 40])
def test_supervoxels_hold_every_voxel_once(shape, count):
    scan = scan_of(shape).numpy()
    found = supervoxels(scan, count)
    assert found.shape == shape and np.array_equal(np.unique(found), np.arange(found.max() + 1))
    assert count / 3 <= found.max() + 1 <= 3 * count
    assert np.array_equal(found, supervoxels(scan, count))
    flat = supervoxels(np.zeros((1, *shape), np.float32), count)
    assert count / 3 <= flat.max() + 1 <= 3 * count


def test_supervoxels_keep_to_the_edges_of_grey_values():
    """A bright slab whose edge no cube has: with contrast none reaches over it."""
    scan = np.zeros((16, 12, 12), np.float32)
    scan[7:] = 1
    for contrast, mixed in ((10.0, False), (0.0, True)):
        found = supervoxels(scan[None], 18, contrast)
        over = [0 < scan[found == one].mean() < 1 for one in range(found.max() + 1)]
        assert any(over) == mixed


def test_maps_over_any_features_sum_to_the_effects():
    features = supervoxels(scan_of(SHAPE).numpy(), 12)
    effects = np.random.default_rng(0).normal(size=features.max() + 1)
    drawn = painted(effects, features)
    assert drawn.shape == SHAPE
    np.testing.assert_allclose(np.bincount(features.ravel(), drawn.ravel()), effects, rtol=1e-5, atol=1e-6)


# ---- bad input -------------------------------------------------------------------------------------


def test_an_unknown_value_is_refused():
    with pytest.raises(InputError, match="value must be a known one; got 'iou'; allowed: dice, counts"):
        perturbed_of(conv_net(), scan_of(SHAPE), cube_map(SHAPE, 8), "iou")


@pytest.mark.parametrize(
    ("features", "got"),
    [([], "none"), ([1, 2], "2 from 1 to 2"), ([0, 2], "2 from 0 to 2"), ([-1, 0], "1 from 0 to 0")],
)
def test_features_with_a_gap_or_none_are_refused(features, got):
    with pytest.raises(InputError, match=f"features must be numbered from 0 without a gap; got {got}"):
        count_features(torch.tensor(features, dtype=torch.int32))


@pytest.mark.parametrize("count", [0, -3, 13 * 8 * 6 + 1])
def test_more_features_than_voxels_or_none_are_refused(count):
    with pytest.raises(InputError, match=f"supervoxels must be from 1 .* got {count}; allowed: 1 to 624"):
        supervoxels(scan_of(SHAPE).numpy(), count)
    with pytest.raises(InputError, match=f"cubes must be from 1 .* got {count}; allowed: 1 to 624"):
        cube_map(SHAPE, count)


@pytest.mark.parametrize("contrast", [-1.0, float("nan"), float("inf")])
def test_a_contrast_out_of_range_is_refused(contrast):
    with pytest.raises(InputError, match="contrast must be 0 or more"):
        supervoxels(scan_of(SHAPE).numpy(), 8, contrast)


def test_logits_that_break_down_without_a_feature_are_refused():
    """The clean scan's are finite; the window is named."""

    class Broken(torch.nn.Conv3d):
        def forward(self, x):
            return super().forward(x).masked_fill((x > 5).any(), float("nan"))

    network, scan = Broken(1, 3, 1).requires_grad_(False), scan_of((26, 8, 8))
    features = corner_features((26, 8, 8))
    outcomes = perturbed_of(network, scan, features, replacement=torch.full((26, 8, 8), 9.0))
    with pytest.raises(InputError, match="finite logits; got NaN or infinity in voxels 18:26, 0:8, 0:8"):
        outcomes.values(np.array([True, True, False]))


def test_masks_are_asked_for_box_by_box_in_the_padded_scan():
    """Once as a whole, for their size, and then no voxel of the scan twice."""
    asked = []
    network, scan, plan = conv_net(), scan_of(SHAPE), plan_windows(inferer_of(), SHAPE, scan_of(SHAPE))
    mask = torch.zeros(plan.padded, dtype=torch.bool)
    mask[2:5, 2:5, 2:5] = True

    def part(place: tuple[slice, ...]) -> torch.Tensor:
        asked.append(mask[place].numel())
        return mask[place]

    features = torch.as_tensor(cube_map(SHAPE, 4))
    outcomes = Outcomes(StitchedModel(network, plan), [Target("box", 1, part)], scan, scan, features)
    (dice,) = outcomes.values(np.ones(int(features.max()) + 1, bool))
    logits = inferer_of()(scan[None], network)[0]
    whole = value_of(logits, plan.crop(mask), 1, "dice", logits)
    assert dice == pytest.approx(float(whole), rel=1e-5)
    assert sum(asked) == mask.numel() + np.prod(SHAPE)


# ---- by name ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    [
        Method("ablation", value="dice"), Method("ablation", value="counts"),
        Method("kernelshap", samples=8, value="dice"), Method("kernelshap", samples=300, features="supervoxels"),
    ],
    ids=lambda method: f"{method.name}-{method.value}-{method.features}",
)  # fmt: skip
def test_methods_by_name_move_forward_and_fill_the_same_table(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agg2exp_core.attribution.attribute.CUBES", 6)
    scan, seen = scan_of((10, 8, 8)), []
    explained = attribute(
        explainer_of(normed_net()), Subject(scan), CLASSES, method, lambda *words: seen.append(words[:2])
    )
    assert seen[-1][0] == seen[-1][1] and [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert explained.targets and set(explained.saliency) == set(explained.targets)
    for name, tally in explained.tallies.items():
        positive, negative = tally.sums()
        assert positive.shape == (len(CLASSES),) and (positive + negative).sum() > 0
        spread = explained.saliency[name].double()
        assert float((positive - negative).sum()) == pytest.approx(float(spread.sum()), rel=1e-4, abs=1e-6)
