"""Stored maps made small once their sums over masks are taken: what is kept serves to look at them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from agg2exp_core import maps, volumes
from agg2exp_core.records import InputError, Volume
from agg2exp_core.store import results


def thin_case(folder: Path) -> int:
    """Make a case's full maps maps for viewing, in place; how many there were.

    Its sums, and sums over masks, stay as they are: the manifest remembers (`thinned`) which map each was made of.
    InputError: the case is damaged, and nothing is written.
    """
    with results.publishing(folder):
        manifest = results.read_manifest(folder) or {}
        if problems := results.verify(folder):
            raise InputError("a case's results must be as its manifest says", ", ".join(problems))
        full = results.full_maps(manifest)
        if full:
            digests = {name: manifest["files"][results.map_name(name)]["sha256"] for name in full}
            manifest["thinned"] = manifest.get("thinned", {}) | digests
            manifest["viewing"] = sorted({*manifest.get("viewing", ()), *full})
            with results.case_folder(folder, manifest) as new:
                shutil.copytree(folder, new, dirs_exist_ok=True, ignore=shutil.ignore_patterns(results.MANIFEST))
                for name in full:
                    for file in results.map_names(manifest, name):
                        _thin(new / file)
    return len(full)


def _thin(path: Path) -> None:
    drawn = volumes.read_volume(path)
    kept, step = maps.for_viewing(np.asarray(drawn.array, dtype=np.float32))
    volumes.write_volume(path, Volume(kept, drawn.affine), step)
