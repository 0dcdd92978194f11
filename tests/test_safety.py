"""What comes from outside and means harm, or is merely broken: by the thousand, and a tenth of that in every run.

`make soak` makes the counts whole.
"""

from __future__ import annotations

import builtins
import csv
import gzip
import io
import os
import pickle
import random
import shutil
import subprocess
import timeit
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from command import run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import write_bundle

from agg2exp_core import masked, pseudonyms, spreadsheet, volumes
from agg2exp_core.jobs import queue
from agg2exp_core.model.bundle import find_bundle, load_weights
from agg2exp_core.model.fitting import Fitting
from agg2exp_core.organs import load_label_set
from agg2exp_core.records import InputError
from agg2exp_core.settings import ID
from agg2exp_core.store import cohorts, lists, region_sets, results, reviews

SOAK = 10 if os.environ.get("AGG2EXP_SOAK") else 1

# ---- scans -----------------------------------------------------------------------------------------


def _whole_scan() -> bytes:
    array = np.random.default_rng(0).integers(-1000, 1000, (5, 4, 3)).astype(np.int16)
    return nib.Nifti1Image(array, np.diag([-1.5, 1.5, 3, 1])).to_bytes()


def test_a_broken_header_is_a_scan_or_is_refused(tmp_path: Path) -> None:
    """Bytes of the header changed at random: never another error, never more memory than allowed."""
    rng, whole, path, read = random.Random(0), _whole_scan(), tmp_path / "scan.nii", 0
    for _ in range(2_000 * SOAK):
        broken = bytearray(whole)
        for _ in range(rng.choice((1, 1, 2, 4, 16))):
            broken[rng.randrange(352)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        path.write_bytes(broken)
        try:
            read += np.isfinite(volumes.read_volume(path).array).all()
            volumes.read_labels(path)
        except InputError as refused:
            assert "\n" not in str(refused)
    assert read > 100 * SOAK


# ---- names and paths -------------------------------------------------------------------------------

CLIMBS = (
    "..",
    "../..",
    "..\\..",
    "....//",
    "%2e%2e/%2e%2e",
    "..%2f..",
    "\u2025/",
    "..;/",
    "/",
    "//",
    "\\\\host\\share",
    "~",
)
TAILS = ("", "/secret", "\\secret", "/secret\0.csv", "/./secret", "/secret/", "/c/../../secret", "\n", " ", "secret:x")
HEADS = ("", "c/", "./", "c\0", "a" * 70, "C:", "file://", ".", "c\\", "-")


def _payloads() -> list[str]:
    rng = random.Random(0)
    made = [head + climb + tail for head in HEADS for climb in CLIMBS for tail in TAILS]
    made += ["".join(rng.choices("./\\~%:\0\n cs", k=rng.randint(1, 12))) for _ in range(2_000)]
    rng.shuffle(made)
    return [name for name in made if not ID.fullmatch(name)][:2_000]


def _askers(root: Path) -> list[Callable[[str], Any]]:
    """Whatever takes a name and could make a path of it, to read or to write."""
    case = cohorts.find_case(root, "c", "one")
    return [
        partial(cohorts.read_cases, root), partial(cohorts.find_case, root, "c"), partial(find_bundle, root),
        lambda name: load_label_set(name, root), lambda name: cohorts.add_cohort(root, name, root / "scans"),
        lambda name: results.case_path(root, name, "r", "one"), lambda name: results.case_path(root, "c", name, "one"),
        lambda name: results.case_path(root, "c", "r", name), results.map_name,
        lambda name: results.write_run(root, "c", name, {}), lambda name: results.write_run(root, name, "r", {}),
        lambda name: masked.find_run(root, "c", name), region_sets.checked_set,
        lambda name: lists.save_list(root, lists.CaseList(name, "c", (case.case_id,))),
        lambda name: lists.remove_list(root, name), lambda name: lists.extend_list(root, name, "c", (case.case_id,)),
        partial(queue.state, root), partial(queue.cancel, root), partial(queue.log, root),
        partial(reviews.read_session, root), lambda name: reviews.read_place(root, name, "me"),
    ]  # fmt: skip


def test_no_name_leads_out_of_the_root(tmp_path: Path) -> None:
    root = tmp_path / "outer" / "root"
    (root / "scans").mkdir(parents=True)
    (root / "scans" / "one.nii").write_bytes(_whole_scan())
    cohorts.add_cohort(root, "c", root / "scans")
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "outer" / "secret").mkdir()
    before = _contents(tmp_path)
    for name in _payloads():
        for ask in _askers(root):
            try:
                found = ask(name)
            except InputError as refused:
                assert "\n" not in str(refused)
            else:
                assert not isinstance(found, Path) or found.resolve().is_relative_to(root), name
    assert _contents(tmp_path) == before


