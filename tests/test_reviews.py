"""Review sessions on disk: verdicts that never change, order, damage, two writers, and what is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import datetime
from multiprocessing.pool import ThreadPool
from pathlib import Path

import pandas as pd
import pytest
from command import run

from agg2exp_core import pseudonyms
from agg2exp_core.files import write_new
from agg2exp_core.records import InputError
from agg2exp_core.store import reviews
from agg2exp_core.store.reviews import Draft, Item, Place, Seen, Session, Verdict

SESSION = Session("round-1", "tiny", "r", ("heart", "aorta"), ("c1", "c2", "c3"))
HIDDEN = Seen("5c4a", "9e1d", settings={"window": "soft"})
SHOWN = replace(HIDDEN, saliency="51ae", importance="1d07")


def verdict_of(verdict: str = "accept", phase: str = "segmentation", reviewer: str = "Ada", **other: object) -> Verdict:
    seen = HIDDEN if phase == "segmentation" else SHOWN
    values = {"session": "round-1", "cohort": "tiny", "run": "r", "case": "c1", "target": "heart", "seen": seen} | other
    return Verdict(phase=phase, reviewer=reviewer, verdict=verdict, **values)  # type: ignore[arg-type]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    reviews.create_session(tmp_path, SESSION)
    return tmp_path


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*.json"))}


def edit(path: Path, text: str) -> None:
    path.chmod(0o644)
    path.write_text(text, encoding="utf-8")


# ---- a verdict is for good -------------------------------------------------------------------------


def test_a_verdict_reads_back_with_who_when_and_what_was_seen(root: Path) -> None:
    given = reviews.give(root, verdict_of(note=" lower edge ", tags=("too small",), seconds=12.5))
    (read,) = reviews.read_verdicts(root, SESSION).given
    assert read == given and (read.note, read.reviewer, read.seen) == ("lower edge", "Ada", HIDDEN)
    assert datetime.fromisoformat(read.given).tzinfo is not None
    path = root / "reviews" / "round-1" / "verdicts" / reviews.reviewer_id("Ada") / given.file
    assert path.stat().st_mode & 0o222 == 0 and path.name.startswith("c1.2")


def test_a_changed_mind_is_another_file_that_names_the_first(root: Path) -> None:
    reviews.give(root, verdict_of())
    first = reviews.give(root, verdict_of("accept", "final"))
    before = files(root)
    second = reviews.give(root, verdict_of("reject", "final", replaces=first.file))
    assert before.items() < files(root).items() and second.replaces == first.file
    verdicts = reviews.read_verdicts(root, SESSION)
    assert verdicts.of("Ada", "final") == {Item("c1", "heart"): second} and len(verdicts.given) == 3


def test_a_file_that_is_there_is_never_written_again(tmp_path: Path) -> None:
    write_new(tmp_path / "a.json", "first")
    with pytest.raises(FileExistsError):
        write_new(tmp_path / "a.json", "second")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"] and (tmp_path / "a.json").read_text() == "first"


def _give_in_turn(root: Path, replaces: str, said: str) -> str:
    try:
        return reviews.give(root, verdict_of(said, "final", replaces=replaces)).file
    except InputError as error:
        return str(error)


def test_of_two_windows_at_once_one_is_told_and_none_is_lost(root: Path) -> None:
    reviews.give(root, verdict_of())
    first = reviews.give(root, verdict_of("unsure", "final"))
    with ThreadPool(2) as pool:
        answers = pool.starmap(_give_in_turn, [(root, first.file, "accept"), (root, first.file, "reject")])
    assert sum("meanwhile" in answer for answer in answers) == 1
    verdicts = reviews.read_verdicts(root, SESSION)
    assert len(verdicts.given) == 3 and verdicts.damaged == ()
    assert verdicts.of("Ada", "final")[Item("c1", "heart")].file in answers


def test_what_cannot_be_stored_is_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(reviews, "write_new", full)
    with pytest.raises(InputError, match="it is not; got No space left"):
        reviews.give(root, verdict_of())


# ---- damage ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["edited", "resealed", "cut", "renamed", "not JSON", "another session's"])
def test_what_is_not_as_it_was_written_is_told_by_name_and_not_used(root: Path, how: str) -> None:
    given = reviews.give(root, verdict_of())
    reviews.give(root, verdict_of(case="c2"))
    path = next((root / "reviews").glob(f"*/verdicts/*/{given.file}"))
    text = path.read_text(encoding="utf-8")
    content = json.loads(text) | {"verdict": "reject"}
    if how == "edited":
        edit(path, json.dumps(content))
    elif how == "resealed":
        content.pop("sha256")
        edit(path, json.dumps(content | {"sha256": reviews._seal(content)}))
    elif how == "cut":
        edit(path, text[:-40])
    elif how == "renamed":
        path = path.rename(path.with_name("c3" + path.name[2:]))
    elif how == "not JSON":
        edit(path, "[1, 2]")
    else:
        content = json.loads(text) | {"session": "round-2"}
        content.pop("sha256")
        edit(path, json.dumps(content | {"sha256": reviews._seal(content)}))
    verdicts = reviews.read_verdicts(root, SESSION)
    assert [one.case for one in verdicts.given] == ["c2"]
    (told,) = verdicts.damaged
    assert path.name in told


def test_a_replaced_verdict_that_is_gone_is_told(root: Path) -> None:
    reviews.give(root, verdict_of())
    first = reviews.give(root, verdict_of("accept", "final"))
    reviews.give(root, verdict_of("reject", "final", replaces=first.file))
    next((root / "reviews").glob(f"*/verdicts/*/{first.file}")).unlink()
    (told,) = reviews.read_verdicts(root, SESSION).damaged
    assert told.startswith(f"{first.file} is gone")


def test_an_edited_session_is_refused(root: Path) -> None:
    path = root / "reviews" / "round-1" / "session.json"
    edit(path, path.read_text().replace("blinded", "open"))
    with pytest.raises(InputError, match="damaged or edited"):
        reviews.read_session(root, "round-1")


# ---- order and independence ------------------------------------------------------------------------


def test_the_blinded_verdict_comes_first_and_once(root: Path) -> None:
    with pytest.raises(InputError, match="comes first in a blinded session"):
        reviews.give(root, verdict_of("accept", "final"))
    reviews.give(root, verdict_of())
    with pytest.raises(InputError, match="before the evidence is given once"):
        reviews.give(root, verdict_of("reject"))


def test_a_blinded_verdict_never_names_evidence_as_seen(root: Path) -> None:
    with pytest.raises(InputError, match="must come before the evidence"):
        reviews.give(root, verdict_of(seen=SHOWN))
    assert reviews.before_evidence(SHOWN) == HIDDEN


def test_an_open_session_asks_one_verdict(tmp_path: Path) -> None:
    reviews.create_session(tmp_path, replace(SESSION, mode="open"))
    reviews.give(tmp_path, verdict_of("reject", "final"))
    with pytest.raises(InputError, match="phase must be one of"):
        reviews.give(tmp_path, verdict_of(case="c2"))


def test_a_verdict_given_after_seeing_others_takes_the_place_of_none_that_was_independent(root: Path) -> None:
    reviews.give(root, verdict_of())
    first = reviews.give(root, verdict_of("accept", "final"))
    changed = reviews.give(root, verdict_of("reject", "final", replaces=first.file, independent=False))
    verdicts = reviews.read_verdicts(root, SESSION)
    assert changed in verdicts.current and first not in verdicts.current
    assert first in verdicts.independent and changed not in verdicts.independent


def test_an_adjudication_needs_a_reason_and_may_follow_that_of_another(root: Path) -> None:
    with pytest.raises(InputError, match="needs its reason"):
        reviews.give(root, verdict_of("accept", "adjudication", "Chair"))
    first = reviews.give(root, verdict_of("accept", "adjudication", "Chair", note="clear"))
    reviews.give(root, verdict_of("reject", "adjudication", "Head", note="looked again", replaces=first.file))
    verdicts = reviews.read_verdicts(root, SESSION)
    assert [one.verdict for one in verdicts.current] == ["reject"] and verdicts.damaged == ()
    assert verdicts.reviewers == ()


def test_only_those_expected_may_judge_if_any_are_named(tmp_path: Path) -> None:
    reviews.create_session(tmp_path, replace(SESSION, reviewers=("Ada", "Grace")))
    reviews.give(tmp_path, verdict_of(reviewer=" ada "))
    with pytest.raises(InputError, match="reviewer must be one of"):
        reviews.give(tmp_path, verdict_of(reviewer="Eve"))


def test_each_reviewer_has_an_order_of_their_own_that_stays(tmp_path: Path) -> None:
    cases = tuple(f"c{number}" for number in range(30))
    session = replace(SESSION, cases=cases, seed=7)
    ada, grace = session.items("Ada"), session.items("Grace")
    assert ada == session.items("ADA") != grace and sorted(ada) == sorted(grace) == sorted(SESSION_ITEMS(cases))
    assert [item.target for item in ada[:2]] == ["heart", "aorta"] and ada[0].case == ada[1].case
    assert replace(session, seed=None).items("Ada")[0] == Item("c0", "heart")


def SESSION_ITEMS(cases: tuple[str, ...]) -> list[Item]:
    return [Item(case, target) for case in cases for target in SESSION.targets]


# ---- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "../out"}, {"name": ""}, {"name": "a/b"}, {"cohort": "../x"}, {"cases": ("../../c",)}, {"cases": ()},
        {"targets": ()}, {"cases": ("c1", "c1")}, {"mode": "half"}, {"reviewers": ("  ",)},
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_session_is_refused_and_leaves_nothing(tmp_path: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(InputError):
        reviews.create_session(tmp_path, replace(SESSION, **wrong))  # type: ignore[arg-type]
    assert list(tmp_path.rglob("*.json")) == []


def test_a_session_is_never_written_over(root: Path) -> None:
    before = files(root)
    with pytest.raises(InputError, match="a name that is free"):
        reviews.create_session(root, replace(SESSION, mode="open"))
    assert files(root) == before


@pytest.mark.parametrize(
    "wrong",
    [
        {"session": "../round-1"}, {"session": "none"}, {"case": "../c1"}, {"case": "c9"}, {"target": "liver"},
        {"verdict": "maybe"}, {"phase": "first"}, {"tags": ("evil",)}, {"reviewer": ""}, {"reviewer": "a\x00b"},
        {"note": "x" * 10_001}, {"run": "other"}, {"tags": ("evidence off the organ",)},
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_verdict_is_refused_and_leaves_nothing(root: Path, wrong: dict[str, object]) -> None:
    before = files(root)
    with pytest.raises(InputError):
        reviews.give(root, replace(verdict_of(), **wrong))  # type: ignore[arg-type]
    assert files(root) == before


@pytest.mark.parametrize("name", ["../../etc", "Müller", "李", "a" * 80, "..", "CON"])
def test_any_name_stays_inside_its_folder(root: Path, name: str) -> None:
    given = reviews.give(root, verdict_of(reviewer=name))
    paths = list((root / "reviews" / "round-1" / "verdicts").glob(f"*/{given.file}"))
    assert len(paths) == 1 and reviews.read_verdicts(root, SESSION).given == (given,)
    assert reviews.reviewer_id("Müller") != reviews.reviewer_id("Muller")


# ---- drafts ----------------------------------------------------------------------------------------


def test_a_draft_waits_where_it_was_left(root: Path) -> None:
    item = Item("c2", "aorta")
    reviews.change_place(
        root, "round-1", "Ada", lambda place: place.with_draft(item, "final", Draft("<b>?", ("too large",)))
    )
    reviews.change_place(root, "round-1", "Ada", lambda place: replace(place, at=item, skipped=(Item("c1", "heart"),)))
    place = reviews.read_place(root, "round-1", "ada")
    assert place.draft(item, "final") == Draft("<b>?", ("too large",)) and place.at == item
    assert place.draft(item, "segmentation") is None and place.skipped == (Item("c1", "heart"),)
    assert reviews.read_place(root, "round-1", "Grace") == Place()
    assert place.with_draft(item, "final", None).drafts == {}


def test_what_was_skipped_comes_back_when_nothing_else_is_left() -> None:
    a, b, c = (Item(name, "heart") for name in "abc")
    assert reviews.upcoming((a, b, c), {}, (), None) == a
    assert reviews.upcoming((a, b, c), {a}, (b,), a) == c
    assert reviews.upcoming((a, b, c), {c}, (b,), c) == a
    assert reviews.upcoming((a, b, c), {a, c}, (b,), c) == b
    assert reviews.upcoming((a, b, c), {a, b, c}, (b,), c) is None


def test_a_damaged_draft_is_a_beginning_and_makes_nobody_independent_again(root: Path) -> None:
    reviews.change_place(root, "round-1", "Ada", lambda place: replace(place, saw_others=True))
    path = next((root / "reviews" / "round-1" / "drafts").glob("*.json"))
    for text in ("{", '{"at": 3}', '{"drafts": [1]}'):
        path.write_text(text)
        assert reviews.read_place(root, "round-1", "Ada") == Place(saw_others=True)


# ---- exported --------------------------------------------------------------------------------------


def test_a_session_is_exported_with_its_cases_or_with_pseudonyms_of_them(root: Path, tmp_path: Path) -> None:
    given = reviews.give(root, verdict_of(note="lower edge", case="c2"))
    named, hidden, key = tmp_path / "named.csv", tmp_path / "hidden.csv", tmp_path / "key"
    assert run("review", "export", "round-1", "--out", named, "--data", root) == 0
    assert run("review", "export", "round-1", "--out", hidden, "--pseudonyms", key, "--data", root) == 0
    assert pd.read_csv(named)[["case_id", "file", "note"]].iloc[0].to_list() == ["c2", given.file, "lower edge"]
    (row,) = pd.read_csv(hidden).to_dict("records")
    assert row["case_id"] == pseudonyms.pseudonyms(key)("c2") and row["note"] == "lower edge"
    # As a word: a digest may hold it by chance.
    assert not any(re.search(r"\bc2\b", str(value)) for value in row.values())
