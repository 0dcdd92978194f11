"""Identities of the attribution methods, against autograd through MONAI's inference, Captum and by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from captum.attr import IntegratedGradients
from monai.networks.nets import SwinUNETR
from tiny import CLASSES, conv_net, explainer_of, inferer_of, normed_net, scan_of

from agg2exp_core.attribution.attribute import METHODS, Explanation, Subject, _pairs, attribute, check_method
from agg2exp_core.attribution.gradient import Pass, StitchedModel, box_gradients
from agg2exp_core.attribution.target import MASKS, Target
from agg2exp_core.model.predict import predicted_organs
from agg2exp_core.model.windows import plan_windows
from agg2exp_core.records import InputError, Method

SHAPE = (13, 8, 6)  # longer than, equal to and shorter than a window of 8³


def silent(done: int, total: int, note: str) -> None: ...


def explain(network, scan, method, inferer=None, label=None) -> Explanation:
    return attribute(explainer_of(network, inferer), Subject(scan, label), CLASSES, method, silent)


def drawn(explained: Explanation) -> torch.Tensor:
    """The maps of all targets, (targets, I, J, K)."""
    return torch.stack(list(explained.saliency.values()))


def autograd_through_monai(network, inferer, scan, explained: Explanation, masks=None) -> torch.Tensor:
    """The oracle: ∂S_k/∂x by autograd through MONAI's own sliding_window_inference. masks: class → M_k."""
    leaf = scan.clone().requires_grad_()
    logits = inferer(leaf[None], network)[0]
    grads = []
    for name in explained.targets:
        channel = CLASSES.index(name)
        value = logits[channel][explained.prediction == channel if masks is None else masks[channel]].sum()
        grads.append(torch.autograd.grad(value, leaf, retain_graph=True)[0][0])
    return torch.stack(grads)


@pytest.mark.parametrize("overlap", [0.25, 0.5])
@pytest.mark.parametrize("mode", ["constant", "gaussian"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.float64, 1e-8)])
def test_gradient_is_autograd_through_the_stitched_inference(overlap, mode, dtype, bound):
    network, scan, inferer = (
        normed_net().to(dtype),
        scan_of(SHAPE).to(dtype),
        inferer_of(overlap=overlap, mode=mode),
    )
    explained = explain(network, scan, Method("gradient"), inferer)
    oracle = autograd_through_monai(network, inferer, scan, explained)
    assert len(explained.targets) >= 2
    assert (drawn(explained) - oracle).abs().max() <= bound * oracle.abs().max()


def test_gradient_through_a_swin_unetr():
    torch.manual_seed(0)
    network = SwinUNETR(in_channels=1, out_channels=3, feature_size=12, window_size=4, depths=(1, 1, 1, 1))
    network.eval().requires_grad_(False)
    scan, inferer = scan_of((70, 32, 30)), inferer_of((64, 32, 32), overlap=0.5)
    explained = explain(network, scan, Method("gradient"), inferer)
    oracle = autograd_through_monai(network, inferer, scan, explained)
    assert (drawn(explained) - oracle).abs().max() <= 1e-4 * oracle.abs().max()


def test_a_padded_scan_is_explained_as_monai_pads_it():
    """Masks are padded with nothing, whatever scans are padded with."""
    network, scan, inferer = normed_net(), scan_of(SHAPE), inferer_of(cval=-1.0)
    explained = explain(network, scan, Method("gradient"), inferer)
    oracle = autograd_through_monai(network, inferer, scan, explained)
    assert (drawn(explained) - oracle).abs().max() <= 1e-4 * oracle.abs().max()


@pytest.mark.parametrize("mode", ["replicate", "reflect", "circular"])
def test_padding_that_repeats_voxels_gives_them_its_gradient(mode):
    network, scan, inferer = normed_net(), scan_of(SHAPE), inferer_of(padding_mode=mode)
    explained = explain(network, scan, Method("gradient"), inferer)
    oracle = autograd_through_monai(network, inferer, scan, explained)
    assert (drawn(explained) - oracle).abs().max() <= 1e-4 * oracle.abs().max()
    path = explain(conv_net(), scan, Method("integrated_gradients", 20), inferer)
    assert path.targets and all(found.gap <= 0.01 for found in path.completeness.values())


