"""Case, Query, Review and Runs on the published table, which has shares and Dice and no scans, in a browser."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from pages import cells, drawn, watched
from playwright.sync_api import Browser, Page, expect

from agg2exp_core.organs import BACKGROUND, load_label_set
from agg2exp_core.store import published_csv

LABELS = load_label_set("thorax17")
TITLES = {organ.name: organ.title for organ in LABELS.organs}


@pytest.fixture
def table(shared_data: Path) -> pd.DataFrame:
    """A row a patient: shares of the heart's attribution on every region, as they are published, and its Dice."""
    wide = pd.read_csv(next((shared_data / "published").glob("*.csv"))).set_index("patient")
    columns = {f"heart_explanation_in_{name}_mass": name for name in TITLES} | {"heart_dice": "dice"}
    return wide[list(columns)].rename(columns=columns)


@pytest.fixture
def root(tmp_path: Path, shared_data: Path) -> Path:
    published_csv.import_csv(tmp_path, next((shared_data / "published").glob("*.csv")), "published")
    return tmp_path


@pytest.mark.browser
def test_pages_without_scans_draw_their_numbers_and_say_what_to_do(
    chromium: Browser, server: Callable[[Path], str], root: Path, table: pd.DataFrame
) -> None:
    page = chromium.new_page(viewport={"width": 1440, "height": 900}, base_url=server(root))
    page.set_default_timeout(60_000)
    noted = watched(page)
    _case(page, table)
    _query(page, table)
    _review(page)
    _runs(page)
    assert noted == []


def _case(page: Page, table: pd.DataFrame) -> None:
    """Shares among the organs; then, by a switch, of all of it."""
    page.goto("/case?cohort=published&case=s0802&target=heart")
    expect(page.get_by_text("No image is stored for this case")).to_contain_text("Bring a scan")
    whole = 100 * table.loc["s0802", list(TITLES)]
    organs = whole.drop(BACKGROUND)
    assert _bars(page, "case_bars") == pytest.approx(_titled(100 * organs / organs.sum()), abs=1e-4)
    page.get_by_text("With background", exact=True).click()
    page.wait_for_url("**background=on**")
    assert _bars(page, "case_bars") == pytest.approx(_titled(whole), abs=1e-4)
    told = cells(page)
    assert float(told[told.index("Heart") + 1]) == pytest.approx(table.loc["s0802", "dice"], abs=1e-6)


def _query(page: Page, table: pd.DataFrame) -> None:
    """The first example: the regions that the heart rests on most, named alike in table and chart."""
    page.get_by_role("link", name="Query").click()
    expected = table[list(TITLES)].median().nlargest(12)
    (bars,) = drawn(page, "query_chart")
    shown = dict(zip(bars["y"], bars["x"], strict=True))
    assert shown == pytest.approx(_titled(expected), abs=1e-6)
    assert set(shown) < set(cells(page))


def _review(page: Page) -> None:
    page.get_by_role("link", name="Review").click()
    expect(page.get_by_text("0 cases have a scan and a segmentation of this run. 32 more do not")).to_be_visible()
    expect(page.get_by_text("Reviewers look at scans, and here are none to show")).to_be_visible()
    expect(page.get_by_role("button", name=re.compile("Create"))).to_be_disabled()


def _runs(page: Page) -> None:
    page.get_by_role("link", name="Runs").click()
    page.get_by_text("Explained so far").wait_for()
    assert {"published", "32 of 32"} < set(cells(page))


def _bars(page: Page, chart: str) -> dict[str, float]:
    bars = next(trace for trace in drawn(page, chart) if trace["name"] == "this case")
    return dict(zip(bars["y"], bars["x"], strict=True))


def _titled(shares: pd.Series) -> dict[str, float]:
    return {TITLES[str(name)]: float(share) for name, share in shares.items()}
