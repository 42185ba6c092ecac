"""The layout of the report's page in a browser: keyboard, screen readers, phones, colours."""

import re
from typing import Any

import pytest
from playwright.sync_api import Page, expect

pytest_plugins = ["tests.helpers.report_page"]


def test_the_keyboard_suffices(page: Page) -> None:
    page.keyboard.press("Tab")
    skip = page.get_by_role("link", name="Skip to the scores")
    expect(skip).to_be_focused()
    assert skip.bounding_box()["y"] >= 0  # type: ignore[index]
    page.keyboard.press("Enter")
    expect(page.locator("#main")).to_be_focused()
    stops = []
    for _ in range(40):
        page.keyboard.press("Tab")
        stops.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
        if stops[-1] == "find":
            break
    assert "SUMMARY" in stops  # the numbers below a chart
    page.keyboard.type("horse")
    expect(page.locator("#found")).to_contain_text("50 of 150")
    for stop in ("where", "sort"):
        page.keyboard.press("Tab")
        expect(page.locator(f"#{stop}")).to_be_focused()
    page.keyboard.press("ArrowDown")
    expect(page.locator("#sort")).to_have_value("cider")
    scores = page.locator(".measures span", has_text="CIDEr").all_text_contents()
    values = [float(text.split()[-1]) for text in scores]
    assert values == sorted(values, reverse=True)
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    expect(page.locator("#more")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#cards > li").nth(48)).to_be_focused()


def test_every_control_and_chart_has_a_name(page: Page) -> None:
    named = """node => node.labels?.length || node.getAttribute('aria-label') || node.caption
        || document.getElementById(node.getAttribute('aria-labelledby')?.split(' ')[0])
        || node.closest('[role=region]')?.getAttribute('aria-label')"""
    for element in page.locator("input, select, svg[role], table").all():
        assert element.evaluate(named), element.evaluate("node => node.outerHTML")
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(node => node.id)")
    assert len(ids) == len(set(ids))
    titles = page.locator("svg.chart > title").all_text_contents()
    assert {"Loss", "Scores on val", "Self-critical training", "Caption length"} <= set(titles)


PHONES = [{"viewport": {"width": width, "height": 844}} for width in (320, 390)]


@pytest.mark.parametrize("context", PHONES, indirect=True)
def test_on_a_phone_nothing_scrolls_sideways(page: Page) -> None:
    expect(page.locator("#no-script")).to_have_count(0)
    page.locator("details").evaluate_all("nodes => nodes.forEach(node => { node.open = true; })")
    width, viewport = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert width <= viewport
    smallest = page.evaluate(
        "Math.min(...[...document.querySelectorAll('.chart text')].map(node =>"
        " parseFloat(getComputedStyle(node).fontSize) * node.getScreenCTM().a))"
    )
    assert smallest > 8.5  # pixels
    inside, shown = page.locator(".scores").evaluate(
        "table => [table.offsetWidth, table.parentElement.clientWidth]"
    )
    assert inside <= shown or viewport < 360  # below that the table scrolls by itself


def luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(first: float, second: float) -> float:
    dark, light = sorted((first, second))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize(
    "context", [{"color_scheme": "light"}, {"color_scheme": "dark"}], indirect=True
)
def test_light_and_dark_have_enough_contrast(page: Page) -> None:
    def colour(selector: str, name: str) -> float:
        value: Any = page.locator(selector).first.evaluate(
            "(node, name) => getComputedStyle(node)[name]", name
        )
        return luminance(value)

    paper, card = colour("body", "backgroundColor"), colour(".card", "backgroundColor")
    dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    assert paper < 0.05 if dark else paper > 0.8
    for selector in ("h1", ".lead"):
        assert contrast(colour(selector, "color"), paper) >= 4.5, selector
    on_cards = (".warning, .note", ".own", ".caption", ".id", ".measures", "button")
    for selector in on_cards:
        assert contrast(colour(selector, "color"), card) >= 4.5, selector
    assert contrast(colour("svg .tick", "fill"), card) >= 4.5


@pytest.mark.parametrize("context", [{"java_script_enabled": False}], indirect=True)
def test_scores_and_curves_need_no_javascript(page: Page) -> None:
    expect(page.get_by_role("heading", name="150 images")).to_be_visible()
    expect(page.locator(".big").first).to_be_visible()
    for chart in page.locator("svg.chart").all():
        expect(chart).to_be_visible()
    expect(page.get_by_text("The images need JavaScript")).to_be_visible()
    expect(page.locator("#gallery")).to_be_hidden()
