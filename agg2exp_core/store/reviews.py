"""Review sessions: `reviews/<session>/`, in which every verdict is a file of its own that nothing ever changes.

```
session.json                                  what is reviewed, by whom and how; written once
verdicts/<reviewer>/<case>.<time>.<hash>.json one verdict; a changed mind is another file, which names this one
drafts/<reviewer>.json                        where the reviewer is, and notes not given yet; the one file that changes
```

Session and verdicts hold the SHA-256 of their own content, so that a damaged or edited one is told and never used.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from agg2exp_core.files import locked, make_folder, read_json, write_json, write_new
from agg2exp_core.records import InputError
from agg2exp_core.settings import checked_id
from agg2exp_core.store import cohorts, results
from agg2exp_core.volumes import images_sha256

VERDICTS = {"accept": "Accept", "correct": "Needs edits", "reject": "Reject", "unsure": "Unsure"}
"""Verdict → its title: use it as it is, after a correction, not at all; or cannot say."""

PHASES = ("segmentation", "final", "adjudication")
"""Before the evidence was shown (blinded sessions only); with it; and of a third eye on two verdicts that differ."""

MODES = ("blinded", "open")
TAGS = ("too large", "too small", "part missing", "wrong organ or side", "rough edges", "image quality")
EVIDENCE_TAGS = ("evidence off the organ", "evidence on device or border")
"""Tags of phases in which evidence was shown."""

LONGEST_NOTE, LONGEST_NAME = 10_000, 80
FORMAT = 1

Made = TypeVar("Made", "Session", "Verdict")


class Item(NamedTuple):
    """One question to a reviewer: the segmentation of one organ in one case."""

    case: str
    target: str


@dataclass(frozen=True)
class Session:
    """What is reviewed. cases are frozen here: a list that changes later changes no session.

    list_name: the saved list they came from, "" for a cohort. reviewers: who is expected; empty lets anyone.
    seed: None keeps the cases in their order; a number shuffles them for each reviewer in another way.
    """

    name: str
    cohort: str
    run: str
    targets: tuple[str, ...]
    cases: tuple[str, ...]
    mode: str = "blinded"
    list_name: str = ""
    reviewers: tuple[str, ...] = ()
    seed: int | None = None
    created: str = ""

    @property
    def blinded(self) -> bool:
        return self.mode == "blinded"

    @property
    def phases(self) -> tuple[str, ...]:
        """What a reviewer is asked for every item, in order."""
        return PHASES[:2] if self.blinded else PHASES[1:2]

    def items(self, reviewer: str = "") -> tuple[Item, ...]:
        """All questions in the reviewer's order: case by case, the organs of one case together."""
        cases = list(self.cases)
        if self.seed is not None:
            random.Random(f"{self.seed}/{reviewer_id(reviewer)}").shuffle(cases)
        return tuple(Item(case, target) for case in cases for target in self.targets)


@dataclass(frozen=True)
class Seen:
    """What was on the screen: SHA-256 of the scan's content and of the case's files; None was not shown.

    settings: how it was shown, such as the HU window.
    """

    scan: str
    prediction: str
    saliency: str | None = None
    importance: str | None = None
    model: str | None = None
    settings: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """One verdict, as its file holds it.

    given: ISO time with its zone. seconds: from when the item was shown. replaces: file name of the verdict that
    this one takes the place of. independent: the reviewer had not seen those of others. file: its own name.
    """

    session: str
    cohort: str
    run: str
    case: str
    target: str
    phase: str
    reviewer: str
    verdict: str
    seen: Seen
    note: str = ""
    tags: tuple[str, ...] = ()
    seconds: float | None = None
    replaces: str | None = None
    independent: bool = True
    given: str = ""
    file: str = ""

    @property
    def item(self) -> Item:
        return Item(self.case, self.target)


