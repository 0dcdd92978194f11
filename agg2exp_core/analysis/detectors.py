"""What makes one target's row of masses unusual: four detectors of rows (cases, regions) without gaps.

Each is fitted on the rows of a cohort and scores others, higher = more abnormal. Masses are compositional: rows sum
to 1, so that their plain covariance is singular, and distances are taken of √mass or of log-ratios.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from sklearn import config_context
from sklearn.covariance import LedoitWolf
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import NearestNeighbors

from agg2exp_core.analysis.importance import roots

LEAST_MASS = 1e-4
"""A hundredth of a percent: what masses differ by below it is noise, and counts neither in z nor in logarithms."""

SEED = 0
NEIGHBOURS = 5
FEW_ROWS = 2000
"""Among so few, a tree finds the nearest rows in a fiftieth of the time that comparing all takes to begin."""

MAD_TO_SIGMA = 1.4826
"""Standard deviation of normal values in units of their median absolute deviation."""

HIGH = 0.9
"""The quantile of a row's |z| that is its score: a tenth of the regions must be far off, one alone is not enough."""


class RowDetector(Protocol):
    """Fitted on one target's rows."""

    def score(self, rows: np.ndarray) -> np.ndarray:
        """(cases, regions) → (cases,), higher = more abnormal."""


@dataclass(frozen=True, eq=False)
class RobustZ:
    """median, scale: (…,) of what it was fitted on, cases first. A value's z is its distance from the median in scales.

    The scale is that of the median absolute deviation, and at least LEAST_MASS.
    """

    median: np.ndarray
    scale: np.ndarray

    @classmethod
    def fit(cls, values: np.ndarray) -> RobustZ:
        """From (cases, …); NaN does not count, and what is NaN in every case has no z."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            median = np.nanmedian(values, axis=0)
            spread = np.nanmedian(np.abs(values - median), axis=0)
        return cls(median, np.maximum(MAD_TO_SIGMA * spread, LEAST_MASS))

    def z(self, values: np.ndarray) -> np.ndarray:
        """(cases, …), signed."""
        return (values - self.median) / self.scale

    def score(self, rows: np.ndarray) -> np.ndarray:
        return np.quantile(np.abs(self.z(rows)), HIGH, axis=1)


@dataclass(frozen=True, eq=False)
class Forest:
    """Isolation forest on the masses, as published; its score lies between 0 and 1, ordinary rows below 0.5."""

    forest: IsolationForest

    @classmethod
    def fit(cls, rows: np.ndarray) -> Forest:
        # The rows were checked; checking them in each of the hundred trees takes a third of the time.
        with config_context(assume_finite=True, skip_parameter_validation=True):
            return cls(IsolationForest(random_state=SEED).fit(rows))

    def score(self, rows: np.ndarray) -> np.ndarray:
        return -self.forest.score_samples(rows)


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Mean distance of √mass (Hellinger's, times √2) to the nearest rows. A row that was fitted finds itself at 0."""

    nearest: NearestNeighbors

    @classmethod
    def fit(cls, rows: np.ndarray) -> Neighbours:
        algorithm = "kd_tree" if len(rows) <= FEW_ROWS else "brute"
        return cls(NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(rows)), algorithm=algorithm).fit(roots(rows)))

    def score(self, rows: np.ndarray) -> np.ndarray:
        return self.nearest.kneighbors(roots(rows))[0].mean(axis=1)


@dataclass(frozen=True, eq=False)
class Mahalanobis:
    """Distance from the mean of centred log-ratios, with Ledoit and Wolf's shrunk covariance."""

    covariance: LedoitWolf

    @classmethod
    def fit(cls, rows: np.ndarray) -> Mahalanobis:
        return cls(LedoitWolf().fit(log_ratios(rows)))

    def score(self, rows: np.ndarray) -> np.ndarray:
        return np.sqrt(self.covariance.mahalanobis(log_ratios(rows)))


def log_ratios(rows: np.ndarray) -> np.ndarray:
    """Centred log-ratios (Aitchison): log of masses of at least LEAST_MASS, minus its mean over the row."""
    logarithms = np.log(np.maximum(rows, LEAST_MASS))
    return logarithms - logarithms.mean(axis=-1, keepdims=True)


DETECTORS: dict[str, Callable[[np.ndarray], RowDetector]] = {
    "isolation_forest": Forest.fit,
    "robust_z": RobustZ.fit,
    "neighbours": Neighbours.fit,
    "mahalanobis": Mahalanobis.fit,
}
"""Name → fit on rows (cases, regions)."""
