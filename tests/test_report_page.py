"""The report in a real browser: it sorts, searches, reads well, and runs no one's text."""

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Error, Page, expect, sync_playwright

from pipeline.config.load import load_params
from pipeline.config.schema import ReportConfig
from pipeline.stages.report import PARAM_GROUPS, report
from tests.conftest import write_params
from tests.reports import Said, write_run

IMAGES = 150
TIMEOUT = 20_000  # ms; a busy machine is no failure
HOSTILE = Said(
    '"onerror="hacked=1"><b>.jpg',
    '</script><script>hacked=1</script> <img src=x onerror="hacked=1"> & \u2028 ' + "w" * 200,
    ["<!-- <script>", "{{ 7 * 7 }}", '" onerror="hacked=1'],
    500.0,
    100.0,
)


def said(number: int) -> Said:
    what = ["dog", "woman", "horse"][number % 3]
    return Said(
        f"{number:04d}_bed.jpg",
        f"a {what} on the beach" + " today" * (number % 4),
        [f"one {what} and sand", "waves", "a man walks", "the sea", "a long sandy shore"],
        cider=(number * 7919) % 1000 / 5,
        rouge_l=(number * 104729) % 1000 / 10,
    )


def page_of(folder: Path, images: int) -> Path:
    """The page of so many images, the first of them hostile."""
    inputs = write_run(folder, [HOSTILE, *map(said, range(1, images))])
    path, out = write_params(folder / "params.yaml"), folder / "report.html"
    configs = [load_params(path, group) for group in PARAM_GROUPS]
    report(replace(inputs, base=inputs.metrics), out, configs, load_params(path, ReportConfig))
    return out


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return page_of(tmp_path_factory.mktemp("page"), IMAGES)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    found = os.environ.get("CHROME") or next(filter(None, map(shutil.which, names)), None)
    if found is None:
        why = f"no browser: install one of {', '.join(names)}, or name its program in CHROME"
        pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)
    alone = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium's own sandbox refuses root
    expect.set_options(timeout=TIMEOUT)
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=alone)
        yield opened
        opened.close()


@pytest.fixture
def context(browser: Browser, request: pytest.FixtureRequest) -> Iterator[BrowserContext]:
    """A window of its own; `request.param` are Playwright's options for it."""
    made = browser.new_context(**{"reduced_motion": "reduce", **getattr(request, "param", {})})
    made.set_default_timeout(TIMEOUT)
    yield made
    made.close()


@pytest.fixture
def page(context: BrowserContext, file: Path) -> Iterator[Page]:
    """The page, opened from the disk; nothing in it may fail or ask for anything."""
    opened, wrong = context.new_page(), []
    opened.on("console", lambda said: wrong.append(said.text))
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("dialog", lambda dialog: wrong.append(dialog.message))
    opened.on(
        "request", lambda sent: sent.url.startswith(("file:", "data:")) or wrong.append(sent.url)
    )
    opened.goto(file.as_uri())
    yield opened
    assert wrong == []


def values(page: Page, measure: str) -> list[float]:
    texts = page.locator(".measures span", has_text=measure).all_text_contents()
    return [float(text.split()[-1]) for text in texts]


def ids(page: Page) -> list[str]:
    return page.locator("#cards .id").all_text_contents()


def test_a_thousand_images_are_less_than_ten_megabytes_and_few_are_laid_out(
    context: BrowserContext, tmp_path: Path
) -> None:
    file = page_of(tmp_path, 1000)
    assert 2_000_000 < file.stat().st_size < 10_000_000
    page = context.new_page()
    page.goto(file.as_uri())
    expect(page.locator("#found")).to_have_text("1,000 images, 48 shown")
    assert page.locator("#cards img").count() == 48  # the others are not laid out


def test_few_cards_are_laid_out_at_first_and_more_on_demand(page: Page) -> None:
    assert len(ids(page)) == 48
    expect(page.locator("#found")).to_have_text("150 images, 48 shown")
    page.get_by_role("button", name="Show 48 more").click()
    expect(page.locator("#cards .id")).to_have_count(96)
    expect(page.locator("#cards > li").nth(48)).to_be_focused()  # the first of the new ones
    image = page.locator("#cards img").first
    assert (image.get_attribute("loading"), image.get_attribute("decoding")) == ("lazy", "async")
    assert page.evaluate("document.querySelector('#cards img').naturalWidth") == 160