def _contents(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize("row", ["1,heart,organs,red'><script>alert(1)</script>", "1,heart,organs,red", "1,heart", "1"])
def test_a_label_set_brings_colours_and_nothing_else(tmp_path: Path, row: str) -> None:
    (tmp_path / "label_sets").mkdir()
    (tmp_path / "label_sets" / "own.csv").write_text(f"id,name,group,color\n{row}\n")
    with pytest.raises(InputError, match="color"):
        load_label_set("own", tmp_path)


# ---- weights ---------------------------------------------------------------------------------------


class _Runs:
    """Unpickled, it calls what it was made with."""

    def __init__(self, function: Any, *arguments: object):
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def _harmful(canary: Path) -> list[Any]:
    code = f"open({str(canary)!r}, 'w').close()"
    return [
        _Runs(os.system, f"touch {canary}"), _Runs(subprocess.Popen, ["touch", str(canary)]),
        _Runs(builtins.exec, code), _Runs(builtins.eval, code), _Runs(builtins.open, str(canary), "w"),
        _Runs(os.mknod, str(canary)), _Runs(shutil.copy, __file__, str(canary)), _Runs(timeit.timeit, code),
        _Runs(os.symlink, __file__, str(canary)), _Runs(Path.touch, canary),
    ]  # fmt: skip


def _in_weights(harmful: Any, kind: str, path: Path) -> None:
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"state_dict": {"w": harmful}}))
    elif kind == "zip":
        torch.save({"w": torch.zeros(1), "extra": harmful}, path)
    else:
        torch.save({"w": torch.zeros(1), "extra": harmful}, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_weights_run_nothing(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    canary, labels = tmp_path / "canary", tmp_path / "labels.csv"
    labels.write_text("id,name\n0,background\n1,heart\n")
    bundle = write_bundle(tmp_path / "root")
    (bundle.folder / "models" / "model.safetensors").unlink()
    for number, harmful in enumerate(_harmful(canary)):
        path = tmp_path / f"{number}.pt"
        _in_weights(harmful, kind, path)
        with pytest.raises(InputError, match="weights must be"):
            load_weights(path)
        with pytest.raises(InputError, match="weights must be"):
            Fitting.load(Fitting.__new__(Fitting), path)  # as a training that is resumed
        words = ("--labels", labels, "--spacing", "4,4,4", "--window", "16,16,16", "--intensity", "-1000,1000")
        assert run("model", "add", path, "--name", f"m{number}", *words, "--data", tmp_path / "root") == 2
        path.replace(bundle.folder / "models" / "model.pt")
        assert run("model", "check", "tiny", "--data", tmp_path / "root") == 2
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("agg2exp: ")]
        assert len(said) == 2
    assert not canary.exists()


def test_a_zip_that_names_files_outside_writes_none(tmp_path: Path) -> None:
    path = tmp_path / "in" / "w.pt"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../escaped", "x")
        archive.writestr("archive/data.pkl", pickle.dumps({}))
    with pytest.raises(InputError, match="weights must be"):
        load_weights(path)
    assert [found.name for found in tmp_path.rglob("*") if found.is_file()] == ["w.pt"]


# ---- tables for spreadsheets -----------------------------------------------------------------------


@given(st.lists(st.text(), min_size=1, max_size=20))
@settings(max_examples=100 * SOAK, deadline=None, suppress_health_check=list(HealthCheck))
def test_texts_come_back_from_a_csv_and_none_is_a_formula(texts: list[str]) -> None:
    written = spreadsheet.to_csv(pd.DataFrame({"text": texts, "number": -1.5}))
    header, *rows = csv.reader(io.StringIO(written, newline=""))
    assert header == ["text", "number"] and len(rows) == len(texts)
    for (cell, number), text in zip(rows, texts, strict=True):
        assert cell in (text, f"'{text}") and number == "-1.5"
        assert not cell.startswith(("=", "+", "-", "@", "\t", "\r")) or spreadsheet.NUMBER.fullmatch(cell)


def test_an_answer_in_the_terminal_brings_no_formula(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = {"case_id": "one", "image": "", "label": "", "note": "=1+1", "depth": "-1.5"}
    cohorts.append_case(tmp_path, "c", case)
    assert run("query", "SELECT note, depth FROM cases", "--format", "csv", "--data", tmp_path) == 0
    assert capsys.readouterr().out == "note,depth\n'=1+1,-1.5\n"
    assert run("query", "SELECT note FROM cases WHERE depth > 0", "--format", "csv", "--data", tmp_path) == 0
    assert capsys.readouterr().out == "note\n"


# ---- patients --------------------------------------------------------------------------------------

SECRET = "DOE^JANE"


def test_what_a_file_says_of_its_patient_goes_nowhere(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root, scans = tmp_path / "root", tmp_path / "scans"
    scans.mkdir()
    array = np.random.default_rng(0).normal(-300, 200, (20, 18, 17)).astype(np.int16)
    image = nib.Nifti1Image(array, np.diag([-4.0, 4, 4, 1]))
    image.header["descrip"] = image.header["aux_file"] = image.header["intent_name"] = SECRET
    image.header["db_name"] = SECRET
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", SECRET.encode()))
    nib.save(image, scans / "one.nii.gz")
    assert SECRET.encode() in gzip.decompress((scans / "one.nii.gz").read_bytes())
    torch.manual_seed(0)
    write_bundle(root)
    named = tmp_path / "named" / f"{SECRET}.nii.gz"
    named.parent.mkdir()
    shutil.copy(scans / "one.nii.gz", named)
    explained = "--model", "tiny", "--cohort", "c", "--method", "gradient"
    alone = "--model", "tiny", "--image", named, "--out"
    result = "--cohort", "c", "--run", "tiny-gradient"
    for words in (
        ("cohort", "add", scans, "--name", "c"),
        ("cohort", "check", "c"),
        ("explain", *explained),
        ("predict", *explained[:4], "--out", tmp_path / "predicted"),
        ("export", "saliency", *result, "--out", tmp_path / "exported"),
        ("explain", *alone, tmp_path / "one-explained", "--method", "gradient"),
        ("predict", *alone, tmp_path / "one-predicted"),
    ):
        assert run(*words, "--data", root) == 0
    came = {scans, named.parent}
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path.parent not in came]
    assert len([path for path in written if path.name.endswith(".nii.gz")]) >= 6
    for path in written:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        assert b"JANE" not in content and "JANE" not in str(path), path
    assert "JANE" not in "".join(capfd.readouterr())


def test_exports_name_cases_as_only_the_key_can_tell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, scans, key = tmp_path / "root", tmp_path / "scans", tmp_path / "key"
    scans.mkdir()
    for name in ("smith", "jones"):
        (scans / f"{name}.nii").write_bytes(_whole_scan())
    torch.manual_seed(0)
    write_bundle(root)
    for words in (
        ("cohort", "add", scans, "--name", "c"),
        ("explain", "--model", "tiny", "--cohort", "c", "--method", "gradient"),
    ):
        assert run(*words, "--data", root) == 0
    result = "--cohort", "c", "--run", "tiny-gradient", "--pseudonyms", key, "--data", root
    tables = []
    for name in ("one.csv", "two.csv"):
        assert run("export-csv", tmp_path / name, *result) == 0
        tables.append((tmp_path / name).read_text())
    assert run("export", "saliency", "--out", tmp_path / "out", *result) == 0
    names = [line.partition(",")[0] for line in tables[0].splitlines()[1:]]
    named = pseudonyms.pseudonyms(key)
    assert tables[0] == tables[1] and names == sorted(map(named, ("smith", "jones")))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert key.stat().st_mode & 0o077 == 0 and pseudonyms.pseudonyms(tmp_path / "other")("smith") not in names
    key.write_text("short")
    assert run("export-csv", tmp_path / "three.csv", *result) == 2 and not (tmp_path / "three.csv").exists()
    assert "64 hexadecimal digits" in capsys.readouterr().err
