"""Saved lists of cases: `lists/<name>.json`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from agg2exp_core.files import read_json, write_json
from agg2exp_core.settings import checked_id


@dataclass(frozen=True)
class CaseList:
    """Cases of one cohort that somebody put together. link: the view they were found in."""

    name: str
    cohort: str
    cases: tuple[str, ...]
    note: str = ""
    link: dict[str, list[str]] | None = None


def save_list(root: Path, case_list: CaseList) -> None:
    """Write the list, in the place of one of the same name."""
    path = root / "lists" / f"{checked_id('list', case_list.name)}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, asdict(case_list))


def list_lists(root: Path, cohort: str | None = None) -> list[CaseList]:
    """All lists, or those of one cohort, by name."""
    found = [read_json(path) for path in sorted((root / "lists").glob("*.json"))]
    lists = [CaseList(**content | {"cases": tuple(content["cases"])}) for content in found if content]
    return [one for one in lists if cohort in (None, one.cohort)]
