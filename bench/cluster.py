"""A cohort through processes of Dask against the plain loop: how much sooner it is done."""

from __future__ import annotations

import tempfile
from pathlib import Path

from agg2exp_core import cluster
from agg2exp_core.demo import SECOND, make_ready
from agg2exp_core.pipeline import Explaining, Plan
from agg2exp_core.records import Method
from agg2exp_core.settings import SHIPPED
from agg2exp_core.store.cohorts import Case, find_case, read_cases
from bench.clock import timed

COHORT, CASES = "reference", 20
PLAN = Plan(SECOND, Method("gradient"), ("heart", "aorta"), device="cpu", saliency="none")


def main() -> list[tuple[str, str]]:
    """Rows of figure name and value. Processes start, and load their network, in the time that is counted."""
    make_ready(SHIPPED, _silent)
    cases = [find_case(SHIPPED, COHORT, name) for name in read_cases(SHIPPED, COHORT)["case_id"][:CASES]]
    _, plain = timed(lambda: _looped(cases))
    rows = [(f"{CASES} cases, two organs, gradient, plain loop", f"{plain:.1f} s")]
    for workers in (1, 2):
        _, took = timed(lambda workers=workers: _clustered(cases, workers))
        told = f"{took:.1f} s, {plain / took:.2f} times as fast"
        rows.append((f"{CASES} cases, two organs, gradient, --workers {workers}", told))
        if workers == 1:
            added = f"{1000 * (took - plain) / CASES:.0f} ms"
            rows.append(("what Dask adds to each case, start included", added))
    return rows


def _looped(cases: list[Case]) -> None:
    explaining = Explaining(SHIPPED, PLAN)
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            explaining.case(case, Path(folder) / case.case_id, _silent)


def _clustered(cases: list[Case], workers: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for part in ("models", "label_sets", "cohorts"):
            (root / part).symlink_to(SHIPPED / part)
        with cluster.local(workers) as client:
            done = list(cluster.explain_cases(client, cluster.Work(root, PLAN, COHORT), cases, _silent))
    if refused := [one.refused for one in done if one.refused]:
        raise RuntimeError(refused[0])


def _silent(done: int, total: int, note: str) -> None: ...


if __name__ == "__main__":
    for row in main():
        print(*row, sep="  ", flush=True)