def test_it_sorts_both_ways(page: Page) -> None:
    for key, measure in (("CIDEr", "CIDEr"), ("ROUGE-L", "ROUGE-L"), ("caption length", "words")):
        page.get_by_label("Sort by").select_option(key)
        down = values(page, measure)
        assert down == sorted(down, reverse=True)  # at first the best, or the longest
        page.get_by_label("Order").select_option("up")
        up = values(page, measure)
        assert up == sorted(up)
        assert max(up) < max(down)


def test_scores_are_sorted_by_best_and_ids_by_the_alphabet(page: Page) -> None:
    order = page.get_by_label("Order")
    assert order.locator("option").all_inner_texts() == ["A to Z", "Z to A"]
    page.get_by_label("Sort by").select_option("CIDEr")
    assert order.locator("option").all_inner_texts() == ["worst to best", "best to worst"]
    assert ids(page)[0] == HOSTILE.image_id
    page.get_by_label("Sort by").select_option("image id")
    order.select_option("Z to A")
    assert ids(page)[:2] == ["0149_bed.jpg", "0148_bed.jpg"]


SEARCHES = [
    ("woman", "captions and references", 50),
    ("WOM beach", "our captions", 50),
    ("man", "captions and references", 149),  # in references; not for the sake of "woman"
    ("man", "our captions", 0),
    ("wave", "references", 149),
    ("oman", "captions and references", 0),  # a word is found by its beginning
    ("0042", "our captions", 1),
    ('"woman on the"', "our captions", 50),
    ('"the on"', "our captions", 0),  # a phrase is its words in their order
    ('"on the bea" dog', "our captions", 49),
    ('"woman on', "our captions", 50),  # while it is being typed
    ("bed", "captions and references", 0),  # part of every id, and no one's word
    ("</script>", "captions and references", 1),
    (".*", "captions and references", 0),
]


def test_it_finds_words_and_ids(page: Page) -> None:
    for words, where, found in SEARCHES:
        page.get_by_label("In", exact=True).select_option(where)
        page.get_by_label("Find words or an image id").fill(words)
        count = re.compile(rf"^{found} of 150 images match")
        expect(page.locator("#found")).to_have_text(count)
        assert len(ids(page)) == min(found, 48)


def test_what_was_found_is_marked_and_announced(page: Page) -> None:
    page.get_by_label("Find words or an image id").fill("san sea")
    card = page.locator("#cards > li").first
    assert card.locator("mark").all_inner_texts() == ["san", "sea", "san"]
    status = page.get_by_role("status")
    assert status.get_attribute("aria-live") == "polite"
    expect(status).to_have_text("149 of 150 images match, 48 shown")


def test_strangers_text_is_shown_as_text(page: Page) -> None:
    card = page.locator("#cards > li").first
    assert card.locator(".id").text_content() == HOSTILE.image_id
    assert (card.locator(".caption").text_content() or "").split() == HOSTILE.caption.split()
    assert card.locator("ul li").all_text_contents() == HOSTILE.references
    assert card.locator("img").get_attribute("alt") == "Image " + HOSTILE.image_id
    assert HOSTILE.caption.split()[0] in page.locator("main").inner_text()  # the constant yardstick
    assert page.evaluate("typeof hacked") == "undefined"
    assert page.locator("script").count() == 2


def test_even_a_script_that_came_in_could_not_run_or_call_out(
    context: BrowserContext, file: Path
) -> None:
    page = context.new_page()
    page.goto(file.as_uri())
    page.evaluate(
        "() => { const s = document.createElement('script'); s.textContent = 'hacked = 1';"
        " document.body.append(s); document.body.setAttribute('onclick', 'hacked = 1');"
        " document.body.click(); }"
    )
    assert page.evaluate("typeof hacked") == "undefined"
    with pytest.raises(Error, match="Failed to fetch"):
        page.evaluate("() => fetch('https://example.com/')")


