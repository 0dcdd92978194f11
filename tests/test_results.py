"""Cases on disk: whole or not at all, read back bit for bit, and told apart when damaged."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from agg2exp_core.jobs import queue
from agg2exp_core.jobs.progress import Cancelled
from agg2exp_core.records import InputError, SumTable
from agg2exp_core.store import results, reviews

REGIONS = ("background", "aorta", "heart")


def table_of(absent: bool = False) -> SumTable:
    sums = np.random.default_rng(0).random((2, 2, 3)) * 1e-9
    if absent:
        sums[:, 1] = np.nan
    reasons = {"heart": "not predicted"} if absent else {}
    return SumTable(("aorta", "heart"), REGIONS, sums[0], sums[1], np.array([9, 5, 0]), reasons, sums[0] / 3)


def write_case(folder: Path, table: SumTable | None = None) -> Path:
    with results.publishing(folder), results.case_folder(folder, {"case_id": folder.name}) as new:
        results.write_importance(new, table or table_of())
        results.write_agreement(new, REGIONS, np.array([1, 0.5, np.nan]), np.array([1, 1 / 3, np.nan]))
    return folder


def test_a_table_of_which_a_write_was_lost_is_no_result(tmp_path):
    """The disk was full, and nothing told: the manifest had the hash of what was left."""
    names, scores = ("aorta",), np.ones(1)
    for name, write in (
        ("importance", lambda: results.write_importance(tmp_path, table_of())),
        ("agreement", lambda: results.write_agreement(tmp_path, names, scores, scores)),
        ("completeness", lambda: results.write_completeness(tmp_path, {"aorta": (1.0, 1.0, 0.0)})),
    ):
        (tmp_path / f"{name}.csv").symlink_to(os.devnull)
        with pytest.raises(OSError, match="not all that was written"):
            write()


@pytest.mark.parametrize("absent", [False, True])
def test_sums_read_back_bit_for_bit(tmp_path, absent):
    table = table_of(absent)
    read = results.read_importance(write_case(tmp_path / "c1", table))
    assert (read.targets, read.regions, read.absent) == (table.targets, table.regions, table.absent)
    assert read.positive.tobytes() == table.positive.tobytes() and read.negative.tobytes() == table.negative.tobytes()
    assert read.voxels.tolist() == table.voxels.tolist()
    assert read.mass_se.tobytes() == table.mass_se.tobytes() and np.isnan(read.organ_mass_se).all()


def test_a_table_from_before_errors_were_known_is_read(tmp_path):
    folder = write_case(tmp_path / "c1")
    path = folder / "importance.csv"
    path.write_text("".join(",".join(line.split(",")[:6]) + "\n" for line in path.read_text().splitlines()))
    read = results.read_importance(folder)
    assert read.positive.tobytes() == table_of().positive.tobytes() and np.isnan(read.mass_se).all()


def test_what_is_absent_is_empty_with_a_reason_and_never_zero(tmp_path):
    folder = write_case(tmp_path / "c1", table_of(absent=True))
    assert "heart,aorta,,,5,not predicted,," in (folder / "importance.csv").read_text().splitlines()
    assert (folder / "agreement.csv").read_text().splitlines()[-1] == "heart,,"


def test_a_new_folder_survives_a_power_cut_as_its_files_do(tmp_path, monkeypatch) -> None:
    """Its name does once the folder around it is synced; a file in it that is synced does not tell of that."""
    unsure, fsync, mkdir = set(), os.fsync, os.mkdir

    def synced(descriptor: int) -> None:
        fsync(descriptor)
        place = Path(f"/proc/self/fd/{descriptor}").readlink()
        unsure.difference_update([folder for folder in unsure if folder.parent == place])

    def made(path, *mode) -> None:
        mkdir(path, *mode)
        unsure.add(Path(path))

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "mkdir", made)
    monkeypatch.setattr(queue, "start_worker", lambda *_: None)
    write_case(results.case_path(tmp_path, "c", "r", "one"))
    results.write_run(tmp_path, "other", "r", {"model": "m"})
    queue.submit(tmp_path, queue.Request("c", "one", "m"))
    reviews.create_session(tmp_path, reviews.Session("s", "c", "r", ("heart",), ("one",), "open"))
    reviews.give(
        tmp_path, reviews.Verdict("s", "c", "r", "one", "heart", "final", "Ada", "accept", reviews.Seen("1", "2"))
    )
    assert [folder for folder in unsure if folder.exists()] == []


def test_a_failure_while_writing_leaves_what_was_there(tmp_path):
    folder = write_case(tmp_path / "c1")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(RuntimeError), results.case_folder(folder, {}) as new:
        (new / "importance.csv").write_text("half")
        raise RuntimeError
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["c1"]
    with pytest.raises(RuntimeError), results.case_folder(tmp_path / "c2", {}):
        raise RuntimeError
    assert not (tmp_path / "c2").exists()


@pytest.mark.parametrize("stopped", [Cancelled, KeyboardInterrupt, OSError])
@pytest.mark.parametrize("at", [1, 2])
def test_a_stop_between_the_renames_keeps_the_old_case(tmp_path, monkeypatch, stopped, at):
    folder, renamed = write_case(tmp_path / "c1"), []
    before, rename = (folder / "importance.csv").read_bytes(), Path.rename

    def stopping(path: Path, to: Path) -> Path:
        renamed.append(to)
        if len(renamed) == at:
            raise stopped()
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", stopping)
    monkeypatch.setattr(results, "_exchanged", lambda one, other: False)
    with pytest.raises(stopped):
        write_case(folder, table_of(absent=True))
    assert (folder / "importance.csv").read_bytes() == before and results.verify(folder) == []
    assert {path.name for path in tmp_path.iterdir()} <= {"c1", ".publish"}


def _killed_at_rename(number: int, folder: Path, exchange: bool) -> None:
    """In a process of its own."""
    rename, renamed = Path.rename, []

    def killing(path: Path, to: Path) -> Path:
        renamed.append(to)
        if len(renamed) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(path, to)

    Path.rename = killing
    if not exchange:
        results._exchanged = lambda one, other: False
    write_case(folder, table_of(absent=True))


@pytest.mark.parametrize("exchange", [False, True])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_kill_between_the_renames_loses_no_case(tmp_path, number, exchange):
    others = [write_case(tmp_path / name) for name in ("c", "c1-old-1", "replaced-1")]
    folder = write_case(tmp_path / "c1")
    worker = multiprocessing.get_context("fork").Process(target=_killed_at_rename, args=(number, folder, exchange))
    worker.start()
    worker.join(30)
    assert folder.exists() or not exchange
    results.recover(tmp_path)
    assert results.verify(folder) == [] and all(results.verify(other) == [] for other in others)
    assert {path.name for path in tmp_path.iterdir()} == {"c1", ".publish", *(other.name for other in others)}


def test_half_a_case_does_not_come_back(tmp_path):
    write_case(tmp_path / ".replaced-1" / "c1")
    (tmp_path / ".replaced-1" / "c1" / "importance.csv").write_text("cut")
    results.recover(tmp_path)
    results.recover(tmp_path / "none")
    assert {path.name for path in tmp_path.iterdir()} == {".publish"}


@pytest.mark.parametrize("exchange", [False, True])
def test_a_case_is_replaced_as_a_whole(tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(results, "_exchanged", lambda one, other: False)
    folder = write_case(tmp_path / "c1")
    (folder / "stray").touch()
    write_case(folder)
    assert results.verify(folder) == [] and not (folder / "stray").exists()
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["c1"]


@pytest.mark.parametrize("name", ["importance.csv", "agreement.csv"])
def test_every_flipped_bit_is_found(tmp_path, name):
    folder = write_case(tmp_path / "c1")
    whole = (folder / name).read_bytes()
    for place in np.random.default_rng(0).integers(0, len(whole) * 8, 40):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << (place % 8)
        (folder / name).write_bytes(damaged)
        assert results.verify(folder) == [f"{name} is damaged"]
    (folder / name).unlink()
    assert results.verify(folder) == [f"{name} is missing"]
    assert results.verify(folder, only=["prediction.nii.gz"]) == []


def test_every_flipped_bit_of_a_manifest_is_found_unless_it_means_the_same(tmp_path):
    path = write_case(tmp_path / "c1") / "manifest.json"
    whole = path.read_bytes()
    for place in range(len(whole) * 8):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        assert results.verify(path.parent) or json.loads(damaged) == json.loads(whole), bytes(damaged)


def test_a_part_is_not_verified_by_a_manifest_that_is_damaged(tmp_path):
    path = write_case(tmp_path / "c1") / "manifest.json"
    path.write_text(path.read_text().replace("agreement.csv", "agreemenu.csv"))
    assert results.verify(path.parent, only=["importance.csv"]) == ["manifest.json is missing or damaged"]


def test_a_manifest_from_before_it_protected_itself_is_good(tmp_path):
    path = write_case(tmp_path / "c1") / "manifest.json"
    older = json.loads(path.read_text())
    del older["files"]["manifest.json"]
    path.write_text(json.dumps(older))
    assert results.verify(path.parent) == []


def test_without_a_sound_manifest_nothing_is_finished(tmp_path):
    folder = write_case(tmp_path / "c1")
    (folder / "manifest.json").write_text("{")
    assert results.read_manifest(folder) is None and results.verify(folder) != []


def _race(folder: Path, number: int) -> None:
    table = table_of()
    same = SumTable(table.targets, REGIONS, table.positive + number, table.negative, table.voxels)
    write_case(folder, same)


def test_workers_on_one_case_leave_one_whole_result(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_race, args=(tmp_path / "c1", number)) for number in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0] * 8
    assert results.verify(tmp_path / "c1") == []
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["c1"]


def test_a_run_takes_no_cases_that_are_computed_otherwise(tmp_path):
    info = {"model": "m", "model_hash": "1", "method": "gradient", "parameters": {}, "values": "sums"}
    results.write_run(tmp_path, "c", "r", info)
    results.write_run(tmp_path, "c", "r", info)
    with pytest.raises(InputError, match="model_hash"):
        results.write_run(tmp_path, "c", "r", info | {"model_hash": "2"})


def test_completeness_reads_back(tmp_path):
    gaps = {"heart": (1.5, 2.0, 0.25)}
    results.write_completeness(tmp_path, gaps)
    assert results.read_completeness(tmp_path) == gaps
    assert results.read_completeness(tmp_path / "none") == {}


def test_a_damaged_completeness_is_refused_or_reads_as_it_is_written(tmp_path):
    results.write_completeness(tmp_path, {"heart": (1.5, 2.0, 0.25)})
    whole = (tmp_path / "completeness.csv").read_bytes()
    for place in range(len(whole) * 8):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << (place % 8)
        (tmp_path / "completeness.csv").write_bytes(damaged)
        with contextlib.suppress(InputError):
            results.read_completeness(tmp_path)


@pytest.mark.parametrize("text", ["", "target,region\n", "target,region,positive,negative,voxels,absent,more\n"])
def test_a_table_with_other_columns_is_refused(tmp_path, text):
    (tmp_path / "importance.csv").write_text(text)
    with pytest.raises(InputError, match="needs the columns"):
        results.read_importance(tmp_path)


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a\\b"])
def test_a_map_stays_in_the_folder_of_its_case(name: str) -> None:
    with pytest.raises(InputError, match="not a path"):
        results.map_name(name)