def test_a_scan_too_small_to_be_mirrored_is_refused():
    with pytest.raises(InputError, match="large enough to be padded in the mode reflect"):
        explain(normed_net(), scan_of((13, 8, 2)), Method("gradient"), inferer_of(padding_mode="reflect"))


def test_broken_gradients_are_refused():
    class Broken(torch.nn.Conv3d):
        def forward(self, x):
            return super().forward(x) + (x - x).abs().sqrt()  # whose gradient at 0 is not finite

    network = Broken(1, 3, 1).requires_grad_(False)
    with pytest.raises(InputError, match="must be finite"):
        explain(network, scan_of(SHAPE), Method("gradient"))


def test_gradients_too_large_to_be_summed_are_refused():
    network = torch.nn.Conv3d(1, 3, 1, bias=False).requires_grad_(False)
    network.weight.copy_(torch.tensor([0, 1e38, 0]).view(3, 1, 1, 1, 1))
    with pytest.raises(InputError, match="sums must be finite"):
        explain(network, scan_of(SHAPE).clamp(-1, 1), Method("gradient"))


def test_prediction_is_monais():
    network, scan, inferer = conv_net(), scan_of(SHAPE), inferer_of()
    explained = explain(network, scan, Method("gradient"), inferer)
    assert torch.equal(explained.prediction.long(), inferer(scan[None], network)[0].argmax(0))


# ---- other masks -----------------------------------------------------------------------------------


def label_of(prediction: torch.Tensor) -> torch.Tensor:
    """A label map that agrees with the prediction in most voxels."""
    drawn = torch.randint(0, len(CLASSES), SHAPE, generator=torch.Generator().manual_seed(4), dtype=torch.int32)
    return torch.where(torch.rand(SHAPE, generator=torch.Generator().manual_seed(5)) < 0.3, drawn, prediction.int())


@pytest.fixture(scope="module")
def masked() -> dict[str, Explanation]:
    """The gradient under every mask, with one network, scan and label map."""
    network, scan = normed_net(), scan_of(SHAPE)
    label = label_of(explain(network, scan, Method("gradient")).prediction)
    return {mask: explain(network, scan, Method("gradient", mask=mask), label=label) for mask in MASKS}


def test_every_mask_is_autograd_of_its_own_sum(masked):
    network, scan, inferer = normed_net(), scan_of(SHAPE), inferer_of()
    prediction = masked["prediction"].prediction
    label = label_of(prediction)
    for name, explained in masked.items():
        rule = {
            "prediction": lambda k: prediction == k,
            "label": lambda k: label == k,
            "tp": lambda k: (prediction == k) & (label == k),
            "fp": lambda k: (prediction == k) & (label != k),
            "fn": lambda k: (prediction != k) & (label == k),
        }[name]
        masks = [rule(channel) for channel in range(len(CLASSES))]
        assert [CLASSES[channel] for channel in range(len(CLASSES)) if masks[channel].any()] == list(explained.targets)
        oracle = autograd_through_monai(network, inferer, scan, explained, masks)
        assert (drawn(explained) - oracle).abs().max() <= 1e-4 * oracle.abs().max()


@pytest.mark.parametrize(("whole", "parts"), [("prediction", ("tp", "fp")), ("label", ("tp", "fn"))])
def test_parts_of_a_mask_sum_to_its_gradient(masked, whole, parts):
    """S is a sum over voxels, so the gradients of disjoint masks add up."""
    assert masked[whole].targets == masked[parts[0]].targets == masked[parts[1]].targets and masked[whole].targets
    summed = drawn(masked[parts[0]]) + drawn(masked[parts[1]])
    assert (summed - drawn(masked[whole])).abs().max() <= 1e-6 * drawn(masked[whole]).abs().max()


def test_the_usual_mask_looks_at_no_label(masked):
    alone = explain(normed_net(), scan_of(SHAPE), Method("gradient"))
    assert torch.equal(drawn(alone), drawn(masked["prediction"]))
    assert all(torch.equal(alone.prediction, other.prediction) for other in masked.values())


