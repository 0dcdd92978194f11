"""Label sets: which organs there are, their groups, colours and plain names. The only table of organs.

Free of torch, so that the dashboard can draw without loading a network.
"""

from __future__ import annotations

import colorsys
import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from agg2exp_core import files
from agg2exp_core.records import InputError
from agg2exp_core.settings import SHIPPED, checked_id

BACKGROUND = "background"
COLOR = re.compile("#[0-9A-Fa-f]{6}")


@dataclass(frozen=True)
class Organ:
    """One class of a segmentation: its label value, field name, group, colour (#rrggbb) and plain name.

    joined, joined_title: the larger organ that it is a part of, as a lobe is of the lung; empty for none.
    """

    id: int
    name: str
    group: str
    color: str
    title: str
    joined: str = ""
    joined_title: str = ""


@dataclass(frozen=True)
class LabelSet:
    """Organs in the order of their ids, background first."""

    name: str
    organs: tuple[Organ, ...]

    @cached_property
    def joined(self) -> tuple[Organ, ...]:
        """The larger organs that some are parts of, with the first part's id, group and colour."""
        first: dict[str, Organ] = {}
        for organ in self.organs:
            if organ.joined:
                title = organ.joined_title or plain_name(organ.joined)
                first.setdefault(organ.joined, replace(organ, name=organ.joined, title=title, joined=""))
        return tuple(first.values())

    @cached_property
    def by_name(self) -> dict[str, Organ]:
        """Name → organ, joined ones too."""
        return {organ.name: organ for organ in (*self.joined, *self.organs)}

    @cached_property
    def joins(self) -> dict[str, str]:
        """Part → larger organ."""
        return {organ.name: organ.joined for organ in self.organs if organ.joined}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(organ.name for organ in self.organs)

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(organ.group for organ in self.organs))

    def __getitem__(self, name: str) -> Organ:
        for organ in self.organs:
            if organ.name == name:
                return organ
        raise InputError(f"organ must be of label set {self.name}", repr(name), ", ".join(self.names))


def load_label_set(name: str, root: Path = SHIPPED) -> LabelSet:
    """Read `label_sets/<name>.csv` of the root or the project.

    Columns id, name, group, color and, if it likes, title, joined and joined_title. InputError: no such file, or a row
    that cannot be read.
    """
    relative = Path("label_sets") / f"{checked_id('label set', name)}.csv"
    path = next((base / relative for base in (root, SHIPPED) if (base / relative).is_file()), None)
    if path is None:
        known = sorted(p.stem for p in (SHIPPED / "label_sets").glob("*.csv"))
        raise InputError("label set must exist", repr(name), ", ".join(known))
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    organs = tuple(_organ(row, path) for row in rows)
    for column in ("id", "name"):
        seen = Counter(getattr(organ, column) for organ in organs)
        if again := [value for value, count in seen.items() if count > 1]:
            raise InputError(
                "organs of a label set need ids and names of their own", f"{path.name}: {again[0]!r} twice"
            )
    return LabelSet(name, organs)


def part_ids(labels: LabelSet, joins: Mapping[str, str]) -> dict[str, int]:
    """The label value of every file of a class: the organ's own name, or that of a part that `joins` puts into one.

    An organ that others are joined into has no file of its own. InputError: joins into what is no organ of the set.
    """
    for part, organ in joins.items():
        if organ not in labels.names or organ == BACKGROUND:
            raise InputError(f"parts must be joined into organs of {labels.name}", f"{part} into {organ}")
    own = {organ.name: organ.id for organ in labels.organs[1:] if organ.name not in joins.values()}
    return own | {part: labels.by_name[organ].id for part, organ in joins.items()}


def known_label_sets(root: Path) -> list[LabelSet]:
    """All of the root and the project, by name."""
    names = {path.stem for base in (root, SHIPPED) for path in (base / "label_sets").glob("*.csv")}
    return [load_label_set(name, root) for name in sorted(names)]


def write_label_set(root: Path, labels: LabelSet) -> None:
    """Write `label_sets/<name>.csv` of a root. InputError if there is another one of that name."""
    path = root / "label_sets" / f"{checked_id('label set', labels.name)}.csv"
    columns = ("id", "name", "group", "color", "title", "joined", "joined_title")
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(columns)
    rows.writerows([getattr(organ, column) for column in columns] for organ in labels.organs)
    if path.exists() and path.read_text(encoding="utf-8") != text.getvalue():
        raise InputError("a new label set needs a name that is free", repr(labels.name))
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, text.getvalue())


