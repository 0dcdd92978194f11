"""Agreement of reviewers by hand-checkable numbers, and the tables and report made of it."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pandas as pd
import pytest

from agg2exp_core import spreadsheet
from agg2exp_core.analysis import raters, review_report
from agg2exp_core.organs import load_label_set
from agg2exp_core.store.reviews import Item, Seen, Session, Verdict, Verdicts

LABELS = load_label_set("thorax17")
EVIL = "<script>alert(1)</script> & \"quoted\" 'text'"


def items_of(letters: str) -> dict[Item, str]:
    names = {"a": "accept", "c": "correct", "r": "reject", "u": "unsure"}
    return {Item(f"c{n}", "heart"): names[letter] for n, letter in enumerate(letters) if letter != "."}


def test_kappa_of_a_table_that_can_be_checked_by_hand() -> None:
    """20 accepted by both, 15 rejected by both, 5 and 10 differ: p_o = 0.7, p_e = 0.5, κ = 0.4."""
    found = raters.agreement(
        items_of("a" * 25 + "r" * 25), items_of("a" * 20 + "r" * 5 + "a" * 10 + "r" * 15), ("A", "B")
    )
    assert (found.items, found.same) == (50, 0.7)
    assert found.kappa == pytest.approx(0.4)
    assert found.confusion.loc["accept", "reject"] == 5 and found.confusion.loc["reject", "accept"] == 10
    assert found.confusion.to_numpy().sum() == 50


@pytest.mark.parametrize(
    ("first", "second", "items", "same", "kappa"),
    [
        ("acru", "acru", 4, 1.0, 1.0), ("aaaa", "aaaa", 4, 1.0, None), ("a..", ".a.", 0, None, None),
        ("ar", "ra", 2, 0.0, -1.0), ("aaar", "aaaa", 4, 0.75, 0.0),
    ],
)  # fmt: skip
def test_kappa_at_its_ends(first: str, second: str, items: int, same: float | None, kappa: float | None) -> None:
    found = raters.agreement(items_of(first), items_of(second), ("A", "B"))
    assert (found.items, found.same, found.kappa) == (items, same, pytest.approx(kappa) if kappa is not None else None)


# ---- a session ---------------------------------------------------------------------------------------


SESSION = Session("round-1", "tiny", "r", ("heart",), ("c1", "c2", "c3"))


def said(reviewer: str, case: str, verdict: str, phase: str = "final", **other: object) -> Verdict:
    name = f"{reviewer}-{case}-{phase}-{verdict}"
    given = "2026-01-02T03:04:05+00:00"
    values = {
        "seen": Seen("s", "p", settings={"window": "lung"}),
        "given": given,
        "file": name,
        "seconds": 10.0,
    } | other
    return Verdict("round-1", "tiny", "r", case, "heart", phase, reviewer, verdict, **values)  # type: ignore[arg-type]


@pytest.fixture
def verdicts() -> Verdicts:
    """Ada and Grace agree on c1; differ on c2, which is settled; on c3 they agreed only after a look at each other."""
    return Verdicts((
        said("Ada", "c1", "accept", "segmentation"), said("Ada", "c1", "reject", note=EVIL, tags=("too large",)),
        said("Grace", "c1", "reject", "segmentation"), said("Grace", "c1", "reject"),
        said("Ada", "c2", "accept"), said("Grace", "c2", "reject"),
        said("Chair", "c2", "correct", "adjudication", note="=1+1"),
        said("Ada", "c3", "accept"), said("Grace", "c3", "unsure"),
        said("Grace", "c3", "accept", independent=False, replaces="Grace-c3-final-unsure"),
    ))  # fmt: skip


def test_only_what_was_said_independently_counts_for_agreement(verdicts: Verdicts) -> None:
    (pair,) = raters.pairs(verdicts, "final")
    assert (pair.first, pair.second, pair.items, pair.same) == ("Ada", "Grace", 3, pytest.approx(1 / 3))
    assert pair.confusion.loc["accept", "unsure"] == 1
    assert raters.pairs(verdicts, "final", target="aorta") == []


def test_outcomes_follow_the_adjudication(verdicts: Verdicts) -> None:
    assert [outcome.verdict for outcome in raters.outcomes(SESSION, verdicts)] == ["reject", "correct", "accept"]
    without = Verdicts(tuple(one for one in verdicts.given if one.phase != "adjudication"))
    assert [outcome.verdict for outcome in raters.outcomes(SESSION, without)] == ["reject", "split", "accept"]
    assert [outcome.verdict for outcome in raters.outcomes(SESSION, Verdicts(()))] == [None, None, None]
    outcome = next(one for one in raters.outcomes(SESSION, verdicts) if one.adjudication)
    agreed = {name: replace(verdict, verdict="accept") for name, verdict in outcome.finals.items()}
    assert replace(outcome, finals=agreed).verdict == "accept"  # who agrees by now needs no judge


def test_counts_time_and_what_the_evidence_changed(verdicts: Verdicts) -> None:
    assert raters.counts(SESSION, verdicts).set_index("reviewer").loc["Ada", ["accept", "reject"]].tolist() == [2, 1]
    seen = Verdicts((said("Grace", "c3", "unsure", "segmentation"), *verdicts.given))  # changed later, by Ada's verdict
    assert raters.changed_by_evidence(seen).set_index("reviewer")["changed"].to_dict() == {"Ada": 1, "Grace": 0}
    progress = raters.progress(replace(SESSION, reviewers=("Eve",)), verdicts).set_index("reviewer")
    assert progress["done"].to_dict() == {"Eve": 0, "Ada": 3, "Grace": 3}
    assert progress.loc["Ada", "seconds"] == 10  # 20 s on c1, 10 s each on the others
    assert raters.finished(SESSION, verdicts, "ADA") and not raters.finished(SESSION, verdicts, "Eve")


# ---- tables and report -------------------------------------------------------------------------------


def test_the_csv_has_a_row_a_verdict_and_starts_no_formula(verdicts: Verdicts) -> None:
    table = pd.read_csv(io.StringIO(spreadsheet.to_csv(review_report.verdict_table(verdicts))))
    assert len(table) == len(verdicts.given) and list(table.columns) == list(review_report.COLUMNS)
    assert table.loc[table["phase"] == "adjudication", "note"].item() == "'=1+1"
    assert table.loc[table["file"] == "Grace-c3-final-unsure", "holds"].item() == "no"
    assert table.loc[1, ["note", "tags", "scan_sha256", "window"]].tolist() == [EVIL, "too large", "s", "lung"]
    summary = review_report.summary_table(SESSION, verdicts)
    assert summary["outcome"].tolist() == ["reject", "correct", "accept"]
    assert summary["verdict of Grace"].tolist() == ["reject", "reject", "accept"]


def test_the_report_needs_nothing_and_runs_nothing(verdicts: Verdicts) -> None:
    evil = replace(SESSION, list_name=EVIL)
    damaged = Verdicts((*verdicts.given, said(EVIL, "c1", "accept")), (EVIL,))
    page = review_report.html(evil, damaged, LABELS, lambda item: b"png" if item.case == "c1" else None)
    assert "<script" not in page and page.count("&lt;script&gt;") >= 4
    assert re.findall(r"(?:src|href)=['\"](?!data:image/png)", page) == [] and "http" not in page.replace(
        "http-equiv", ""
    )
    assert "default-src 'none'" in page and page.count("<article>") == 3 and page.count("<img") == 1
    assert "Ada, Grace" in page and "33 %" in page and "c1: Heart" in page