@pytest.mark.parametrize(
    ("mask", "reason"), [("fp", "no false positives"), ("fn", "no false negatives"), ("tp", None), ("label", None)]
)
def test_an_empty_mask_is_absent_in_its_own_words(mask, reason):
    network, scan = normed_net(), scan_of(SHAPE)
    perfect = explain(network, scan, Method("gradient")).prediction
    explained = explain(network, scan, Method("gradient", mask=mask), label=perfect)
    assert explained.absent == (dict.fromkeys(CLASSES, reason) if reason else {})
    nothing = explain(network, scan, Method("gradient", mask=mask), label=torch.full(SHAPE, 9))
    words = {"fp": None, "fn": "no false negatives", "tp": "no correct voxels", "label": "not in the label"}[mask]
    assert nothing.absent == (dict.fromkeys(CLASSES, words) if words else {})


def test_a_drawn_mask_is_every_targets_own():
    network, scan, inferer = normed_net(), scan_of(SHAPE), inferer_of()
    mask = torch.rand(SHAPE, generator=torch.Generator().manual_seed(6)) < 0.2
    method = Method("gradient", mask="file-lesion")
    explained = attribute(explainer_of(network), Subject(scan, drawn=mask), CLASSES, method, silent)
    assert explained.targets == CLASSES
    oracle = autograd_through_monai(network, inferer, scan, explained, [mask] * len(CLASSES))
    assert (drawn(explained) - oracle).abs().max() <= 1e-4 * oracle.abs().max()
    nothing = attribute(explainer_of(network), Subject(scan, drawn=mask & False), CLASSES, method, silent)
    assert nothing.absent == dict.fromkeys(CLASSES, "no voxels in the mask file")


@pytest.mark.parametrize("mask", ["file-lesion", "file-", "lesion"])
def test_a_drawn_mask_needs_its_file_and_a_name(mask):
    with pytest.raises(InputError, match="needs its file" if mask == "file-lesion" else "mask must be a known one"):
        explain(normed_net(), scan_of(SHAPE), Method("gradient", mask=mask))


def test_a_mask_of_the_label_needs_one():
    with pytest.raises(InputError, match="mask fn needs a label map; got a case without one; allowed: prediction"):
        explain(normed_net(), scan_of(SHAPE), Method("gradient", mask="fn"))


def test_smoothgrad_without_noise_is_the_gradient():
    network, scan = normed_net(), scan_of(SHAPE)
    plain = drawn(explain(network, scan, Method("gradient")))
    smooth = drawn(explain(network, scan, Method("smoothgrad", samples=1, sigma=0.0, estimator="plain")))
    assert torch.equal(plain, smooth)


def test_smoothgrad_is_the_mean_over_noisy_copies():
    network, scan, inferer = normed_net(), scan_of(SHAPE), inferer_of()
    method = Method("smoothgrad", samples=3, seed=5, estimator="plain")
    explained = explain(network, scan, method, inferer)
    sigma = 0.1 * (scan.max() - scan.min())
    copies = []
    for sample in range(3):
        noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed((5 << 20) + sample))
        copies.append(autograd_through_monai(network, inferer, scan + sigma * noise, explained))
    oracle = torch.stack(copies).mean(0)
    assert (drawn(explained) - oracle).abs().max() <= 1e-4 * oracle.abs().max()


def test_same_seed_same_bits_and_another_seed_other_noise():
    network, scan, method = normed_net(), scan_of(SHAPE), Method("smoothgrad", samples=2, seed=3)
    first, again = (drawn(explain(network, scan, method)) for _ in range(2))
    other = drawn(explain(network, scan, replace(method, seed=4)))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_a_target_alone_gets_the_numbers_it_gets_among_all():
    network, scan, method = normed_net(), scan_of(SHAPE), Method("smoothgrad", samples=2)
    together = explain(network, scan, method)
    alone = attribute(explainer_of(network), Subject(scan), ("heart",), method, silent)
    assert torch.allclose(drawn(alone)[0], drawn(together)[together.targets.index("heart")], atol=1e-7)


@pytest.mark.parametrize("batch", [2, 4])
def test_window_batches_agree(batch):
    network, scan, method = normed_net(), scan_of(SHAPE), Method("smoothgrad", samples=2)
    one = drawn(explain(network, scan, method, inferer_of(overlap=0.5)))
    many = drawn(explain(network, scan, method, inferer_of(overlap=0.5, sw_batch_size=batch)))
    assert (one - many).abs().max() <= 1e-5 * one.abs().max()


