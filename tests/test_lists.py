"""Saved lists: what is refused, what survives damage, and that numbers follow when a list changes."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from agg2exp_core import files
from agg2exp_core.records import InputError
from agg2exp_core.store import catalog, cohorts
from agg2exp_core.store.lists import CaseList, extend_list, list_lists, remove_list, save_list

LIST = CaseList("doubtful", "clinic", ("c2", "c1"), "shadows; λ", {"cohort": ["clinic"], "is.sex": ["F", ""]})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("clinic", "other"):
        table = pd.DataFrame({"case_id": ["c1", "c2", "c3"], "image": "", "label": ""})
        cohorts.write_cases(tmp_path, name, table)
    return tmp_path


def _files(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "lists").glob("*.json")) if (root / "lists").exists() else []


def test_a_list_comes_back_as_it_was_saved(root: Path) -> None:
    save_list(root, LIST)
    save_list(root, CaseList("all", "other", ("c1", "c2", "c1")))
    assert list_lists(root) == [CaseList("all", "other", ("c1", "c2")), LIST]
    assert list_lists(root, "clinic") == [LIST] and list_lists(root, "gone") == []
    assert json.loads((root / "lists" / "doubtful.json").read_text())["cases"] == ["c2", "c1"]


@pytest.mark.parametrize(
    ("case_list", "said"),
    [
        (replace(LIST, name="../up"), "list must be 1 to 64"), (replace(LIST, name=""), "list must be 1 to 64"),
        (replace(LIST, name=".."), "list must be 1 to 64"), (replace(LIST, cohort="gone"), "cohort must exist"),
        (replace(LIST, cohort="../clinic"), "cohort must be 1 to 64"), (replace(LIST, cases=()), "a list needs cases"),
        (replace(LIST, cases=("c1", "c9")), "got c9"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_wrong_is_refused_and_nothing_written(root: Path, case_list: CaseList, said: str) -> None:
    with pytest.raises(InputError, match=said):
        save_list(root, case_list)
    assert _files(root) == []


def test_a_taken_name_is_kept_unless_it_is_to_be_replaced(root: Path) -> None:
    save_list(root, LIST)
    save_list(root, LIST)  # the same again: nothing to lose
    other = replace(LIST, cohort="other", cases=("c3",))
    with pytest.raises(InputError, match="a name that is free"):
        save_list(root, other)
    assert list_lists(root) == [LIST]
    with pytest.raises(InputError, match="a name that is free"):
        save_list(root, other, replacing=True)  # another cohort's list, which nobody saw
    newer = replace(LIST, note="clearer")
    save_list(root, newer, replacing=True)
    assert list_lists(root) == [newer]


def test_a_list_that_grows_keeps_its_note_its_link_and_cases_that_left_the_cohort(root: Path) -> None:
    extend_list(root, "doubtful", "clinic", ("c2",))
    assert list_lists(root) == [CaseList("doubtful", "clinic", ("c2",))]
    save_list(root, LIST, replacing=True)
    (root / "cohorts" / "clinic" / "cases.csv").unlink()
    cohorts.write_cases(root, "clinic", pd.DataFrame({"case_id": ["c1", "c3"], "image": "", "label": ""}))
    extend_list(root, "doubtful", "clinic", ("c3", "c1"))
    assert list_lists(root) == [replace(LIST, cases=("c2", "c1", "c3"))]
    for name, cohort, case in (("doubtful", "other", "c3"), ("doubtful", "clinic", "c9"), ("../up", "clinic", "c1")):
        with pytest.raises(InputError):
            extend_list(root, name, cohort, (case,))
    assert list_lists(root) == [replace(LIST, cases=("c2", "c1", "c3"))]


def test_a_failure_while_writing_leaves_the_old_list(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_list(root, LIST)

    def fail(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(OSError):
        save_list(root, replace(LIST, note="new"), replacing=True)
    assert list_lists(root) == [LIST] and _files(root) == ["doubtful.json"]


@pytest.mark.parametrize(
    "change",
    [
        {"cases": []}, {"cases": "c1"}, {"cases": [1]}, {"note": None}, {"name": "other"}, {"cohort": 3},
        {"link": {"cohort": "clinic"}}, {"link": []},
    ],
    ids=str,
)  # fmt: skip
def test_a_damaged_file_is_left_out_and_nobody_overwrites_it_unasked(
    root: Path, caplog: pytest.LogCaptureFixture, change: dict[str, object]
) -> None:
    save_list(root, LIST)
    save_list(root, replace(LIST, name="good"))
    path = root / "lists" / "doubtful.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with caplog.at_level(logging.WARNING):
        assert [found.name for found in list_lists(root)] == ["good"]
    assert "list doubtful left out" in caplog.text
    with pytest.raises(InputError, match="a name that is free"):
        save_list(root, LIST)


def test_removing(root: Path) -> None:
    save_list(root, LIST)
    for name in ("gone", "../clinic"):
        with pytest.raises(InputError):
            remove_list(root, name)
    remove_list(root, "doubtful")
    assert list_lists(root) == []


def test_the_fingerprint_and_the_view_follow_the_lists(root: Path) -> None:
    prints = [catalog.refresh(root)]
    save_list(root, LIST)
    prints.append(catalog.refresh(root))
    save_list(root, replace(LIST, cases=("c3", "c1")), replacing=True)  # as many bytes as before
    prints.append(catalog.refresh(root))
    assert len(set(prints)) == 3
    rows = catalog.connect(root).execute("FROM lists").fetchall()
    assert rows == [("clinic", "doubtful", "c3"), ("clinic", "doubtful", "c1")]
    remove_list(root, "doubtful")
    assert catalog.refresh(root) == prints[0]
