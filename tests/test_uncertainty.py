"""Sums without the bias of few noisy copies, and how sure they are: by hand, by identities, by coverage."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import t
from test_attribution import drawn, silent
from tiny import CLASSES, conv_net, explainer_of, inferer_of, normed_net, scan_of

from agg2exp_core.attribution import sums
from agg2exp_core.attribution.attribute import Explanation, Subject, attribute, check_method
from agg2exp_core.attribution.target import MOST_LEFT_OUT
from agg2exp_core.attribution.uncertainty import PLAIN, Tally, unbiased
from agg2exp_core.records import InputError, Method


def kinked_net(seed: int = 0) -> torch.nn.Module:
    """Normalised and piecewise linear, as most segmentation networks are: its gradient is as noisy as theirs."""
    torch.manual_seed(seed)
    layers = [torch.nn.Conv3d(1, 8, 3, padding=1), torch.nn.InstanceNorm3d(8), torch.nn.ReLU()]
    layers += [torch.nn.Conv3d(8, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv3d(8, 3, 3, padding=1)]
    return torch.nn.Sequential(*layers).requires_grad_(False)


def explain(network: torch.nn.Module, method: Method, keep: tuple[str, ...] | None = ()) -> Explanation:
    explainer = explainer_of(network, inferer_of((12, 12, 12)))
    return attribute(explainer, Subject(scan_of((12, 12, 12))), CLASSES, method, silent, keep)


def masses(explained: Explanation) -> np.ndarray:
    amounts = np.stack([np.sum(tally.sums(), axis=0) for tally in explained.tallies.values()])
    return amounts / amounts.sum(axis=1, keepdims=True)


def errors(explained: Explanation) -> np.ndarray:
    return np.stack([tally.mass_se() for tally in explained.tallies.values()])


def summed(gradients: np.ndarray, pairs: int) -> Tally:
    """Pairs' gradients (pairs, voxels), each voxel a region."""
    estimator, tally = unbiased(pairs), Tally()
    means = estimator.means @ gradients
    tally.add(estimator, np.stack([np.maximum(means, 0), np.maximum(-means, 0)]))
    return tally


def test_four_pairs_by_hand():
    """Two voxels; halves are pairs 0, 2 and 1, 3. The bias of |mean| is taken off the second, which is only noise."""
    gradients = np.array([[1.0, 0.4], [1.0, -0.4], [1.0, 0.4], [1.0, -0.4]])
    positive, negative = summed(gradients, 4).sums()
    # |mean of all| is 0; the halves' are 0.4 above and below: 2·0 − (0.4 + 0)/2, which is clipped at 0.
    np.testing.assert_allclose([positive, negative], [[1, 0], [0, 0]], atol=1e-15)


@pytest.mark.parametrize("pairs", [1, 2, 3, 4, 7, 8])
def test_what_has_no_noise_keeps_its_sums_and_has_no_error(pairs):
    gradient = np.array([0.5, -2.0, 0.0])
    tally = summed(np.tile(gradient, (pairs, 1)), pairs)
    np.testing.assert_allclose(tally.sums(), [[0.5, 0, 0], [0, 2, 0]], atol=1e-12)
    assert tally.mass_se() is None if pairs == 1 else np.allclose(tally.mass_se(), 0)


@pytest.mark.parametrize("pairs", [2, 3, 4, 5, 8])
def test_a_bias_that_falls_with_their_number_cancels(pairs):
    """In estimates and in each replicate: a mean of n has the sum 1 + c/n."""
    estimator = unbiased(pairs)
    sums = 1 + 0.3 * (estimator.means**2).sum(axis=1)
    found = estimator.estimates @ sums
    halved = (estimator.estimates < 0).any(axis=1)
    assert found[0] == pytest.approx(1) and len(found) == pairs + 1
    assert np.allclose(found[halved], 1) and (pairs < 4 or halved.all())
    assert np.allclose(estimator.estimates.sum(axis=1), 1) and np.allclose(estimator.means.sum(axis=1), 1)


def test_of_two_pairs_the_error_is_their_difference():
    gradients = np.array([[0.5, 0.5], [0.3, 0.7]])
    expected = 0.1 * t.ppf(0.975, 1) / 1.959964
    np.testing.assert_allclose(summed(gradients, 2).mass_se(), [expected, expected], rtol=1e-6)