@dataclass(frozen=True)
class Verdicts:
    """All verdicts of a session, oldest first, and what could not be used, file by file."""

    given: tuple[Verdict, ...]
    damaged: tuple[str, ...] = ()

    @property
    def current(self) -> tuple[Verdict, ...]:
        """Those that no other one replaces."""
        return _unreplaced(self.given)

    @property
    def independent(self) -> tuple[Verdict, ...]:
        """The last one of each reviewer, item and phase that was given without knowing those of others."""
        return _unreplaced(verdict for verdict in self.given if verdict.independent)

    def of(self, reviewer: str, phase: str) -> dict[Item, Verdict]:
        """What holds for one reviewer in one phase, item by item."""
        who = reviewer_id(reviewer)
        return {one.item: one for one in self.current if one.phase == phase and reviewer_id(one.reviewer) == who}

    @property
    def reviewers(self) -> tuple[str, ...]:
        """Who gave a verdict of their own, as each wrote their name first; adjudicators do not count."""
        names: dict[str, str] = {}
        for verdict in self.given:
            if verdict.phase != "adjudication":
                names.setdefault(reviewer_id(verdict.reviewer), verdict.reviewer)
        return tuple(sorted(names.values(), key=str.casefold))


def _unreplaced(verdicts: Iterable[Verdict]) -> tuple[Verdict, ...]:
    kept = tuple(verdicts)
    gone = {verdict.replaces for verdict in kept}
    return tuple(verdict for verdict in kept if verdict.file not in gone)


# ---- reviewers -------------------------------------------------------------------------------------


def checked_reviewer(name: str) -> str:
    """The name in its plain form. There is no login: it is taken on trust."""
    plain = " ".join(unicodedata.normalize("NFC", name).split())
    if not plain or len(plain) > LONGEST_NAME or not plain.isprintable():
        raise InputError(f"a reviewer's name must have 1 to {LONGEST_NAME} printable signs", repr(name)[:100])
    return plain


def reviewer_id(name: str) -> str:
    """The name as a folder: what is readable of it, and a hash that tells apart what looks alike there."""
    plain = unicodedata.normalize("NFC", " ".join(name.split()).casefold())
    ascii_only = unicodedata.normalize("NFKD", plain).encode("ascii", "ignore").decode()
    readable = re.sub(r"[^a-z0-9]+", "-", ascii_only).strip("-")[:40] or "reviewer"
    return f"{readable}-{hashlib.sha256(plain.encode()).hexdigest()[:8]}"


def as_listed(session: Session, name: str) -> str:
    """The name as the session spells it, if it is one of its reviewers: `ada` is Ada."""
    return {reviewer_id(one): one for one in session.reviewers}.get(reviewer_id(name), name)


def may_judge(session: Session, name: str) -> bool:
    """Whether the session takes verdicts of theirs on its items; anyone may settle what differs."""
    return not session.reviewers or reviewer_id(name) in map(reviewer_id, session.reviewers)


# ---- sessions --------------------------------------------------------------------------------------


def create_session(root: Path, session: Session) -> Session:
    """Write a new session. InputError: a name that is taken or unsafe, or nothing to review."""
    _check_session(session)
    session = replace(
        session,
        created=session.created or _now(),
        reviewers=tuple(dict.fromkeys(checked_reviewer(name) for name in session.reviewers)),
    )
    path = _folder(root, session.name) / "session.json"
    try:
        make_folder(path.parent)
        write_new(path, _sealed(asdict(session)))
    except FileExistsError:
        raise InputError("a new session needs a name that is free", repr(session.name)) from None
    except OSError as error:
        raise _not_stored(error) from None
    return session


def list_sessions(root: Path) -> list[str]:
    """Names of the sessions, those made last first."""
    files = (root / "reviews").glob("[!.]*/session.json")
    made = {path.parent.name: str(read_json(path).get("created") or "") for path in files}
    return sorted(made, key=made.__getitem__, reverse=True)


def read_session(root: Path, name: str) -> Session:
    """A session. InputError if there is none of that name, or its file is damaged."""
    path = _folder(root, name) / "session.json"
    if not path.is_file():
        raise InputError("session must exist", repr(name), ", ".join(list_sessions(root)) or "none yet")
    session, _ = _read(path, Session)
    if session.name != name:
        raise InputError("a session must lie in the folder of its name", f"{session.name} in {name}")
    return session


