"""A data root looked through to the last byte: what does not verify is put aside, what can be rebuilt is."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from agg2exp_core.files import read_json, sync_folder
from agg2exp_core.organs import load_label_set
from agg2exp_core.records import InputError, Method
from agg2exp_core.store import catalog, parquet_cache, region_sets, results
from agg2exp_core.store.cohorts import list_cases, list_cohorts
from agg2exp_core.store.lists import damaged_lists
from agg2exp_core.store.reviews import list_sessions, read_session, read_verdicts

QUARANTINE = "quarantine"
Report = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Finding:
    """What is wrong with which part of a root, and what to do about it, as a command where there is one."""

    place: str
    wrong: str
    remedy: str


def check_root(root: Path, report: Report) -> list[Finding]:
    """Verify every finished case, and read all else that users or commands wrote. Caches are built anew.

    A case that does not verify is moved to quarantine/, where nothing reads it; nothing is deleted.
    """
    findings = [*_cohorts(root), *_label_sets(root), *_lists(root), *_reviews(root)]
    there = (root / "runs").glob("[!.]*/[!.]*/")  # whose run.json may be lost
    runs = sorted(run for run in there if (run / "run.json").exists() or (run / "cases").exists())
    for run in runs:
        results.recover(run / "cases")
    cases = [folder for run in runs for folder in sorted((run / "cases").glob("[!.]*")) if folder.is_dir()]
    for number, folder in enumerate(cases):
        report(number, len(cases), f"{folder.parents[2].name}, {folder.parents[1].name}, {folder.name}")
        if results.verify(folder):
            findings += _put_aside(root, folder)
    for run in runs:
        findings += _run(root, run)
        parquet_cache.rebuild(run)
    return findings


def _put_aside(root: Path, folder: Path) -> Iterator[Finding]:
    """Move a case's folder out of its run; how to compute it again."""
    run = folder.parents[1]
    aside = root / QUARANTINE / run.parent.name / run.name / f"{folder.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    while aside.exists():
        aside = aside.with_name(f"{aside.name}-again")
    with results.publishing(folder):
        # Another process may have been replacing it while it was read.
        if not (wrong := results.verify(folder)):
            return
        aside.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(aside)
        sync_folder(folder.parent)
    remedy = f"put aside in {aside.relative_to(root)}; compute it again: {_command(run, folder.name)}"
    told = "; ".join(wrong[:3]) + ("; …" if len(wrong) > 3 else "")
    yield Finding(folder.relative_to(root).as_posix(), told, remedy)


def _run(root: Path, run: Path) -> Iterator[Finding]:
    """What a run has beside its cases, and whether these belong to it."""
    place = run.relative_to(root).as_posix()
    about = read_json(run / "run.json")
    manifests = {folder: results.read_manifest(folder) or {} for folder in sorted((run / "cases").glob("[!.]*"))}
    if not about:
        again = f", or explain a case again: {_command(run, next(iter(manifests)).name)}" if manifests else ""
        yield Finding(f"{place}/run.json", "it is missing or damaged", f"bring it back from a copy{again}")
    for folder, manifest in manifests.items():
        if different := results.unlike(about, manifest):
            wrong = f"it was computed with another {' and '.join(different)} than its run"
            yield Finding(f"{place}/cases/{folder.name}", wrong, f"compute it again: {_command(run, folder.name)}")
    for wrong in region_sets.complaints(run):
        yield Finding(f"{place}/regions", wrong, "sum it again with agg2exp aggregate")
    try:
        if (run / "outliers.csv").exists():
            catalog.read_outliers(run / "outliers.csv")
    except (OSError, pa.ArrowException, InputError) as error:
        wrong = " ".join(str(error).split())
        yield Finding(f"{place}/outliers.csv", wrong, "score again with agg2exp outliers")


def _command(run: Path, case_id: str) -> str:
    """What computes one case of a run again; an imported table has to be imported again."""
    cases = (run / "cases" / case_id, *sorted((run / "cases").glob("[!.]*")))  # where run.json is lost, any tells
    about = read_json(run / "run.json") or next(filter(None, map(results.read_manifest, cases)), {})
    if not about.get("model") or about.get("values") == "shares":
        return "import its table again"
    try:
        method = Method.of(str(about.get("method")), about.get("parameters") or {})
    except InputError:
        return "explain it again with the version of this program that made the run"
    words = ["agg2exp", "explain", "--model", str(about["model"]), "--cohort", run.parent.name, "--case", case_id]
    return shlex.join([*words, *method.options()])


def _cohorts(root: Path) -> Iterator[Finding]:
    for cohort in list_cohorts(root):
        place = f"cohorts/{cohort}"
        try:
            cases = list_cases(root, cohort)
        except InputError as error:
            yield Finding(place, str(error), "mend cases.csv")
            continue
        gone = [case.case_id for case in cases for file in (*case.images, case.label) if file and not file.is_file()]
        if gone:
            some = ", ".join(gone[:5]) + (" …" if len(gone) > 5 else "")
            yield Finding(place, f"files of {some} are not where cases.csv says", "bring them back, or mend cases.csv")


def _label_sets(root: Path) -> Iterator[Finding]:
    for path in sorted((root / "label_sets").glob("*.csv")):
        try:
            load_label_set(path.stem, root)
        except InputError as error:
            yield Finding(f"label_sets/{path.name}", str(error), "mend it")


def _lists(root: Path) -> Iterator[Finding]:
    for name in damaged_lists(root):
        yield Finding(f"lists/{name}.json", "it is damaged", "bring it back from a copy; it is not shown meanwhile")


def _reviews(root: Path) -> Iterator[Finding]:
    for name in list_sessions(root):
        try:
            damaged = read_verdicts(root, read_session(root, name)).damaged
        except InputError as error:
            damaged = (str(error),)
        for wrong in damaged:
            yield Finding(f"reviews/{name}", wrong, "bring it back from a copy; it is not counted meanwhile")
