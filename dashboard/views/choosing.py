"""Choosing a cohort and one of its runs, which most pages begin with, and what to do where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agg2exp_core.organs import LabelSet
from agg2exp_core.records import InputError, Method
from dashboard import data, filters, words
from dashboard.address import Address
from dashboard.charts.common import organ_of
from dashboard.filters import Choice
from dashboard.views import methods

NO_COHORT = "No cohort is here yet. `agg2exp demo` brings two, `agg2exp cohort add` takes a folder of your scans."
EXPLAIN = "Open a scan on the Case page and press **Explain**, or run `agg2exp explain --cohort`."
RUN_HELP = "A model and an attribution method."


@dataclass(frozen=True, eq=False)
class ChosenRun:
    """A run that a page is about. record: its row, see `queries.runs`."""

    root: Path
    cohort: str
    record: dict[str, Any]
    labels: LabelSet

    @property
    def run(self) -> str:
        return str(self.record["run"])

    @property
    def shares_only(self) -> bool:
        """An imported table: shares without signs."""
        return self.record.get("values") == "shares"

    def title(self, organ: str) -> str:
        return organ_of(self.labels, organ).title


def pick_run(address: Address, root: Path) -> ChosenRun | str:
    """Two select boxes; where there is nothing to choose, or nothing in what was chosen, what to do about it."""
    known = list(data.cohorts(root)["cohort"])
    cohort = filters.pick_one(address, Choice("Cohort", "cohort"), known) if known else None
    if cohort is None:
        return NO_COHORT
    records = data.run_records(root, cohort)
    run = run_box(address, records)
    if run is None:
        return f"Nothing in **{words.plain(cohort)}** is explained yet. {EXPLAIN}"
    if not data.targets(root, cohort, run):
        return f"No case of the run **{words.plain(run_title(records[run]))}** is finished yet. {EXPLAIN}"
    return ChosenRun(root, cohort, records[run], data.labels(root, cohort, records[run]))


def run_box(address: Address, records: dict[str, dict[str, Any]]) -> str | None:
    """A select box of runs (see `data.run_records`) by their titles; None, without a box, where there is none.

    One that was stopped before its first case is offered only where there is no other.
    """
    begun = {run: record for run, record in records.items() if record["cases"]} or records
    titles = {run: run_title(record) for run, record in begun.items()}
    return filters.pick_one(address, Choice("Run", "run", titles, RUN_HELP), list(begun)) if begun else None


def run_title(record: dict[str, Any]) -> str:
    """`thorax17 swinunetr, SmoothGrad × 20, seed 7`, unusual parameters only; a run of another kind keeps its id.

    An unusual mask comes first of them: `…, SmoothGrad × 20, false positives, …`.
    """
    method = method_of(record)
    if method is None:
        return str(record["run"])
    return ", ".join(
        [
            words.model_title(record.get("model")),
            methods.method_words(method),
            *methods.mask_words(method),
            *methods.parameter_words(method),
        ]
    )


def told_apart(titles: Sequence[str]) -> list[str]:
    """Titles of runs without what all of them say, where little room is; whole where nothing would be left."""
    parts = [title.split(", ") for title in titles]
    shared = set(parts[0]).intersection(*parts[1:])
    return [", ".join(part for part in some if part not in shared) or ", ".join(some) for some in parts]


def method_of(record: dict[str, Any]) -> Method | None:
    """The method of a run; None for one that this version does not know, or not all parameters of."""
    name, parameters = str(record.get("method")), record.get("parameters") or {}
    try:
        return Method.of(name, parameters) if name in methods.METHODS else None
    except InputError:
        return None
