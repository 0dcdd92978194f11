"""`python -m docs.pictures`: take the README's screenshots of the demo, in a real browser."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Page

from agg2exp_core.settings import SHIPPED
from bench.browser import browser, served

FOLDER = Path(__file__).parent
RUN = "thorax17_swinunetr-smoothgrad-pairs-4"
SIZE = {"width": 1440, "height": 900}


def main() -> None:
    """Overwrite cohort.png and case.png beside this file."""
    with served(SHIPPED) as url, browser(webgl=True) as chromium:
        page = chromium.new_page(viewport=SIZE, base_url=url)
        page.set_default_timeout(60_000)
        cohort(page)
        case(page)


def cohort(page: Page) -> None:
    """The clinic's left lower lobe, with the cell of the left upper lobe picked."""
    picked = "lung_lower_lobe_left~lung_upper_lobe_left"
    page.goto(f"/?cohort=clinic&run={RUN}&target=lung_lower_lobe_left&background=off&pick={picked}")
    page.locator(".st-key-cohort_boxes .boxlayer path.box").first.wait_for()
    page.locator(".st-key-cohort_matrix .heatmaplayer image").first.wait_for()
    page.wait_for_timeout(1500)
    page.screenshot(path=FOLDER / "cohort.png")


def case(page: Page) -> None:
    """A pleural effusion, explained for the lobe in front of it."""
    page.goto(f"/case?cohort=clinic&run={RUN}&case=cli-02&target=lung_lower_lobe_left")
    page.locator(".viewer[data-state=ready]").wait_for()
    page.locator(".st-key-case_bars .barlayer path").first.wait_for(state="attached")
    page.wait_for_timeout(1500)
    page.screenshot(path=FOLDER / "case.png")


if __name__ == "__main__":
    main()