def test_rounds_count_by_their_pairs():
    rng, tally = np.random.default_rng(0), Tally()
    gradients = rng.uniform(0.5, 1.5, (12, 3))  # of one sign, so that magnitudes are linear
    for some in (gradients[:4], gradients[4:]):
        tally.rounds += summed(some, len(some)).rounds
    assert tally.pairs == 12
    np.testing.assert_allclose(tally.sums()[0], gradients.mean(axis=0))
    np.testing.assert_allclose(tally.mass_se(), summed(gradients, 12).mass_se())


def test_antithetic_without_noise_is_the_gradient():
    network = normed_net()
    plain = explain(network, Method("gradient"), None)
    pairs = explain(network, Method(samples=4, sigma=0.0), None)
    assert (drawn(plain) - drawn(pairs)).abs().max() <= 1e-6 * drawn(plain).abs().max()
    assert np.allclose(masses(plain), masses(pairs), atol=1e-6) and np.abs(errors(pairs)).max() < 1e-6
    assert all(tally.mass_se() is None for tally in plain.tallies.values())


def test_pairs_are_means_of_two_opposite_copies():
    network, scan = normed_net(), scan_of((12, 12, 12))
    found = drawn(explain(network, Method(samples=2, seed=7), None))
    noises = [torch.randn(scan.shape[1:], generator=torch.Generator().manual_seed((7 << 20) + n)) for n in range(2)]
    moved = [0.1 * (scan.max() - scan.min()) * noise for noise in noises]
    prediction = explain(network, Method("gradient")).prediction
    oracle = []
    for channel in range(len(CLASSES)):
        leaf = torch.stack([scan + sign * one for one in moved for sign in (1, -1)]).requires_grad_()
        value = (network(leaf)[:, channel] * (prediction == channel)).sum()
        oracle.append(torch.autograd.grad(value, leaf)[0].mean(dim=0)[0])
    assert (found - torch.stack(oracle)).abs().max() <= 1e-5 * found.abs().max()


@pytest.mark.parametrize(("tolerance", "pairs"), [(0.9, 4), (1e-9, 10)])
def test_a_target_stops_when_it_is_sure_enough(tolerance, pairs):
    explained = explain(kinked_net(), Method(samples=10, tolerance=tolerance))
    assert {tally.pairs for tally in explained.tallies.values()} == {pairs}
    assert (2 * errors(explained).max() < tolerance) == (tolerance == 0.9)


def test_targets_stop_each_for_itself():
    """The tolerance lies between the errors that four pairs leave to two of the targets."""
    network = kinked_net()
    left = errors(explain(network, Method(samples=4))).max(axis=1)
    low, high = np.sort(2 * left)[[0, -1]]
    explained = explain(network, Method(samples=8, tolerance=float(low + high) / 2))
    pairs = [tally.pairs for tally in explained.tallies.values()]
    assert [count == 4 for count in pairs] == [2 * error < (low + high) / 2 for error in left] and len(set(pairs)) == 2


def test_the_bias_of_few_copies_is_gone():
    network = kinked_net()
    settled = masses(explain(network, Method(samples=256, estimator="plain")))
    off = {
        name: np.mean([masses(explain(network, replaced)) - settled for replaced in methods], axis=0)
        for name, methods in {
            "plain": [Method(samples=4, estimator="plain", seed=seed) for seed in range(1, 13)],
            "pairs": [Method(samples=4, seed=seed) for seed in range(1, 13)],
        }.items()
    }
    assert np.abs(off["pairs"]).max() < 0.5 * np.abs(off["plain"]).max()


@pytest.fixture(scope="module")
def settled():
    """Three networks, each with its masses of 512 copies."""
    networks = [kinked_net(seed) for seed in range(3)]
    return [(network, masses(explain(network, Method(samples=512, estimator="plain")))) for network in networks]


@pytest.mark.parametrize(("samples", "tolerance"), [(4, 1e-9), (8, 1e-9), (16, 0.005)])
def test_intervals_cover_what_they_say(settled, samples, tolerance):
    """95 % intervals, ± 1.96 mass_se, against 512 copies: from 90 to 98 % of them hold it; also where errors say when
    to stop, which some targets then do and others do not."""
    inside, pairs = [], set()
    for network, exact in settled:
        for seed in range(1, 25):
            explained = explain(network, Method(samples=samples, seed=seed, tolerance=tolerance))
            inside.append(np.abs(masses(explained) - exact) <= 1.96 * errors(explained))
            pairs |= {tally.pairs for tally in explained.tallies.values()}
    assert 0.90 <= np.mean(inside) <= 0.98
    assert (len(pairs) > 1) == (tolerance > 1e-9)