def made_label_set(name: str, organs: Iterable[str]) -> LabelSet:
    """A label set for organs that none describes: background, then the names in their order, colours far apart."""
    names = [BACKGROUND, *(organ for organ in dict.fromkeys(organs) if organ != BACKGROUND)]
    first, *others = (Organ(id, name, "organs", _color(id), plain_name(name)) for id, name in enumerate(names))
    return LabelSet(name, (replace(first, group=BACKGROUND, color="#9aa0a6"), *others))


def label_set_of(root: Path, name: str, values: Mapping[str, int]) -> LabelSet:
    """The known label set of just these label values, else one of this name with what is known of each organ.

    values: the label value of every class, by names as a dataset tells them; 0 is the background, told or not.
    InputError: a class whose name is no id, or two that are one. It is not written.
    """
    known = known_label_sets(root)
    described = {organ.name.lower(): organ for labels in known for organ in labels.organs}
    titles: dict[str, tuple[int, str]] = {}
    for title, id in sorted(values.items(), key=lambda pair: pair[1]):
        slug = BACKGROUND if id == 0 else checked_id("class", class_id(title))
        spelled = described[slug].name if slug in described else slug
        if spelled in titles:
            raise InputError("classes must have names of their own", title)
        titles[spelled] = id, re.sub("[<>]", "", title)  # which no title may hold
    ids = {BACKGROUND: 0} | {spelled: id for spelled, (id, _) in titles.items()}
    for labels in known:
        if ids == {organ.name: organ.id for organ in labels.organs}:
            return labels
    organs = []
    for organ in made_label_set(name, ids).organs:
        title = titles[organ.name][1] if organ.name in titles and organ.name != BACKGROUND else organ.title
        organs.append(replace(described.get(organ.name.lower(), replace(organ, title=title)), id=ids[organ.name]))
    return LabelSet(name, tuple(organs))


def numbered(labels: LabelSet, classes: Sequence[str]) -> LabelSet:
    """The label set as a model numbers it: its classes alone, each with its place among them as label value."""
    made = made_label_set(labels.name, classes)
    known = {organ.name: organ for organ in labels.organs}
    organs = (replace(known.get(name, made[name]), id=id) for id, name in enumerate(classes))
    return LabelSet(labels.name, tuple(organs))


def class_id(name: str) -> str:
    """`Right Kidney` → `right_kidney`: class names become names of files and columns."""
    return re.sub(r"[^a-z0-9.]+", "_", name.lower()).strip("_")


def plain_name(name: str) -> str:
    """`lung_upper_lobe_left` → `Lung upper lobe left`, for label sets that bring no titles."""
    return name.replace("_", " ").capitalize()


def _color(number: int) -> str:
    """Hues a golden angle apart never meet; three shades part those that come near."""
    shade = colorsys.hls_to_rgb(number * 0.618034 % 1, (0.36, 0.5, 0.66)[number % 3], 0.6)
    return "#" + "".join(f"{round(255 * part):02x}" for part in shade)


def _organ(row: dict[str, str], path: Path) -> Organ:
    try:
        title = row.get("title") or plain_name(row["name"])
        joined = row.get("joined") or "", row.get("joined_title") or ""
        organ = Organ(int(row["id"]), row["name"], row["group"], row["color"], title, *joined)
        colored = COLOR.fullmatch(organ.color)  # charts take it apart, and a report's HTML holds it
    except (AttributeError, KeyError, TypeError, ValueError):  # None where a row is short
        raise InputError("label set needs columns id,name,group,color", f"{path.name}: {row}") from None
    if not colored:
        raise InputError("an organ's color must be hexadecimal", f"{path.name}: {organ.color[:40]!r}", "#rrggbb")
    if organ.id < 0:
        raise InputError("an organ's id must be a label value", f"{path.name}: {organ.id}", "0, 1, 2, …")
    if any(sign in text for text in (organ.title, organ.group, organ.joined_title) for sign in "<>"):
        # Plotly reads tags in its texts.
        raise InputError("an organ's title and group must be without < and >", f"{path.name}: {organ.title[:40]!r}")
    if organ.joined and BACKGROUND in (organ.name, organ.joined):
        raise InputError("background is joined with no organ", f"{path.name}: {row}")
    return organ