def test_integrated_gradients_equal_captums_on_one_window():
    network, scan, inferer = conv_net(), scan_of((8, 8, 8)), inferer_of()
    explained = explain(network, scan, Method("integrated_gradients", samples=16), inferer)
    for name, attributed in zip(explained.targets, drawn(explained), strict=True):
        channel = CLASSES.index(name)
        mask = explained.prediction == channel

        def value(batch: torch.Tensor, mask=mask, channel=channel) -> torch.Tensor:
            return (network(batch)[:, channel] * mask).sum(dim=(1, 2, 3))

        captum = IntegratedGradients(value).attribute(scan[None], baselines=0.0, n_steps=16, method="gausslegendre")
        assert (attributed - captum[0, 0]).abs().max() <= 1e-5 * captum.abs().max()


def test_integrated_gradients_are_complete_without_normalisation():
    explained = explain(conv_net(), scan_of(SHAPE), Method("integrated_gradients", samples=64))
    assert explained.targets and set(explained.completeness) == set(explained.targets)
    for completeness in explained.completeness.values():
        assert completeness.gap <= 0.01


def test_the_gap_is_the_difference_it_says():
    network, scan, inferer = normed_net(), scan_of(SHAPE), inferer_of()
    explained = explain(network, scan, Method("integrated_gradients", samples=4), inferer)
    at_scan, at_air = (inferer(x[None], network)[0] for x in (scan, torch.zeros_like(scan)))
    for name, attributed in zip(explained.targets, drawn(explained), strict=True):
        mask = explained.prediction == CLASSES.index(name)
        difference = float((at_scan - at_air)[CLASSES.index(name)][mask].double().sum())
        stated = explained.completeness[name]
        assert stated.output_difference == pytest.approx(difference, rel=1e-4)
        assert stated.gap == pytest.approx(
            abs(float(attributed.double().sum()) - difference) / abs(difference), rel=1e-3
        )


def test_a_linear_network_by_hand():
    torch.manual_seed(2)
    network = torch.nn.Conv3d(1, 3, 3, padding=1, bias=True).requires_grad_(False)
    scan = scan_of(SHAPE)
    slope = explain(network, scan, Method("gradient"))
    path = explain(network, scan, Method("integrated_gradients", samples=3, baseline="mean"))
    expected = drawn(slope) * (scan - 0.2302)
    assert (drawn(path) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_three_voxels_by_hand():
    """Kernel (1, 2, 3) along one axis, mask on the middle voxel: its gradient is the kernel."""
    network = torch.nn.Conv3d(1, 1, (3, 1, 1), padding=(1, 0, 0), bias=False).requires_grad_(False)
    network.weight.copy_(torch.tensor([1.0, 2.0, 3.0]).view(1, 1, 3, 1, 1))
    scan = torch.rand(1, 3, 1, 1)
    plan = plan_windows(inferer_of((3, 1, 1)), (3, 1, 1), scan)
    middle = torch.tensor([False, True, False]).view(3, 1, 1)
    target = Target("middle", 0, lambda place: middle[place])
    ((place, found),) = box_gradients(
        StitchedModel(network, plan), [Pass(lambda place: scan[(slice(None), *place)])], [target]
    )
    assert place[0] == slice(0, 3) and found[0][0].flatten().tolist() == [1.0, 2.0, 3.0]


def test_an_absent_target_is_absent_with_a_reason():
    network = conv_net()
    network[-1].bias[2] = -1e3
    explained = explain(network, scan_of(SHAPE), Method("gradient"))
    assert explained.absent == {"heart": "not predicted"}
    assert "heart" not in explained.targets and len(drawn(explained)) == len(explained.targets)


@pytest.mark.parametrize(
    ("method", "passes"),
    [(Method(samples=3, estimator="plain"), [3]), (Method(samples=11, tolerance=1e-9), [8, 16, 22])],
)
def test_progress_counts_every_window_of_every_pass(method, passes):
    """Rounds that a first one calls for are added when it is known that they are needed."""
    seen: list[tuple[int, int, str]] = []
    network, inferer = normed_net(), inferer_of()
    attribute(
        explainer_of(network, inferer), Subject(scan_of(SHAPE)), CLASSES, method, lambda *words: seen.append(words)
    )
    windows = len(plan_windows(inferer, SHAPE, torch.zeros(1)).slices)
    assert seen[0] == (0, windows, "segmenting")
    done = [words[0] for words in seen]
    assert done == sorted(done) and seen[-1][:2] == (passes[-1] * windows, passes[-1] * windows)
    assert [*dict.fromkeys(words[1] for words in seen[1:])] == [count * windows for count in passes]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("training", [False, True])
def test_every_method_leaves_the_network_and_the_generators_as_they_were(name, training):
    network, scan = normed_net().train(training).requires_grad_(training), scan_of(SHAPE)
    kept = network[-1].weight.grad = torch.ones_like(network[-1].weight)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = torch.random.get_rng_state()
    explained = explain(network, scan, Method(name, samples=4))
    assert explained.targets and not any(drawn.requires_grad for drawn in explained.saliency.values())
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert all(module.training == training for module in network.modules())
    assert all(parameter.requires_grad == training for parameter in network.parameters())
    assert network[-1].weight.grad is kept and (kept == 1).all() and network[0].weight.grad is None
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    assert not any(getattr(module, hook) for module in network.modules() for hook in hooks)
    assert torch.is_grad_enabled() and torch.equal(state, torch.random.get_rng_state())


def test_logits_of_noisy_copies_must_be_finite_too():
    class Fragile(torch.nn.Module):
        def forward(self, x):
            return torch.log(x - LOWEST) * torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1, 1)

    scan = scan_of((13, 8, 8))  # without padding, which would be below it in the clean scan too
    LOWEST = float(scan.min()) - 1e-3  # below which noise brings some voxels
    assert explain(Fragile(), scan, Method("gradient")).targets
    with pytest.raises(InputError, match="finite logits; got NaN or infinity in voxels"):
        explain(Fragile(), scan, Method(samples=2))


