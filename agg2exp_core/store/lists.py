"""Saved lists of cases: `lists/<name>.json`, one file a list, replaced at once or not at all."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from agg2exp_core.files import locked, read_json, write_json
from agg2exp_core.records import InputError
from agg2exp_core.settings import ID, checked_id
from agg2exp_core.store.cohorts import read_cases


@dataclass(frozen=True)
class CaseList:
    """Cases of one cohort under a name.

    cases: in the order they were given, each once. link: for a saved filter, the parameters of the dashboard's
    address that open the view it was saved from; the list keeps the cases that passed then.
    """

    name: str
    cohort: str
    cases: tuple[str, ...]
    note: str = ""
    link: dict[str, list[str]] | None = None


def save_list(root: Path, case_list: CaseList, replacing: bool = False) -> None:
    """Write a list; cases named twice are kept once.

    InputError, and nothing is written, for a name that is no id, one that another list has (unless replacing one of
    the same cohort, the only ones that its pages show), no case at all, and a cohort or case that is not there.
    """
    path = _file(root, case_list.name)
    kept = replace(case_list, cases=tuple(dict.fromkeys(case_list.cases)))
    _check_cases(root, kept)
    with locked(path.parent / ".lists"):
        # A damaged file under this name is somebody's list too.
        known = _read(path) if path.exists() else kept
        if known != kept and not (replacing and known is not None and known.cohort == kept.cohort):
            taken = ", ".join(sorted(other.stem for other in path.parent.glob("*.json"))[:20])
            raise InputError("a new list needs a name that is free", repr(kept.name), f"any but {taken}")
        write_json(path, asdict(kept))


def extend_list(root: Path, name: str, cohort: str, cases: tuple[str, ...]) -> None:
    """Add cases behind those of a list, which keeps its note and its link; a list that is not there begins with them.

    InputError, and nothing is written: as `save_list`, and for a list of another cohort.
    """
    path = _file(root, name)
    _check_cases(root, CaseList(name, cohort, cases))
    with locked(path.parent / ".lists"):
        known = CaseList(name, cohort, ()) if not path.exists() else _read(path)
        if known is None or known.cohort != cohort:
            raise InputError(f"a list to extend must be one of cohort {cohort}", repr(name))
        write_json(path, asdict(replace(known, cases=tuple(dict.fromkeys([*known.cases, *cases])))))


def list_lists(root: Path, cohort: str | None = None) -> list[CaseList]:
    """The lists of a cohort, or of all, by name. A damaged file is left out, with a warning in the log."""
    found = []
    for path in sorted((root / "lists").glob("*.json")):
        case_list = _read(path)
        if case_list is None:
            logging.warning("list %s left out: its file is damaged", path.stem)
        elif cohort in (None, case_list.cohort):
            found.append(case_list)
    return found


def damaged_lists(root: Path) -> list[str]:
    """Names of the lists whose files are damaged."""
    return [path.stem for path in sorted((root / "lists").glob("*.json")) if _read(path) is None]


def remove_list(root: Path, name: str) -> None:
    """Delete a list. InputError if there is none of that name."""
    path = _file(root, name)
    if not path.exists():
        known = ", ".join(case_list.name for case_list in list_lists(root)[:20])
        raise InputError("a list to remove must be there", repr(name), known or "none yet")
    with locked(path.parent / ".lists"):
        path.unlink(missing_ok=True)


def _file(root: Path, name: str) -> Path:
    return root / "lists" / f"{checked_id('list', name)}.json"


def _check_cases(root: Path, case_list: CaseList) -> None:
    known = read_cases(root, case_list.cohort)["case_id"]
    if not case_list.cases:
        raise InputError("a list needs cases", "none")
    unknown = sorted(set(case_list.cases) - set(known))
    if unknown:
        some = ", ".join(known[:5]) + (", …" if len(known) > 5 else "")
        raise InputError(f"every case of a list must be in cohort {case_list.cohort}", ", ".join(unknown[:3]), some)


def _read(path: Path) -> CaseList | None:
    """The list in a file; None if that is damaged. Cases that have left their cohort since stay in the list."""
    content = read_json(path)
    parts: list[Any] = [content.get(key) for key in ("name", "cohort", "cases", "note", "link")]
    name, cohort, cases, note, link = parts
    if not (isinstance(cases, list) and cases and all(isinstance(text, str) for text in (name, cohort, note, *cases))):
        return None
    if name != path.stem or not ID.fullmatch(name) or not (link is None or _is_link(link)):
        return None
    return CaseList(name, cohort, tuple(cases), note, link)


def _is_link(link: Any) -> bool:
    return isinstance(link, dict) and all(
        isinstance(values, list) and all(isinstance(value, str) for value in values) for values in link.values()
    )