def _check_session(session: Session) -> None:
    checked_id("session", session.name)
    checked_id("cohort", session.cohort)
    checked_id("run", session.run)
    for case in session.cases:
        checked_id("case", case)
    if session.mode not in MODES:
        raise InputError("mode must be known", repr(session.mode), ", ".join(MODES))
    for what, names in (("case", session.cases), ("organ", session.targets)):
        if not names:
            raise InputError(f"a session needs at least one {what}", "none")
        if len(set(names)) < len(names):
            raise InputError(f"every {what} of a session must be there once", "one twice")


def _folder(root: Path, session: str) -> Path:
    return root / "reviews" / checked_id("session", session)


# ---- verdicts --------------------------------------------------------------------------------------


def give(root: Path, verdict: Verdict) -> Verdict:
    """Store a verdict for good, and return it with its time and file name. It is on the disk when this returns.

    InputError: it does not belong to the session, or `replaces` is not what holds now, as another window of the
    same reviewer was faster. Then nothing is written.
    """
    session = read_session(root, verdict.session)
    verdict = replace(verdict, reviewer=checked_reviewer(verdict.reviewer), note=verdict.note.strip())
    _check_verdict(session, verdict)
    folder = _verdict_folder(root, verdict)
    try:
        make_folder(folder)
        with locked(_folder(root, session.name) / ".lock"):
            _check_order(session, read_verdicts(root, session), verdict)
            return _stored(folder, replace(verdict, given=_now()))
    except OSError as error:
        raise _not_stored(error) from None


def read_verdicts(root: Path, session: Session) -> Verdicts:
    """Every verdict of the session. What is damaged, edited or gone is named in `damaged` and left out."""
    given, damaged = [], []
    for path in sorted((_folder(root, session.name) / "verdicts").glob("*/*.json")):
        try:
            given.append(_read_verdict(root, session, path))
        except InputError as error:
            damaged.append(f"{path.name}: {error}")
    given.sort(key=lambda verdict: (datetime.fromisoformat(verdict.given), verdict.file))
    return Verdicts(tuple(given), (*damaged, *_gone(given, damaged)))


def _read_verdict(root: Path, session: Session, path: Path) -> Verdict:
    verdict, seal = _read(path, Verdict)
    _check_verdict(session, verdict)
    if path != _verdict_folder(root, verdict) / _file_name(verdict, seal):
        raise InputError("a verdict must keep its file name", path.name)
    return replace(verdict, file=path.name)


def _gone(given: Iterable[Verdict], damaged: Iterable[str]) -> list[str]:
    """Replaced verdicts whose file is not there any more."""
    kept = tuple(given)
    there, told = {verdict.file for verdict in kept}, " ".join(damaged)
    missing = [(one.replaces, one.file) for one in kept if one.replaces and one.replaces not in there]
    return [f"{name} is gone; {by} replaces it" for name, by in missing if name not in told]


def _check_verdict(session: Session, verdict: Verdict) -> None:
    place = (session.name, session.cohort, session.run)
    if (verdict.session, verdict.cohort, verdict.run) != place:
        raise InputError("a verdict must be of its session", f"{verdict.cohort}:{verdict.run}", ":".join(place[1:]))
    for what, value, allowed in (
        ("case", verdict.case, session.cases),
        ("organ", verdict.target, session.targets),
        ("verdict", verdict.verdict, VERDICTS),
        ("phase", verdict.phase, (*session.phases, "adjudication")),
    ):
        if value not in allowed:
            raise InputError(f"{what} must be one of the session's", repr(value)[:80], ", ".join(tuple(allowed)[:6]))
    tags = TAGS if verdict.phase == "segmentation" else TAGS + EVIDENCE_TAGS
    if unknown := [tag for tag in verdict.tags if tag not in tags]:
        raise InputError("tags must be known", ", ".join(unknown)[:80], ", ".join(tags))
    if len(verdict.note) > LONGEST_NOTE:
        raise InputError("a note must be short enough", f"{len(verdict.note)} signs", f"to {LONGEST_NOTE}")
    if verdict.phase == "adjudication" and not verdict.note:
        raise InputError("an adjudication needs its reason", "an empty note")
    if verdict.phase == "segmentation" and (verdict.seen.saliency or verdict.seen.importance):
        raise InputError("a blinded verdict on the segmentation must come before the evidence", "evidence seen")


