"""The report in a browser: it draws, it fits, nothing fails, and everybody can read it. Skipped without Chromium."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_report import small_project

from sightline.report.__main__ import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs Chromium: apt-get install chromium")
WITHOUT_MARKS = """[...document.querySelectorAll(".chart")].filter(
    chart => !chart.querySelector(".role-mark path, .role-mark line")).map(chart => chart.id)"""
BROKEN = "[...document.images].filter(image => !image.naturalWidth).map(image => image.alt)"


@pytest.fixture(scope="module")
def browser() -> Iterator:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    """Of a project with results, of the same after one epoch, of a fresh clone."""
    folder = tmp_path_factory.mktemp("pages")
    made = {}
    for name, epochs in (("results", 3), ("one_epoch", 1), ("fresh", 1)):
        root = small_project(folder / name, epochs=epochs)
        if name == "fresh":
            shutil.rmtree(root / "metrics")
            shutil.rmtree(root / "data")
        made[name] = root / "report.html"
        write_report(root, made[name], [])
    return made


@pytest.mark.parametrize("width", [390, 1400])
@pytest.mark.parametrize("name", ["results", "one_epoch", "fresh"])
def test_the_page_draws_everything_fits_and_is_accessible(browser, pages, name, width):
    from axe_playwright_python.sync_playwright import Axe

    for scheme in ("light", "dark"):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        said: list[str] = []
        page.on("console", lambda message, said=said: said.append(message.text))
        page.on("pageerror", lambda error, said=said: said.append(str(error)))
        page.on(
            "request", lambda r, said=said: r.url.startswith(("file:", "data:")) or said.append(f"asked for {r.url}")
        )
        page.goto(pages[name].as_uri())
        charts = page.locator(".chart").count()
        assert (charts == 0) == (name == "fresh")
        if charts:
            page.wait_for_function("document.querySelectorAll('.chart svg').length == " + str(charts))
        assert page.evaluate(WITHOUT_MARKS) == []
        assert page.evaluate(BROKEN) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        found = Axe().run(page).response["violations"]
        serious = [violation["id"] for violation in found if violation["impact"] in ("serious", "critical")]
        assert serious == [], json.dumps(found)[:2000]
        assert said == []
        page.close()


def test_a_point_of_a_curve_tells_its_value(browser, pages):
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.goto(pages["results"].as_uri())
    title = page.locator(".card", has_text="Learning curve").last
    point = title.locator(".mark-symbol.role-mark path").first
    point.scroll_into_view_if_needed()
    point.hover(force=True)
    tip = page.locator("#vg-tooltip-element")
    tip.wait_for(state="visible")
    assert "training loss" in tip.inner_text()
    page.close()
