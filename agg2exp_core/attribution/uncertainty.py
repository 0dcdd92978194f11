"""Sums of |mean gradient| from few noisy copies, without the bias of few, and how sure they are.

The magnitude of a mean over n copies is too large by about c/n, since noise that is left adds to it. With halves of
the copies, whose bias is larger by a known factor, it can be taken off: for n pairs, 2·s(all) − mean(s(half), s(half)).
The same estimate without each pair in turn gives the standard error of every share (jackknife; Efron 1982).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.stats import norm, t


@dataclass(frozen=True, eq=False)
class Estimator:
    """means (rows, pairs): means of the pairs' gradients of which magnitudes are summed.
    estimates (1 + replicates, rows): how sums of those rows make the estimate and then the same without each pair.
    """

    means: np.ndarray
    estimates: np.ndarray

    @property
    def pairs(self) -> int:
        """Gradients that enter."""
        return self.means.shape[1]


PLAIN = Estimator(np.ones((1, 1)), np.ones((1, 1)))
"""One gradient as it is: no bias is taken off, nothing is known of its error."""


def unbiased(pairs: int) -> Estimator:
    """The estimator for a number of pairs. Of one alone nothing more is known than its sums."""
    everyone = frozenset(range(pairs))
    halves = frozenset(range(0, pairs, 2)), frozenset(range(1, pairs, 2))
    without: list[frozenset[int]] = [frozenset([pair]) for pair in everyone] if pairs > 1 else []
    wanted = [_weights(everyone - out, [half - out for half in halves]) for out in [frozenset(), *without]]
    rows = [*dict.fromkeys(row for weights in wanted for row in weights)]
    means = np.array([[(pair in row) / len(row) for pair in sorted(everyone)] for row in rows])
    return Estimator(means, np.array([[weights.get(row, 0.0) for row in rows] for weights in wanted]))


def _weights(pairs: frozenset[int], halves: Sequence[frozenset[int]]) -> dict[frozenset[int], float]:
    """Which means enter an estimate, and how much: halves by their size, so that a bias of c/n cancels exactly."""
    if not all(halves):
        return {pairs: 1.0}
    return {pairs: 2.0} | {half: -len(half) / len(pairs) for half in halves}


@dataclass(frozen=True, eq=False)
class _Round:
    """pairs, and the estimates (positive and negative, 1 + replicates, channels · regions)."""

    pairs: int
    estimates: np.ndarray


@dataclass
class Tally:
    """What rounds of pairs have shown of one target; rounds are independent and count by their pairs.

    left_out: the share of the target that was not looked at. channels: of the scan, for each of which there are sums.
    """

    left_out: float = 0.0
    channels: int = 1
    rounds: list[_Round] = field(default_factory=list)

    def add(self, estimator: Estimator, sums: np.ndarray) -> None:
        """sums: positive and negative ones of each of the estimator's means (2, rows, channels · regions)."""
        self.rounds.append(_Round(estimator.pairs, estimator.estimates @ sums))

    @property
    def pairs(self) -> int:
        """Of all rounds."""
        return sum(one.pairs for one in self.rounds)

    def sums(self) -> tuple[np.ndarray, np.ndarray]:
        """Positive and negative sums (regions,) over all channels, never below 0."""
        positive, negative = self.channel_sums()
        return positive.sum(axis=0), negative.sum(axis=0)

    def channel_sums(self) -> tuple[np.ndarray, np.ndarray]:
        """The same of each channel (channels, regions)."""
        positive, negative = self._estimates()[:, 0].reshape(2, self.channels, -1)
        return positive, negative

    def mass_se(self, inside: np.ndarray | None = None) -> np.ndarray | None:
        """Standard error of each region's share of Σ|a| (regions,); None where nothing is known of it.

        inside: (regions,) bool, of which regions it is a share; the others have none (NaN).
        What was left out may lie anywhere: it is added as an error of its full size.
        """
        amounts = self._estimates().sum(axis=0)
        return self._share_errors(amounts.reshape(len(amounts), self.channels, -1).sum(axis=1), inside)

    def channel_mass_se(self) -> np.ndarray | None:
        """The same of the share of each region in each channel (channels, regions)."""
        errors = self._share_errors(self._estimates().sum(axis=0), None)
        return None if errors is None else errors.reshape(self.channels, -1)

    def _share_errors(self, amounts: np.ndarray, inside: np.ndarray | None) -> np.ndarray | None:
        """amounts: Σ|a| as estimated, then without each pair (1 + replicates, parts)."""
        inside = np.ones(amounts.shape[1], dtype=bool) if inside is None else inside
        errors, left_out = _jackknife(np.where(inside, amounts[1:], 0)), self.left_out
        if left_out:
            left_out *= amounts[0].sum() / max(amounts[0, inside].sum(), np.finfo(float).tiny)
            errors = np.hypot(0.0 if errors is None else errors, np.full(len(inside), left_out))
        return None if errors is None else np.where(inside, errors, np.nan)

    def _estimates(self) -> np.ndarray:
        """Weighted mean of the rounds, then without each pair of each round (2, 1 + replicates, channels · regions)."""
        whole = np.sum([one.pairs * one.estimates[:, 0] for one in self.rounds], axis=0)
        replicates = [
            (whole - one.pairs * one.estimates[:, 0] + (one.pairs - 1) * one.estimates[:, out]) / (self.pairs - 1)
            for one in self.rounds
            for out in range(1, one.estimates.shape[1])
        ]
        return np.maximum(np.stack([whole / self.pairs, *replicates], axis=1), 0)


def _jackknife(amounts: np.ndarray) -> np.ndarray | None:
    """Standard error of each region's share, of amounts without each pair (pairs, regions); None without two pairs.

    Widened as Student's t is for few pairs, so that 1.96 of it to both sides hold 95 % whatever their number.
    """
    count = len(amounts)
    if count < 2:
        return None
    masses = amounts / np.maximum(amounts.sum(axis=1, keepdims=True), np.finfo(float).tiny)
    widened = t.ppf(0.975, count - 1) / norm.ppf(0.975)
    return np.asarray(widened * np.sqrt((count - 1) * masses.var(axis=0)))