def _check_order(session: Session, verdicts: Verdicts, verdict: Verdict) -> None:
    """One verdict follows another; the blinded one comes first and stands once the evidence was shown."""
    if verdict.phase == "adjudication":
        # The newest, as the page shows it: a lost file leaves two that nothing replaces.
        given = [one for one in verdicts.current if one.phase == verdict.phase and one.item == verdict.item]
        _check_replaces(given[-1] if given else None, verdict)
        return
    if not may_judge(session, verdict.reviewer):
        raise InputError("reviewer must be one of the session's", repr(verdict.reviewer), ", ".join(session.reviewers))
    first = verdicts.of(verdict.reviewer, "segmentation").get(verdict.item)
    if verdict.phase == "segmentation" and first is not None:
        raise InputError("the verdict before the evidence is given once", "a second one", "a final verdict")
    if verdict.phase == "final" and session.blinded and first is None:
        raise InputError("the verdict on the segmentation comes first in a blinded session", "a final one")
    _check_replaces(verdicts.of(verdict.reviewer, verdict.phase).get(verdict.item), verdict)


def _check_replaces(holding: Verdict | None, verdict: Verdict) -> None:
    if (holding.file if holding else None) != verdict.replaces:
        raise InputError(
            "a verdict must follow the one that holds",
            "another one given meanwhile, perhaps in a second window",
            "look at it, then give yours again",
        )


def _stored(folder: Path, verdict: Verdict) -> Verdict:
    content = {name: value for name, value in asdict(verdict).items() if name != "file"}
    text = _sealed(content)
    name = _file_name(verdict, json.loads(text)["sha256"])
    write_new(folder / name, text)
    return replace(verdict, file=name)


def _verdict_folder(root: Path, verdict: Verdict) -> Path:
    return _folder(root, verdict.session) / "verdicts" / reviewer_id(verdict.reviewer)


def _file_name(verdict: Verdict, seal: str) -> str:
    time = datetime.fromisoformat(verdict.given).astimezone(UTC)
    return f"{verdict.case}.{time:%Y%m%dT%H%M%S.%fZ}.{seal[:12]}.json"


# ---- what was seen ---------------------------------------------------------------------------------


def seen_files(root: Path, session: Session, item: Item) -> Seen:
    """Hashes of all that there is to see of an item. Reads every byte of it.

    InputError: no image or results, a file that is not as its manifest says, or a scan that is not the explained one.
    """
    case = cohorts.find_case(root, session.cohort, item.case)
    folder = results.case_path(root, session.cohort, session.run, item.case)
    manifest = results.read_manifest(folder)
    if case.image is None or manifest is None:
        raise InputError("a case under review needs its scan and its results", item.case)
    names = (results.PREDICTION, "importance.csv", results.map_name(item.target))
    if wrong := results.verify(folder, names):
        raise InputError("a case under review must be undamaged", f"{item.case}: {', '.join(wrong)}")
    scan = images_sha256(case.images)
    if manifest.get("input_sha256", scan) != scan:
        raise InputError("a case under review must be the scan that was explained", f"{item.case}: another scan")
    prediction, importance, map_ = (manifest["files"].get(name, {}).get("sha256") for name in names)
    if prediction is None:
        raise InputError("a case under review needs a stored segmentation", item.case)
    return Seen(scan, prediction, map_, importance, manifest.get("model_hash"))


def before_evidence(seen: Seen) -> Seen:
    """What was seen while the evidence was hidden."""
    return replace(seen, saliency=None, importance=None)


