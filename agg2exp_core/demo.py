"""Make a data root ready for the demo: the shipped model, label set and precomputed runs, and the scans."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from agg2exp_core.phantom import DEMO, write_cohort
from agg2exp_core.settings import SHIPPED

MODEL = "thorax17_swinunetr"
RUN = f"{MODEL}-smoothgrad-pairs-4"
SECOND = "thorax17_segresnet"
"""Another network on the same scans: what two models look at can be compared."""

MODELS = (MODEL, SECOND)
RUNS = (RUN, f"{SECOND}-smoothgrad-pairs-4")
SHIPPED_PARTS = (
    "label_sets",
    *(f"models/{model}" for model in MODELS),
    *(f"runs/{cohort}/{run}" for cohort in DEMO for run in RUNS),
)
"""Not all of data/: what users of the project's own root put there stays there."""

Report = Callable[[int, int, str], None]


def make_ready(root: Path, report: Report) -> None:
    """Copy what is shipped into `root`, unless root is it, and generate the scans that are missing.

    Only files that are not there yet are written: work done in the root is never touched.
    """
    if root != SHIPPED:
        for part in SHIPPED_PARTS:
            if (SHIPPED / part).is_dir():
                shutil.copytree(SHIPPED / part, root / part, dirs_exist_ok=True, copy_function=_copy_new)
    total, done = sum(len(plan) for plan in DEMO.values()), 0
    for cohort, plan in DEMO.items():
        before = done

        def told(some: int, _: int, before: int = before, cohort: str = cohort) -> None:
            report(before + some, total, f"cohort {cohort}")

        write_cohort(root / "cohorts" / cohort, plan, progress=told)
        done += len(plan)


def _copy_new(source: str, target: str) -> str:
    """Whole or not at all: half a file would count as there the next time."""
    if not Path(target).exists():
        part = f"{target}.{uuid.uuid4().hex[:8]}"  # its own: two containers of one volume start at once
        shutil.copy2(source, part)
        Path(part).replace(target)
    return target
