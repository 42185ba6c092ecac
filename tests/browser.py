"""DVC's page of images in a real browser, and what a reader finds in each.

The browser is offline, and what the page asks of a network is an error.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# As SVG, which is drawn from the same scene as the canvas, texts and curves can be asked for.
AS_SVG = """
let embed;
Object.defineProperty(window, "vegaEmbed", {
    set(given) { embed = given; },
    get() {
        return (where, spec) => embed(where, spec, {renderer: "svg"}).then(
            () => { window.drawn = (window.drawn || 0) + 1; });
    },
});
"""

LOOK = """chart => {
    const texts = (part) => [...chart.querySelectorAll(part + " text")].map(t => t.textContent);
    const curves = [...chart.querySelectorAll("g.mark-line:not(.role-legend-symbol) > path")]
        .filter(path => !path.closest(".role-legend") && !path.getAttribute("d").includes("NaN"));
    const points = [...chart.querySelectorAll("g.mark-symbol > path")]
        .filter(path => !path.closest(".role-legend"));
    const box = chart.querySelector("svg").getBoundingClientRect();
    return {
        title: texts(".role-title-text").join(" "),
        axes: texts(".role-axis-title"),
        legend: texts(".role-legend-label"),
        curves: curves.length,
        colours: points.map(path => path.getAttribute("fill")),
        top: box.top, bottom: box.bottom,
    };
}"""


@dataclass(frozen=True)
class Chart:
    """An image as a reader finds it."""

    title: str
    axes: tuple[str, ...]  # titles: x, y
    legend: frozenset[str]
    curves: int
    colours: frozenset[str]  # of the points
    top: float
    bottom: float


def draw(page: Path, screenshot: Path) -> list[Chart]:
    """All charts of the page, in order; the page as an image goes to `screenshot`."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        assert "CI" not in os.environ, "there is no Chromium to draw the page with"
        pytest.skip("there is no Chromium to draw the page with")
    from playwright.sync_api import Route, sync_playwright

    wrong: list[str] = []

    def answer(route: Route) -> None:
        if route.request.url.startswith("file:"):
            route.continue_()
        else:
            wrong.append(route.request.url)
            route.abort()

    with sync_playwright() as playwright:
        # Chromium's sandbox does not start for root, as whom containers run.
        flags = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        context = browser.new_context(viewport={"width": 1400, "height": 900}, offline=True)
        tab = context.new_page()
        tab.add_init_script(AS_SVG)
        tab.route("**/*", answer)
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.goto(page.as_uri())
        asked = page.read_text(encoding="utf-8").count("vegaEmbed('#")
        tab.wait_for_function(f"window.drawn === {asked}")
        tab.screenshot(path=screenshot, full_page=True)
        found: list[dict[str, Any]] = [
            one.evaluate(LOOK) for one in tab.locator(".vega-embed").all()
        ]
        browser.close()
    assert not wrong
    return [
        Chart(
            *(one["title"], tuple(one["axes"]), frozenset(one["legend"]), one["curves"]),
            *(frozenset(one["colours"]), one["top"], one["bottom"]),
        )
        for one in found
    ]
