"""What is wrong or odd in a cohort's files, found before anything is computed on them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from agg2exp_core import volumes
from agg2exp_core.organs import BACKGROUND, LabelSet
from agg2exp_core.records import InputError, Volume
from agg2exp_core.store.cohorts import Case, list_cases

COLUMNS = ("case_id", "shape", "spacing_mm", "extent_mm", "lowest", "highest", "organs", "wrong", "odd")
"""Shape and spacing along the stored axes, extent from left to right, back to front and foot to head."""

THICK_MM, STRETCHED = 5.0, 4.0
"""Voxel edges above it, and longest against shortest edge above it, are odd."""

LEAST_AIR = -500.0
"""A CT in HU has air, which lies below."""

USUAL = 0.6, 1.67
"""Extents along an axis, as shares of the cohort's median, outside of which a field of view is odd."""

Report = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Checked:
    """table: COLUMNS, a row a case. holding: the organs that each sound case holds, by its id."""

    table: pd.DataFrame
    holding: dict[str, frozenset[str]]

    def told(self) -> pd.DataFrame:
        """The table as a terminal has room for it: what is wrong and what is odd in one column."""
        table = self.table
        remarks = [f"wrong: {wrong}" if wrong else odd for wrong, odd in zip(table["wrong"], table["odd"], strict=True)]
        spans = [f"{low:g} … {high:g}" if shape else "" for low, high, shape in
                 zip(table["lowest"], table["highest"], table["shape"], strict=True)]  # fmt: skip
        columns = {"voxels": table["shape"], "mm": table["spacing_mm"].str.replace(" ", ""), "values": spans}
        return pd.DataFrame({"case": table["case_id"], **columns, "organs": table["organs"], "remarks": remarks})

    @property
    def sound(self) -> bool:
        return not self.table["wrong"].any()


def check_cohort(root: Path, cohort: str, labels: LabelSet, report: Report) -> Checked:
    """Read every scan and label map of a cohort to its last byte. InputError: there is no such cohort.

    Wrong, so that a case cannot be used: no file, a damaged one, another grid, also of a channel, labels that the set
    does not have. Odd: thick or stretched voxels, no air, an unusual field of view, the voxels of another case, organs
    without a voxel.
    """
    cases, rows = list_cases(root, cohort), []
    seen: dict[str, str] = {}
    holding: dict[str, frozenset[str]] = {}
    for number, case in enumerate(cases):
        report(number, len(cases), case.case_id)
        row: dict[str, object] = {**dict.fromkeys(COLUMNS, ""), "case_id": case.case_id}
        try:
            row |= _looked_at(case, labels, holding, seen)
        except InputError as error:
            row["wrong"] = str(error)
        rows.append(row)
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return Checked(_with_fields_of_view(table), holding)


def _looked_at(
    case: Case, labels: LabelSet, holding: dict[str, frozenset[str]], seen: dict[str, str]
) -> dict[str, object]:
    if case.image is None:
        raise InputError("a case needs an image", "none")
    if case.further:
        volumes.check_channels(case.images)
    header, volume = volumes.check_header(case.image), volumes.to_ras(volumes.read_volume(case.image))
    edges = np.array(header.spacing)
    low, high = float(volume.array.min()), float(volume.array.max())
    odd = [f"voxels of {edges.max():.3g} mm"] if edges.max() > THICK_MM else []
    stretch = edges.max() / edges.min()
    odd += [f"voxels {stretch:.1f} times as long as wide"] if stretch > STRETCHED else []
    # Several channels are sequences of an MRI or other images, which have no HU.
    odd += ["values without air: no HU?"] if low > LEAST_AIR and not case.further else []
    odd += [f"the voxels of {other}"] if (other := seen.get(digest := _digest(volume))) else []
    seen.setdefault(digest, case.case_id)
    row: dict[str, object] = {"shape": "×".join(map(str, header.shape)), "lowest": low, "highest": high}
    extent = np.array(volume.spacing) * volume.array.shape
    row |= {"spacing_mm": _numbers(edges), "extent_mm": _numbers(extent)}
    if case.label is not None:
        held = _organs(case.label, header, labels)
        holding[case.case_id] = held
        row["organs"] = len(held)
        lacking = [organ.title for organ in labels.organs if organ.name not in held and organ.name != BACKGROUND]
        odd += [f"no {', '.join(lacking[:4])}{' …' if len(lacking) > 4 else ''}"] if lacking else []
    return row | {"odd": "; ".join(odd)}


def _digest(volume: Volume) -> str:
    """Tells voxels and where they lie apart, however they are stored."""
    # Rounded, for the sform and the qform of one scan differ a little; + 0.0, for −0.0 has other bytes.
    digest = hashlib.sha256((volume.affine.round(2) + 0.0).tobytes())
    digest.update(volume.array.T.data)
    return digest.hexdigest()


def _organs(path: Path, scan: volumes.ScanHeader, labels: LabelSet) -> frozenset[str]:
    """The organs that have a voxel. InputError: another grid, or values that the label set does not have."""
    names = {organ.id: organ.name for organ in labels.organs}
    found = np.flatnonzero(np.bincount(volumes.read_labels(path, like=scan).array.reshape(-1)))
    strangers = [int(value) for value in found if int(value) not in names]
    if strangers:
        got = ", ".join(map(str, strangers[:5]))
        raise InputError(f"labels must be ids of the label set {labels.name}", got, f"0 to {max(names)}")
    return frozenset(names[int(value)] for value in found) - {BACKGROUND}


def _numbers(values: np.ndarray) -> str:
    return " × ".join(f"{value:.4g}" for value in values)


def _with_fields_of_view(table: pd.DataFrame) -> pd.DataFrame:
    """Sound cases whose extent along an axis is unlike the cohort's median say so."""
    sound = table["extent_mm"].astype(bool)
    if sound.sum() < 3:
        return table
    extents = np.array([[float(part) for part in text.split(" × ")] for text in table.loc[sound, "extent_mm"]])
    share = extents / np.median(extents, axis=0)
    unusual = ((share < USUAL[0]) | (share > USUAL[1])).any(axis=1)
    notes = [
        "; ".join(filter(None, [text, "an unusual field of view" if out else ""]))
        for text, out in zip(table.loc[sound, "odd"], unusual, strict=True)
    ]
    return table.assign(odd=table["odd"].mask(sound, pd.Series(notes, index=table.index[sound])))


def holding_all(checked: Checked, labels: LabelSet, wanted: str) -> list[str]:
    """The cases that hold the organs `a,b`, or `all` of the label set. InputError: an organ that it does not have."""
    names = [organ.name for organ in labels.organs if organ.name != BACKGROUND]
    asked = names if wanted == "all" else [name.strip() for name in wanted.split(",")]
    for name in asked:
        if name not in names:
            raise InputError(f"organs must be of label set {labels.name}", repr(name)[:80], f"all, {', '.join(names)}")
    return [case_id for case_id, held in checked.holding.items() if held.issuperset(asked)]