def test_broken_weights_are_refused():
    network = conv_net()
    network[-1].bias[0] = float("nan")
    with pytest.raises(InputError, match=r"finite logits; got NaN or infinity in voxels 0:8, 0:8, 0:8"):
        explain(network, scan_of(SHAPE), Method("gradient"))


def test_rounds_hold_few_pairs_and_miss_none():
    for most in (1, 2, 4, 5, 9, 13, 17, 100):
        rounds = [*_pairs(most)]
        assert [pair for one in rounds for pair in one] == [*range(most)]
        assert max(map(len, rounds)) <= 9 and (most == 1 or min(map(len, rounds)) > 1)


@pytest.mark.parametrize("method", [Method("integrated_gradients"), Method("kernelshap")])
def test_air_that_is_not_known_is_refused_before_anything_runs(method):
    network = conv_net()
    network.register_forward_hook(lambda *_: pytest.fail("the network was asked"))
    explainer = replace(explainer_of(network), air=None)
    with pytest.raises(InputError, match="air needs a chain"):
        attribute(explainer, Subject(scan_of(SHAPE)), CLASSES, method, silent)


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (Method("gradcam"), "method must be"),
        (Method(samples=0), "samples must be"),
        (Method(sigma=-1), "sigma must be"),
        (Method(tolerance=0), "tolerance must be"),
        (Method(tolerance=1), "tolerance must be"),
        (Method(tolerance=float("nan")), "tolerance must be"),
        (Method(estimator="best"), "estimator must be"),
        (Method("integrated_gradients", nodes="even"), "nodes must be"),
        (Method(sigma=float("nan")), "sigma must be"),
        (Method("integrated_gradients", baseline="bone"), "baseline must be"),
        (Method(mask="border"), "mask must be"),
    ],
)
def test_parameters_out_of_range_are_refused(method, said):
    with pytest.raises(InputError, match=said):
        check_method(method)


def test_an_unknown_target_is_refused():
    with pytest.raises(InputError, match="target must be a class of the model"):
        attribute(explainer_of(conv_net()), Subject(scan_of(SHAPE)), ("spleen",), Method("gradient"), silent)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="compares CUDA with the CPU")
def test_cuda_gives_the_numbers_of_the_cpu():
    network, scan, method = normed_net(), scan_of(SHAPE), Method(samples=2)
    on_cpu = drawn(explain(network, scan, method))
    explainer = replace(explainer_of(network.cuda()), device=torch.device("cuda"))
    on_cuda = drawn(attribute(explainer, Subject(scan), CLASSES, method, silent))
    assert (on_cpu - on_cuda).abs().max() <= 1e-4 * on_cpu.abs().max()


def test_prediction_ties_go_to_the_lower_class():
    assert predicted_organs(torch.zeros(3, 2, 2, 2)).sum() == 0
