"""Region sets of a run, beside the organs: `runs/<cohort>/<run>/regions/<name>/<case>.csv`, a file a case.

Sums over masks that may overlap the organs and so are no part of the partition. Each row names the mask and the
attribution that it was made of; one whose attribution has been computed anew since is left out when it is read.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import pyarrow as pa

from agg2exp_core.files import make_folder, state, write_text
from agg2exp_core.records import InputError
from agg2exp_core.settings import ID, checked_id
from agg2exp_core.store import results
from agg2exp_core.store.parquet_cache import read_numbers

ORGANS = "organs"
"""The region set that every run has: the predicted organs, which partition the scan."""


@dataclass(frozen=True)
class MaskedSum:
    """One target's attribution on one region: Σ max(a, 0), Σ max(−a, 0) and voxels; the totals are the whole scan's.

    absent: why there is no sum; the numbers are None then. mask_sha256: of the decompressed mask. saliency_sha256: of
    the attribution's file, as the case's manifest has it.
    """

    target: str
    region: str
    positive: float | None
    negative: float | None
    voxels: int
    positive_total: float
    negative_total: float
    absent: str
    mask_sha256: str
    saliency_sha256: str


COLUMNS = {
    **dict.fromkeys(("target", "region"), pa.string()),
    **dict.fromkeys(("positive", "negative"), pa.float64()), "voxels": pa.int64(),
    **dict.fromkeys(("positive_total", "negative_total"), pa.float64()),
    **dict.fromkeys(("absent", "mask_sha256", "saliency_sha256"), pa.string()),
}  # fmt: skip
PLACE = {"region_set": pa.string(), "case_id": pa.string()}


def checked_set(name: str) -> str:
    """The name itself if a region set may have it, else InputError."""
    if checked_id("region set", name).casefold() == ORGANS:
        raise InputError("a region set of masks needs a name of its own", repr(name), f"any other than {ORGANS}")
    return name


def write_case(run: Path, name: str, case_id: str, rows: Iterable[MaskedSum]) -> Path:
    """Replace one case's sums over a region set at once. Nothing of the case's own folder changes."""
    path = run / "regions" / checked_set(name) / f"{checked_id('case', case_id)}.csv"
    make_folder(path.parent)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in fields(MaskedSum))
    # repr: the shortest text that reads back as the same float64.
    writer.writerows([repr(cell) if isinstance(cell, float) else cell for cell in astuple(row)] for row in rows)
    write_text(path, text.getvalue())
    return path


def check_regions(run: Path, name: str, regions: Iterable[str], renewed: Iterable[str]) -> None:
    """InputError: cases of the set that are not renewed have other regions, so that it would mix two readings."""
    wanted, others = set(regions), set(renewed)
    for path in sorted((run / "regions" / checked_set(name)).glob("[!.]*.csv")):
        table = None if path.stem in others else _case(path, run / "cases" / path.stem)[0]
        found = set() if table is None else set(table["region"].to_pylist())
        if found and found != wanted:
            rule = "a region set must hold the same regions in every case"
            got = f"{', '.join(sorted(wanted))}, where {path.stem} has {', '.join(sorted(found))}"
            raise InputError(rule, got, "another --name, or the masks of all cases at once")


def folders(run: Path) -> list[Path]:
    """Folders of a run's region sets; their modification times move with every case written."""
    found = (run / "regions").glob("[!.]*/")
    return sorted(path for path in found if path.is_dir() and ID.fullmatch(path.name) and path.name != ORGANS)


_known: dict[Path, tuple[tuple[int, ...], tuple[pa.Table | None, str]]] = {}
"""What was read before, and the state of the files that it was read from: a growing set is not read again and again."""


def read(run: Path) -> pa.Table:
    """All sums of a run's region sets: PLACE and COLUMNS. What is damaged or out of date is left out and told."""
    found = list(_cases(run))
    left = [complaint for _, complaint in found if complaint]
    if left:
        logging.warning("run %s: sums over masks left out, %d: %s", run.name, len(left), "; ".join(left[:3]))
    nothing = pa.schema({**PLACE, **COLUMNS}).empty_table()
    return pa.concat_tables([nothing, *(table for table, _ in found if table is not None)])


def complaints(run: Path) -> list[str]:
    """What is damaged or out of date in a run's region sets."""
    return [complaint for _, complaint in _cases(run) if complaint]


def _cases(run: Path) -> Iterator[tuple[pa.Table | None, str]]:
    for folder in folders(run):
        for path in sorted(folder.glob("[!.]*.csv")):
            table, complaint = _case(path, run / "cases" / path.stem)
            yield table, complaint and f"{folder.name} of {path.stem}: {complaint}"


def _case(path: Path, case: Path) -> tuple[pa.Table | None, str]:
    """One case's rows that still hold, and what is wrong with the others. case: the folder of its results."""
    stamp = (*state(path), *state(case / "manifest.json"))
    known = _known.get(path)
    if known is None or known[0] != stamp:
        known = _known[path] = (stamp, _read_case(path, case))
    return known[1]


def _read_case(path: Path, case: Path) -> tuple[pa.Table | None, str]:
    try:
        table = read_numbers(path, COLUMNS)
    except (InputError, OSError, pa.ArrowException) as error:
        return None, " ".join(str(error).split())
    current = _current(case, table)
    place = [pa.array([name] * len(current), pa.string()) for name in (path.parent.name, path.stem)]
    complaint = "its attribution was computed anew, sum it again" if len(current) < len(table) else ""
    return pa.Table.from_arrays([*place, *current.columns], schema=pa.schema({**PLACE, **COLUMNS})), complaint


def _current(case: Path, table: pa.Table) -> pa.Table:
    """The rows whose attribution is still the one that the case's manifest names, or was made small since."""
    manifest = results.read_manifest(case) or {}
    files, thinned = manifest.get("files", {}), manifest.get("thinned", {})

    def known(target: str) -> tuple[str | None, str | None]:
        return files.get(results.map_name(target), {}).get("sha256"), thinned.get(target)

    rows = zip(table["target"].to_pylist(), table["saliency_sha256"].to_pylist(), strict=True)
    same = [digest in known(target) for target, digest in rows]
    return table.filter(pa.array(same, pa.bool_()))
