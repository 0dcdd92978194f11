"""A run of any number of cases × 17 × 17, written as the pipeline writes cases, with numbers drawn at random."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from agg2exp_core.organs import load_label_set
from agg2exp_core.records import Method, SumTable
from agg2exp_core.store import cohorts, results

COHORT = "synthetic"
METHOD = Method("smoothgrad", 4, estimator="plain")
RUN = f"synthetic-{METHOD.name}-{METHOD.samples}"
LABELS = load_label_set("thorax17")


def write_root(root: Path, cases: int) -> None:
    """A data root with one cohort of so many cases, one run, and no images."""
    rng = np.random.default_rng(0)
    names = [f"case-{number:05d}" for number in range(cases)]
    empty = {"image": "", "label": ""}
    about = {"age": rng.integers(20, 90, cases).astype(str), "sex": rng.choice(["F", "M"], cases)}
    cohorts.write_cases(root, COHORT, pd.DataFrame({"case_id": names} | empty | about))
    info = {"model": "synthetic", "model_hash": "0", "method": METHOD.name, "parameters": METHOD.parameters()}
    results.write_run(root, COHORT, RUN, info | {"label_set": LABELS.name, "values": "sums"})
    usual = _usual(rng)
    for name in names:
        with results.case_folder(root / "runs" / COHORT / RUN / "cases" / name, {"case_id": name}) as folder:
            results.write_importance(folder, _table(rng, usual))
            dice = rng.beta(20, 3, len(LABELS.names))
            results.write_agreement(folder, LABELS.names, dice, dice / (2 - dice))


def _usual(rng: np.random.Generator) -> np.ndarray:
    """Expected sums (17, 17): most on the background, then on the organ itself."""
    count = len(LABELS.names)
    usual = rng.gamma(0.5, 1.0, (count, count)) + 6 * np.eye(count)
    usual[:, 0] += 30
    return usual


def _table(rng: np.random.Generator, usual: np.ndarray) -> SumTable:
    positive, negative = usual * rng.lognormal(0, 0.4, (2, *usual.shape))
    return SumTable(LABELS.names, LABELS.names, positive, negative, np.full(len(usual), 5000, np.int64))