def test_the_keyboard_is_enough(page: Page) -> None:
    page.keyboard.press("Tab")
    skip = page.get_by_role("link", name="Skip to the scores")
    expect(skip).to_be_focused()
    assert skip.bounding_box()["y"] >= 0  # type: ignore[index]
    page.keyboard.press("Enter")
    expect(page.locator("#main")).to_be_focused()
    seen = []
    for _ in range(40):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
        if seen[-1] == "find":
            break
    assert "SUMMARY" in seen  # the numbers below a chart
    page.keyboard.type("horse")
    expect(page.locator("#found")).to_contain_text("50 of 150")
    for stop in ("where", "sort"):
        page.keyboard.press("Tab")
        expect(page.locator(f"#{stop}")).to_be_focused()
    page.keyboard.press("ArrowDown")
    expect(page.locator("#sort")).to_have_value("cider")
    assert values(page, "CIDEr") == sorted(values(page, "CIDEr"), reverse=True)
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    expect(page.locator("#more")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#cards > li").nth(48)).to_be_focused()


def test_every_control_and_chart_has_a_name(page: Page) -> None:
    named = """one => one.labels?.length || one.getAttribute('aria-label') || one.caption
        || document.getElementById(one.getAttribute('aria-labelledby')?.split(' ')[0])
        || one.closest('[role=region]')?.getAttribute('aria-label')"""
    for one in page.locator("input, select, svg[role], table").all():
        assert one.evaluate(named), one.evaluate("one => one.outerHTML")
    every = page.evaluate("[...document.querySelectorAll('[id]')].map(one => one.id)")
    assert len(every) == len(set(every))
    titles = page.locator("svg.chart > title").all_text_contents()
    assert {"Loss", "Scores on val", "Self-critical training", "Caption length"} <= set(titles)


@pytest.mark.parametrize("context", [{"viewport": {"width": w, "height": 844}} for w in (320, 390)],
                         indirect=True)  # fmt: skip
def test_on_a_phone_nothing_scrolls_sideways(page: Page) -> None:
    expect(page.locator("#without")).to_have_count(0)
    page.locator("details").evaluate_all("all => all.forEach(one => { one.open = true; })")
    wide, room = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide <= room
    smallest = page.evaluate(
        "Math.min(...[...document.querySelectorAll('.chart text')].map(one =>"
        " parseFloat(getComputedStyle(one).fontSize) * one.getScreenCTM().a))"
    )
    assert smallest > 8.5  # pixels
    inside, shown = page.locator(".scores").evaluate(
        "table => [table.offsetWidth, table.parentElement.clientWidth]"
    )
    assert inside <= shown or room < 360  # where it does not fit, it scrolls by itself


def luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize(
    "context", [{"color_scheme": "light"}, {"color_scheme": "dark"}], indirect=True
)
def test_light_and_dark_can_both_be_read(page: Page, request: pytest.FixtureRequest) -> None:
    def colour(selector: str, name: str) -> float:
        found: Any = page.locator(selector).first.evaluate(
            "(one, name) => getComputedStyle(one)[name]", name
        )
        return luminance(found)

    paper, card = colour("body", "backgroundColor"), colour(".card", "backgroundColor")
    dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    assert paper < 0.05 if dark else paper > 0.8
    for selector, name, behind in [
        *(("h1", "color", paper), (".lead", "color", paper), (".warning, .note", "color", card)),
        *((".own", "color", card), (".caption", "color", card), (".id", "color", card)),
        *((".measures", "color", card), ("svg .tick", "fill", card), ("button", "color", card)),
    ]:
        light, deep = sorted((colour(selector, name), behind), reverse=True)
        assert (light + 0.05) / (deep + 0.05) >= 4.5, selector


@pytest.mark.parametrize("context", [{"java_script_enabled": False}], indirect=True)
def test_without_javascript_scores_and_curves_still_show(page: Page) -> None:
    expect(page.get_by_role("heading", name="150 images")).to_be_visible()
    expect(page.locator(".big").first).to_be_visible()
    for chart in page.locator("svg.chart").all():
        expect(chart).to_be_visible()
    expect(page.get_by_text("The images show with JavaScript")).to_be_visible()
    expect(page.locator("#gallery")).to_be_hidden()
