"""The gallery of the report's page in a browser: it sorts, searches, and runs no untrusted text."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Error, Page, expect

from tests.helpers.reports import HOSTILE, page_of

pytest_plugins = ["tests.helpers.report_page"]


def values_of(page: Page, measure: str) -> list[float]:
    """Return a measure of all cards, in their order."""
    texts = page.locator(".measures span", has_text=measure).all_text_contents()
    return [float(text.split()[-1]) for text in texts]


def ids_of(page: Page) -> list[str]:
    """Return the ids of all cards, in their order."""
    return page.locator("#cards .id").all_text_contents()


def test_a_page_of_a_thousand_images_is_below_ten_megabytes(
    context: BrowserContext, tmp_path: Path
) -> None:
    path = page_of(tmp_path, 1000)
    assert 2_000_000 < path.stat().st_size < 10_000_000
    page = context.new_page()
    page.goto(path.as_uri())
    expect(page.locator("#found")).to_have_text("1,000 images, 48 shown")
    assert page.locator("#cards img").count() == 48  # the others are added on demand


def test_more_cards_are_added_on_demand(page: Page) -> None:
    assert len(ids_of(page)) == 48
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
        down = values_of(page, measure)
        assert down == sorted(down, reverse=True)  # the best, or the longest, come first
        page.get_by_label("Order").select_option("up")
        up = values_of(page, measure)
        assert up == sorted(up)
        assert max(up) < max(down)


def test_scores_sort_from_the_best_and_ids_alphabetically(page: Page) -> None:
    order = page.get_by_label("Order")
    assert order.locator("option").all_inner_texts() == ["A to Z", "Z to A"]
    page.get_by_label("Sort by").select_option("CIDEr")
    assert order.locator("option").all_inner_texts() == ["worst to best", "best to worst"]
    assert ids_of(page)[0] == HOSTILE.image_id
    page.get_by_label("Sort by").select_option("image id")
    order.select_option("Z to A")
    assert ids_of(page)[:2] == ["0149_bed.jpg", "0148_bed.jpg"]


SEARCHES = [
    ("woman", "captions and references", 50),
    ("WOM beach", "model captions", 50),
    ("man", "captions and references", 149),  # in references; "woman" does not match
    ("man", "model captions", 0),
    ("wave", "references", 149),
    ("oman", "captions and references", 0),  # words match by their beginning
    ("0042", "model captions", 1),
    ('"woman on the"', "model captions", 50),
    ('"the on"', "model captions", 0),  # the words of a phrase are in order
    ('"on the bea" dog', "model captions", 49),
    ('"woman on', "model captions", 50),  # an unfinished phrase
    ("bed", "captions and references", 0),  # part of every id, but not a word
    ("</script>", "captions and references", 1),
    (".*", "captions and references", 0),
]


def test_it_finds_words_and_ids(page: Page) -> None:
    for query, where, matches in SEARCHES:
        page.get_by_label("In", exact=True).select_option(where)
        page.get_by_label("Find words or an image id").fill(query)
        count = re.compile(rf"^{matches} of 150 images match")
        expect(page.locator("#found")).to_have_text(count)
        assert len(ids_of(page)) == min(matches, 48)


def test_matches_are_highlighted_and_announced(page: Page) -> None:
    page.get_by_label("Find words or an image id").fill("san sea")
    card = page.locator("#cards > li").first
    assert card.locator("mark").all_inner_texts() == ["san", "sea", "san"]
    status = page.get_by_role("status")
    assert status.get_attribute("aria-live") == "polite"
    expect(status).to_have_text("149 of 150 images match, 48 shown")


def test_untrusted_text_is_shown_as_text(page: Page) -> None:
    card = page.locator("#cards > li").first
    assert card.locator(".id").text_content() == HOSTILE.image_id
    assert (card.locator(".caption").text_content() or "").split() == HOSTILE.caption.split()
    assert card.locator("ul li").all_text_contents() == HOSTILE.references
    assert card.locator("img").get_attribute("alt") == "Image " + HOSTILE.image_id
    assert HOSTILE.caption.split()[0] in page.locator("main").inner_text()  # the constant baseline
    assert page.evaluate("typeof hacked") == "undefined"
    assert page.locator("script").count() == 2


def test_an_injected_script_can_neither_run_nor_send_requests(
    context: BrowserContext, report_file: Path
) -> None:
    page = context.new_page()
    page.goto(report_file.as_uri())
    page.evaluate(
        "() => { const s = document.createElement('script'); s.textContent = 'hacked = 1';"
        " document.body.append(s); document.body.setAttribute('onclick', 'hacked = 1');"
        " document.body.click(); }"
    )
    assert page.evaluate("typeof hacked") == "undefined"
    with pytest.raises(Error, match="Failed to fetch"):
        page.evaluate("() => fetch('https://example.com/')")
