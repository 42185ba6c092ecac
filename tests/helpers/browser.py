"""DVC's page of plots in a real browser, and the content of each plot.

The browser is offline, and a request to a network is an error.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# SVG, which Vega draws from the same scene as the canvas, so that texts and curves can be queried.
AS_SVG = """
let embed;
Object.defineProperty(window, "vegaEmbed", {
    set(value) { embed = value; },
    get() {
        return (where, spec) => embed(where, spec, {renderer: "svg"}).then(
            () => { window.drawn = (window.drawn || 0) + 1; });
    },
});
"""

DESCRIBE = """chart => {
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
    """A plot as a reader sees it."""

    title: str
    axes: tuple[str, ...]  # titles: x, y
    legend: frozenset[str]
    curves: int
    colours: frozenset[str]  # of the points
    top: float
    bottom: float


def draw(page: Path, screenshot: Path) -> list[Chart]:
    """Return all plots of the page, in order, and write an image of it to `screenshot`."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        assert "CI" not in os.environ, "no Chromium to draw the page with"
        pytest.skip("no Chromium to draw the page with")
    from playwright.sync_api import Route, sync_playwright

    problems: list[str] = []

    def answer(route: Route) -> None:
        if route.request.url.startswith("file:"):
            route.continue_()
        else:
            problems.append(route.request.url)
            route.abort()

    with sync_playwright() as playwright:
        # Chromium's sandbox does not start for root, the user of many containers.
        flags = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        context = browser.new_context(viewport={"width": 1400, "height": 900}, offline=True)
        tab = context.new_page()
        tab.add_init_script(AS_SVG)
        tab.route("**/*", answer)
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.goto(page.as_uri())
        plots = page.read_text(encoding="utf-8").count("vegaEmbed('#")
        tab.wait_for_function(f"window.drawn === {plots}")
        tab.screenshot(path=screenshot, full_page=True)
        charts: list[dict[str, Any]] = [
            plot.evaluate(DESCRIBE) for plot in tab.locator(".vega-embed").all()
        ]
        browser.close()
    assert not problems
    return [
        Chart(
            title=chart["title"],
            axes=tuple(chart["axes"]),
            legend=frozenset(chart["legend"]),
            curves=chart["curves"],
            colours=frozenset(chart["colours"]),
            top=chart["top"],
            bottom=chart["bottom"],
        )
        for chart in charts
    ]