# ---- where a reviewer is ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Draft:
    """A note and tags that go with no verdict yet."""

    note: str = ""
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Place:
    """Where a reviewer is in a session. saw_others: has looked at the verdicts of others, so is not independent."""

    at: Item | None = None
    skipped: tuple[Item, ...] = ()
    drafts: dict[str, Draft] = field(default_factory=dict)
    saw_others: bool = False

    def draft(self, item: Item, phase: str) -> Draft | None:
        """What was begun for a verdict, if anything."""
        return self.drafts.get(_draft_key(item, phase))

    def with_draft(self, item: Item, phase: str, draft: Draft | None) -> Place:
        """The same with this draft, or without any."""
        others = {key: one for key, one in self.drafts.items() if key != _draft_key(item, phase)}
        return replace(self, drafts=others if draft is None else others | {_draft_key(item, phase): draft})


def upcoming(items: Sequence[Item], done: Collection[Item], skipped: Sequence[Item], after: Item | None) -> Item | None:
    """The next item to judge: the first open one behind `after`, going round; skipped ones when no other is left.

    None when all are done.
    """
    start = items.index(after) + 1 if after in items else 0
    around = [*items[start:], *items[:start]]
    fresh = [item for item in around if item not in done and item not in skipped]
    waiting = [item for item in skipped if item in items and item not in done]
    return next(iter([*fresh, *waiting]), None)


def read_place(root: Path, session: str, reviewer: str) -> Place:
    """Where the reviewer is. One whose file cannot be read begins anew, and may have seen the verdicts of others."""
    path = _place_file(root, session, reviewer)
    content = read_json(path)
    if not content:
        return Place(saw_others=path.exists())
    try:
        return Place(
            Item(*content["at"]) if content.get("at") else None,
            tuple(Item(*pair) for pair in content.get("skipped", [])),
            {key: Draft(str(one["note"]), tuple(one["tags"])) for key, one in content.get("drafts", {}).items()},
            bool(content.get("saw_others")),
        )
    except (TypeError, KeyError, AttributeError):
        return Place(saw_others=True)


def change_place(root: Path, session: str, reviewer: str, change: Callable[[Place], Place]) -> Place:
    """Read, change and write the reviewer's place, so that two windows lose none of each other's drafts."""
    path = _place_file(root, session, reviewer)
    try:
        with locked(_folder(root, session) / ".lock"):
            before = read_place(root, session, reviewer)
            place = change(before)
            if place != before:
                make_folder(path.parent)
                write_json(path, {"reviewer": checked_reviewer(reviewer), **asdict(place)})
    except OSError as error:
        raise InputError(
            "notes and the place in a session must be stored; these are not", error.strerror or error, "a disk to write"
        ) from None
    return place


def _draft_key(item: Item, phase: str) -> str:
    return f"{item.case}/{item.target}/{phase}"


def _place_file(root: Path, session: str, reviewer: str) -> Path:
    return _folder(root, session) / "drafts" / f"{reviewer_id(reviewer)}.json"


# ---- sealed files ----------------------------------------------------------------------------------


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="microseconds")


def _not_stored(error: OSError) -> InputError:
    return InputError("a review must be stored before it counts; it is not", error.strerror or error, "a disk to write")


def _seal(content: dict[str, Any]) -> str:
    """SHA-256 of the content in one form: keys sorted, no spaces."""
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


def _sealed(content: dict[str, Any]) -> str:
    plain = json.loads(json.dumps({"format": FORMAT, **content}))
    return json.dumps({**plain, "sha256": _seal(plain)}, indent=1, ensure_ascii=False) + "\n"


def _read(path: Path, kind: type[Made]) -> tuple[Made, str]:
    """A sealed file as its record, and its seal. InputError if it is not what was written."""
    content = read_json(path)
    seal = content.pop("sha256", None)
    if not content or seal != _seal(content):
        raise InputError("a review's file must be as it was written", "one that was damaged or edited")
    known = {one.name for one in fields(kind)}
    try:
        values = {name: _frozen(value) for name, value in content.items() if name in known}
        if kind is Verdict:
            values["seen"] = Seen(**values["seen"])
            datetime.fromisoformat(values["given"])
        return kind(**values), seal
    except (TypeError, ValueError, KeyError) as error:
        raise InputError("a review's file must hold what it should", error) from None


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
