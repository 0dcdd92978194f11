"""`agg2exp check`: what is damaged is put aside and never used, and can be computed again as it was."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import run
from tiny import write_bundle, write_cohort

from agg2exp_core import pipeline
from agg2exp_core.records import InputError, Method
from agg2exp_core.settings import SHIPPED
from agg2exp_core.store import catalog, cohorts, lists, parquet_cache, queries, region_sets, results
from agg2exp_core.store.checking import check_root

RUN = "tiny-smoothgrad-2-seed3"


def silent(done: int, total: int, note: str) -> None: ...


@pytest.fixture
def root(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    root = tmp_path / "root"
    write_bundle(root)
    write_cohort(root, ("one", "two"), np.diag([4.0, 4, 4, 1]), (18, 14, 12))
    plan = pipeline.Plan("tiny", Method(samples=2, seed=3, estimator="plain"))
    for case in cohorts.list_cases(root, "c"):
        pipeline.Explaining(root, plan).cohort_case("c", case, silent)
    return root


def explained(root: Path) -> list[str]:
    sql = "SELECT DISTINCT case_id FROM importance ORDER BY 1"
    return list(queries.run_user_query(catalog.connect(root), sql)["case_id"])


def test_a_sound_root_verifies(root, capsys) -> None:
    assert run("check", "--data", root) == 0
    assert "verifies" in capsys.readouterr().out and explained(root) == ["one", "two"]


@pytest.mark.parametrize("name", ["importance.csv", "manifest.json", "prediction.nii.gz", "saliency/heart.nii.gz"])
def test_a_damaged_case_is_put_aside_and_computed_again(root, capsys, name) -> None:
    folder = results.case_path(root, "c", RUN, "one")
    before = (folder / "importance.csv").read_bytes()
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 4
    (folder / name).write_bytes(content)
    assert run("check", "--data", root) == 2
    told = capsys.readouterr()
    assert "1 that did not" in told.err and explained(root) == ["two"]
    aside = root / re.search(r"put aside in (\S+);", told.out)[1]
    assert not folder.exists() and (aside / name).read_bytes() == bytes(content)
    again = shlex.split(told.out.split("compute it again: ")[1].strip())
    assert run(*again[1:], "--data", root) == 0
    assert (folder / "importance.csv").read_bytes() == before and explained(root) == ["one", "two"]
    assert run("check", "--data", root) == 0


def test_a_damaged_cache_is_built_again(root) -> None:
    before = explained(root)
    cache = root / "runs" / "c" / RUN / "importance.parquet"
    content = bytearray(cache.read_bytes())
    content[len(content) // 3] ^= 1
    cache.write_bytes(content)
    assert check_root(root, silent) == [] and explained(root) == before


def test_lists_label_sets_and_files_that_are_gone_are_told(root, tmp_path) -> None:
    (tmp_path / "scans" / "one.nii.gz").unlink()
    (root / "label_sets").mkdir()
    (root / "label_sets" / "odd.csv").write_text("id,name\nx,y\n")
    (root / "cohorts" / "broken").mkdir()
    (root / "cohorts" / "broken" / "cases.csv").write_text("case_id\n")
    found = {finding.place: finding.wrong for finding in check_root(root, silent)}
    assert set(found) == {"cohorts/c", "cohorts/broken", "label_sets/odd.csv"} and "files of one" in found["cohorts/c"]


@pytest.mark.parametrize("content", [None, "", "{", "[]"])
def test_a_lost_run_json_is_told_and_comes_back(root, capsys, content) -> None:
    path, before = root / "runs" / "c" / RUN / "run.json", explained(root)
    whole = path.read_text()
    path.unlink() if content is None else path.write_text(content)
    assert run("check", "--data", root) == 2
    told = capsys.readouterr().out
    assert f"runs/c/{RUN}/run.json: it is missing or damaged" in told and explained(root) == []
    again = shlex.split(told.split("explain a case again: ")[1].strip())
    assert run(*again[1:], "--data", root) == 0
    assert path.read_text() == whole and explained(root) == before and check_root(root, silent) == []


def test_a_case_is_damaged_where_the_run_json_is_lost_too(root, capsys) -> None:
    run_folder, before = root / "runs" / "c" / RUN, explained(root)
    (run_folder / "run.json").unlink()
    (run_folder / "cases" / "one" / results.MANIFEST).write_text("")
    assert run("check", "--data", root) == 2
    told = next(line for line in capsys.readouterr().out.splitlines() if "cases/one" in line)
    assert run(*shlex.split(told.split("compute it again: ")[1])[1:], "--data", root) == 0
    assert explained(root) == before and check_root(root, silent) == []


def test_a_run_whose_json_is_lost_takes_no_other_cases(root) -> None:
    path = root / "runs" / "c" / RUN / "run.json"
    info = json.loads(path.read_text())
    for lost in (path.unlink, lambda: path.write_text("{")):
        lost()
        with pytest.raises(InputError, match="another model_hash"):
            results.write_run(root, "c", RUN, info | {"model_hash": "another"})
    results.write_run(root, "c", RUN, info)
    assert json.loads(path.read_text()) == info


def test_cases_of_another_run_are_told(root) -> None:
    path = root / "runs" / "c" / RUN / "run.json"
    path.write_text(path.read_text().replace('"seed": 3', '"seed": 4'))
    wrong = {finding.place: finding.wrong for finding in check_root(root, silent)}
    assert set(wrong) == {f"runs/c/{RUN}/cases/{name}" for name in ("one", "two")}
    assert "another parameters than its run" in wrong[f"runs/c/{RUN}/cases/one"]


def test_damaged_lists_outliers_and_region_sets_are_told(root) -> None:
    folder = root / "runs" / "c" / RUN
    lists.save_list(root, lists.CaseList("mine", "c", ("one",)))
    region_sets.write_case(folder, "pathology", "one", [])
    (folder / "outliers.csv").write_text(",".join(catalog.OUTLIER_COLUMNS) + "\n")
    assert check_root(root, silent) == []
    for path in (root / "lists" / "mine.json", folder / "outliers.csv", folder / "regions" / "pathology" / "one.csv"):
        path.write_text("case_id\n1")
    found = {finding.place: finding.wrong for finding in check_root(root, silent)}
    assert set(found) == {"lists/mine.json", f"runs/c/{RUN}/outliers.csv", f"runs/c/{RUN}/regions"}
    assert all("\n" not in wrong for wrong in found.values())


def test_what_is_shipped_is_sound(tmp_path) -> None:
    for part in ("runs", "label_sets"):
        shutil.copytree(SHIPPED / part, tmp_path / part, ignore=shutil.ignore_patterns("uploads"))
    assert check_root(tmp_path, silent) == []


def test_a_case_that_is_replaced_while_it_is_read_stays(root, monkeypatch) -> None:
    verify, looks = results.verify, iter([["saliency/heart.nii.gz is damaged"]])
    monkeypatch.setattr(results, "verify", lambda folder, *only: next(looks, None) or verify(folder, *only))
    assert check_root(root, silent) == [] and explained(root) == ["one", "two"]
    assert not (root / "quarantine").exists()


def test_caches_are_there_while_they_are_built_again(root, monkeypatch) -> None:
    con, read = catalog.connect(root), parquet_cache._read_case
    counted = "SELECT count(DISTINCT case_id) FROM importance"
    asked = []

    def asking(*case: Any) -> Any:
        asked.append(con.execute(counted).fetchone())
        return read(*case)

    monkeypatch.setattr(parquet_cache, "_read_case", asking)
    assert check_root(root, silent) == [] and asked == [(2,), (2,)]