def test_errors_vanish_with_the_noise():
    """In little noise a smooth gradient is all but linear, and what is odd in it cancels in a pair: errors go as σ²."""
    large, little = (errors(explain(conv_net(), Method(samples=4, sigma=sigma))).max() for sigma in (0.1, 0.01))
    assert large > 50 * little > 0


def test_a_single_gradient_says_nothing_of_its_error():
    tally = Tally()
    tally.add(PLAIN, np.ones((2, 1, 3)))
    assert tally.mass_se() is None and tally.pairs == 1


def test_a_large_box_is_summed_in_slabs_with_the_same_sums(monkeypatch):
    """The means of eight pairs are 19: of a scan of one window they would be as many times its size."""
    whole, made = explain(kinked_net(), Method(samples=8, tolerance=1e-9), None), []
    taken = sums.region_sums
    monkeypatch.setattr(sums, "SLAB_VOXELS", 3 * 12 * 12)
    monkeypatch.setattr(sums, "region_sums", lambda rows, *others: made.append(rows[0].size) or taken(rows, *others))
    slabs = explain(kinked_net(), Method(samples=8, tolerance=1e-9), None)
    assert made and max(made) == 3 * 12 * 12
    assert np.allclose(masses(whole), masses(slabs), rtol=1e-5) and np.allclose(errors(whole), errors(slabs), rtol=1e-3)
    assert torch.allclose(drawn(whole), drawn(slabs), rtol=1e-4, atol=1e-7)


# ---- windows that are left out --------------------------------------------------------------------


def skipped(skip: float, method: Method | None = None) -> Explanation:
    """Of a scan of many windows, in some of which little of a target lies."""
    explainer = explainer_of(kinked_net(), inferer_of((8, 8, 8), overlap=0.5))
    method = replace(method or Method(samples=4), skip=skip)
    return attribute(explainer, Subject(scan_of((20, 18, 11))), CLASSES, method, silent, ())


@pytest.mark.parametrize("method", [Method(samples=4), Method("gradient"), Method(samples=2, estimator="plain")])
def test_leaving_windows_out_changes_less_than_the_error_says(method):
    whole, less = skipped(0, method), skipped(0.02, method)
    left = np.array([tally.left_out for tally in less.tallies.values()])
    assert 0 < left.max() < 0.5 and all(tally.left_out == 0 for tally in whole.tallies.values())
    off = np.abs(masses(whole) - masses(less))
    assert off.max() > 0 and (off <= 1.96 * errors(less)).all()
    if method.estimator != "plain" and method.name == "smoothgrad":
        assert errors(less) == pytest.approx(np.hypot(errors(whole), left[:, None]), rel=0.5)


def test_a_target_of_small_windows_alone_keeps_nearly_all_of_them():
    explained = skipped(0.1)
    assert all(0 < tally.left_out <= MOST_LEFT_OUT for tally in explained.tallies.values())
    assert np.isfinite(masses(explained)).all() and (errors(explained) > 0).all()


def test_no_window_is_left_out_that_holds_more():
    whole, less = skipped(0), skipped(1e-9)
    assert (masses(whole) == masses(less)).all() and (errors(whole) == errors(less)).all()


def test_what_was_left_out_counts_more_in_shares_without_the_background():
    tally = Tally(left_out=0.01)
    tally.add(PLAIN, np.array([[[0.75, 0.25, 0.0]], [[0.0, 0.0, 0.0]]]))
    assert tally.mass_se() == pytest.approx([0.01] * 3)
    assert tally.mass_se(np.array([False, True, True]))[1:] == pytest.approx([0.04, 0.04])


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (Method(skip=-0.1), "skip must be from 0 to 0.1"),
        (Method(skip=0.2), "skip must be from 0 to 0.1"),
        (Method(skip=float("nan")), "skip must be from 0 to 0.1"),
        (Method("ablation", skip=0.01), "skip goes with a method of whole gradients"),
    ],
)
def test_what_cannot_be_left_out_is_refused(method, said):
    with pytest.raises(InputError, match=said):
        check_method(method)
