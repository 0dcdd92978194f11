"""Lists of cases: what is read, what is refused, and how a folder of scans becomes one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from agg2exp_core import cli, volumes
from agg2exp_core.records import InputError, Volume
from agg2exp_core.store import cohorts
from agg2exp_core.store.cohorts import Brought
from agg2exp_core.store.layouts import scans_of


def cases_csv(root: Path, text: str) -> Path:
    path = root / "cohorts" / "c" / "cases.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return root


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    folder.mkdir()
    for name in ("b.nii", "a.v2.nii.gz"):
        write_scan(folder / name)
    for name in (".hidden.nii", "notes.txt"):
        (folder / name).touch()
    return folder


def write_scan(path: Path, size: int = 4) -> None:
    volumes.write_volume(path, Volume(np.zeros((size, 4, 4), np.uint8), np.eye(4)))


def test_values_are_text_as_written(tmp_path):
    root = cases_csv(tmp_path, '\ufeffcase_id,image,label,age,note\r\n007,i/7.nii,,63,NA\r\n2020-01-02,,,,"a,\nb"\r\n')
    table = cohorts.read_cases(root, "c")
    assert list(table["case_id"]) == ["007", "2020-01-02"] and list(table["note"]) == ["NA", "a,\nb"]
    case = cohorts.find_case(root, "c", "007")
    assert case.image == root / "cohorts" / "c" / "i" / "7.nii" and case.label is None
    assert case.metadata == {"age": "63", "note": "NA"}
    assert cohorts.find_case(root, "c", "2020-01-02").image is None


def test_a_case_is_found_without_reading_a_long_list_again_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohorts.write_cases(tmp_path, "c", pd.DataFrame({"case_id": ["a"], "image": "", "label": "", "age": "63"}))
    read, times = cohorts.read_cases, []
    monkeypatch.setattr(cohorts, "read_cases", lambda *place: times.append(place) or read(*place))
    assert [cohorts.find_case(tmp_path, "c", "a").metadata["age"] for _ in range(3)] == ["63"] * 3 and len(times) == 1
    cohorts.append_case(tmp_path, "c", {"case_id": "b", "image": "", "label": "", "age": "64"})
    assert cohorts.find_case(tmp_path, "c", "b").metadata["age"] == "64"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "needs the columns"),
        ("case_id,image\na,b\n", "without label"),
        ("case_id,image,label,age,age\na,b,c,1,2\n", "a column twice"),
        ("case_id,image,label\na,b,c\nd,e\n", "line 3"),
        ("case_id,image,label\na,,\nb,,\na,,\n", "'a' twice"),
        ("case_id,image,label\n../a,,\n", "case must be"),
        ("case_id,image,label\n.a,,\n", "begin with no dot"),
        ('case_id,image,label\n"a,,\n', "well formed"),
    ],
)
def test_a_bad_list_is_refused_in_one_line(tmp_path, text, said):
    with pytest.raises(InputError, match=said) as refused:
        cohorts.read_cases(cases_csv(tmp_path, text), "c")
    assert "\n" not in str(refused.value)


def test_an_unknown_cohort_or_case_is_told_what_there_is(tmp_path):
    root = cases_csv(tmp_path, "case_id,image,label\na,,\n")
    with pytest.raises(InputError, match="allowed: c"):
        cohorts.read_cases(root, "d")
    with pytest.raises(InputError, match="allowed: a"):
        cohorts.find_case(root, "c", "b")
    for climbing in ("..", "../c", "c/../c", ""):
        with pytest.raises(InputError):
            cohorts.read_cases(root, climbing)


def test_a_folder_becomes_a_cohort(tmp_path, scans):
    labels = tmp_path / "labels"
    labels.mkdir()
    write_scan(labels / "b.nii.gz")
    metadata = tmp_path / "about.csv"
    metadata.write_text("case_id,age\nb,50\n")
    root = tmp_path / "root"
    assert cohorts.add_cohort(root, "mine", scans, Brought(labels, metadata)) == (2, [])
    assert cohorts.list_cohorts(root) == ["mine"]
    one, other = (cohorts.find_case(root, "mine", name) for name in ("a.v2", "b"))
    assert (one.image, one.label, one.metadata) == (scans / "a.v2.nii.gz", None, {"age": ""})
    assert (other.image, other.label, other.metadata) == (scans / "b.nii", labels / "b.nii.gz", {"age": "50"})


def test_scans_inside_the_root_move_with_it(tmp_path, scans):
    (tmp_path / "old").mkdir()
    scans.rename(tmp_path / "old" / "scans")
    cohorts.add_cohort(tmp_path / "old", "mine", tmp_path / "old" / "scans")
    (tmp_path / "old").rename(tmp_path / "new")
    assert cohorts.find_case(tmp_path / "new", "mine", "b").image.resolve().is_file()


def test_what_cannot_be_a_cohort_is_refused_and_nothing_written(tmp_path, scans):
    root, stray = tmp_path / "root", tmp_path / "stray.csv"
    empty = tmp_path / "empty"
    empty.mkdir()
    stray.write_text("case_id,age\nz,5\n")
    attempts = [
        lambda: cohorts.add_cohort(root, "m", empty),
        lambda: cohorts.add_cohort(root, "m", tmp_path / "nowhere"),
        lambda: cohorts.add_cohort(root, "../m", scans),
        lambda: cohorts.add_cohort(root, "m", scans, Brought(metadata=stray)),
        lambda: cohorts.add_cohort(root, "m", empty / "..", Brought(scans)),
        lambda: cohorts.add_cohort(root, "m", scans, Brought(empty)),
    ]
    for attempt in attempts:
        with pytest.raises(InputError):
            attempt()
    (scans / "b.nii.gz").touch()
    with pytest.raises(InputError, match=r"b\.nii"):
        cohorts.add_cohort(root, "m", scans)
    assert not root.exists()


def test_a_cohort_is_not_overwritten(tmp_path, scans):
    cohorts.add_cohort(tmp_path, "m", scans)
    with pytest.raises(InputError, match="free"):
        cohorts.add_cohort(tmp_path, "m", scans)


def test_of_two_cohorts_of_a_name_made_at_once_one_is_told(tmp_path, scans, monkeypatch):
    real = cohorts._write_new

    def late(path, columns, rows):
        monkeypatch.setattr(cohorts, "_write_new", real)
        cohorts.write_cases(tmp_path, "m", pd.DataFrame({"case_id": ["other"], "image": "", "label": ""}))
        real(path, columns, rows)

    monkeypatch.setattr(cohorts, "_write_new", late)
    with pytest.raises(InputError, match="free"):
        cohorts.add_cohort(tmp_path, "m", scans)
    assert list(cohorts.read_cases(tmp_path, "m")["case_id"]) == ["other"]


def test_a_folder_that_is_named_as_a_scan_is_none(tmp_path, scans):
    (scans / "folder.nii.gz").mkdir()
    assert "folder" not in scans_of(scans)


def test_cases_brought_at_once_are_all_kept(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        for number in range(24):
            row = {"case_id": f"c{number // 2}", "image": f"{number // 2}.nii", "label": ""}
            pool.submit(cohorts.append_case, tmp_path, "uploads", row)
    assert sorted(cohorts.read_cases(tmp_path, "uploads")["case_id"]) == sorted(f"c{n}" for n in range(12))


def test_a_label_map_of_another_grid_is_refused_before_anything_is_listed(tmp_path: Path) -> None:
    scans, labels = tmp_path / "scans", tmp_path / "labels"
    for folder, size in ((scans, 4), (labels, 5)):
        folder.mkdir()
        write_scan(folder / "one.nii.gz", size)
    with pytest.raises(InputError, match="one: labels must lie on the scan's grid"):
        cohorts.add_cohort(tmp_path / "root", "new", scans, Brought(labels))
    assert not (tmp_path / "root").exists()


def test_a_command_reads_the_list_of_a_cohort_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names, read = [f"case-{number}" for number in range(50)], []
    cohorts.write_cases(tmp_path, "c", pd.DataFrame({"case_id": names, "image": "", "label": ""}))
    read_cases = cohorts.read_cases
    monkeypatch.setattr(cohorts, "read_cases", lambda *place: read.append(place) or read_cases(*place))
    assert [case.case_id for case in cli._chosen_cases(tmp_path, "c", None)] == names and len(read) == 1
    assert [case.case_id for case in cli._chosen_cases(tmp_path, "c", names[3:5])] == names[3:5]
