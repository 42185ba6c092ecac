"""The served page for everyone: keyboard, screen reader, phone, and what a model card may do."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.helpers.served_page import PHONE, PHOTO, TEXT, caption_of, upload

pytest_plugins = ["tests.helpers.report_page", "tests.helpers.served_page", "tests.helpers.serving"]


def test_the_model_card_is_readable_and_its_html_is_text(page: Page) -> None:
    page.get_by_text("About this model").click()
    card = page.locator("#card-text")
    expect(card.locator("h2")).to_have_text("<b>A card</b>")
    expect(card.locator("p")).to_have_text(
        "A *frozen* CNN (shuffle_net), not trained on a site, or another."
    )
    assert card.locator("a").evaluate_all("all => all.map(a => a.href)") == ["https://example.org/"]
    assert card.locator("tr").all_inner_texts() == ["\tscore", "BLEU|4\t67.50"]
    assert card.locator("li").all_text_contents() == ["one, and   more", "two"]
    expect(card.locator("pre")).to_have_text("x = [1]  # <code>")
    expect(card).not_to_contain_text("license")
    expect(page.locator("#card")).to_contain_text("spatial attention")
    page.get_by_text("Use it from a program").click()
    expect(page.locator("#example-call")).to_contain_text("curl --data-binary @photo.jpg")


@pytest.mark.parametrize("context", [PHONE], indirect=True)
def test_a_phone_needs_no_sideways_scrolling(page: Page) -> None:
    def width() -> int:
        return page.evaluate("document.documentElement.scrollWidth")

    assert width() == 360
    upload(page)
    page.locator("summary").first.click()
    assert width() == 360
    page.locator(".word").nth(1).tap()
    expect(page.locator("#overlay")).to_have_class("on")


@pytest.mark.parametrize(
    "context", [{"color_scheme": "light"}, {"color_scheme": "dark"}, PHONE], indirect=True
)
def test_axe_finds_nothing(page: Page) -> None:
    def violations() -> list[str]:
        found = Axe().run(page).response["violations"]
        return [f"{one['id']}: {one['nodes'][0]['html']}" for one in found]

    assert violations() == []
    upload(page)
    page.locator(".word").nth(1).click()
    for summary in page.locator("summary").all():
        summary.click()
    assert violations() == []
    page.locator("#file").set_input_files({**TEXT, "mimeType": "text/html"})
    expect(page.get_by_role("alert")).to_be_visible()
    assert violations() == []


def test_an_injected_script_cannot_run(page: Page) -> None:
    page.evaluate(
        "() => { const s = document.createElement('script'); s.textContent = 'hacked = 1';"
        " document.body.append(s); document.body.setAttribute('onclick', 'hacked = 1');"
        " document.body.click(); }"
    )
    assert page.evaluate("typeof hacked") == "undefined"


def test_the_keyboard_is_enough(page: Page) -> None:
    # The first listener tells the browser to wait for files, which must not race with the key.
    page.on("filechooser", lambda _: None)
    choose = page.get_by_role("button", name="Choose a photo")
    page.keyboard.press("Tab")
    expect(choose).to_be_focused()
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(PHOTO)
    words = caption_of(page).split()
    while not page.locator(".word").first.evaluate("word => word === document.activeElement"):
        page.keyboard.press("Tab")
    expect(page.locator("#overlay")).to_have_class("on")
    page.keyboard.press("ArrowRight")
    expect(page.locator(".word").nth(1)).to_be_focused()
    expect(page.locator("#hint")).to_contain_text(f"“{words[1]}”")
    page.keyboard.press("End")
    expect(page.locator(".word").last).to_be_focused()
    page.keyboard.press("Tab")  # one stop for all words
    expect(page.get_by_label("Beams")).to_be_focused()
    with page.expect_response("**/api/caption*"):
        page.keyboard.press("ArrowLeft")
