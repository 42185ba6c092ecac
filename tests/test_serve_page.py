"""The served page in a real browser: images in, captions out."""

import io
import re

import pytest
from PIL import Image
from playwright.sync_api import BrowserContext, Locator, Page, Route, expect

from tests.helpers.served_page import ODD_PENALTY, PHOTO, TEXT, caption_of, upload
from tests.helpers.serving import Served

pytest_plugins = ["tests.helpers.report_page", "tests.helpers.served_page", "tests.helpers.serving"]


def slide(slider: Locator, value: str) -> None:
    slider.evaluate(
        "(s, v) => { s.value = v; s.dispatchEvent(new Event('input', {bubbles: true})) }", value
    )


def test_an_uploaded_photo_is_captioned(page: Page, site: Served) -> None:
    caption = upload(page)
    expected = site.service.captioner.caption(PHOTO["buffer"], alternatives=3)
    assert caption == expected.text
    expect(page.locator("#image")).to_be_visible()
    assert page.locator("#alternatives p").all_text_contents() == [
        other.text for other in expected.alternatives
    ]
    meter = page.get_by_role("meter", name="Confidence")
    expect(meter).to_have_attribute("aria-valuenow", "0.7311")
    expect(page.locator("#confidence-words")).to_have_text(
        "About 7 times in 10, a caption like this is as good as a typical person's."
    )
    expect(page.locator("#said")).to_have_text(f"Caption: {caption}.")


def test_a_photo_can_be_pasted_and_dropped(page: Page) -> None:
    for event in ("paste", "drop"):
        page.evaluate(
            """async ([event, bytes]) => {
                const data = new DataTransfer();
                data.items.add(new File([new Uint8Array(bytes)], "x.png", {type: "image/png"}));
                const options = {bubbles: true, cancelable: true};
                document.dispatchEvent(event === "paste"
                    ? new ClipboardEvent("paste", {...options, clipboardData: data})
                    : new DragEvent("drop", {...options, dataTransfer: data}));
            }""",
            [event, list(PHOTO["buffer"])],
        )
        assert caption_of(page)
        page.reload()


def test_an_example_is_captioned(page: Page, site: Served) -> None:
    page.get_by_role("button", name="Example 2").click()
    caption = caption_of(page)
    assert caption == site.service.captioner.caption(site.service.examples[1].jpeg).text


def test_the_search_is_the_models_until_a_slider_is_moved(page: Page, site: Served) -> None:
    with page.expect_response("**/api/caption*") as answered:
        upload(page)
    assert answered.value.url.partition("?")[2] == "alternatives=3&attention=true"
    expected = site.service.captioner.caption(PHOTO["buffer"])
    assert answered.value.json()["score"] == pytest.approx(expected.score, abs=1e-4)
    expect(page.locator("output[for=length]")).to_have_text(str(ODD_PENALTY))
    for slider, most in (("Beams", "20"), ("Length", "5"), ("Diversity", "10")):
        expect(page.get_by_label(slider)).to_have_attribute("max", most)
    with page.expect_response("**/api/caption?beam_size=4&*") as answered:
        slide(page.get_by_label("Beams"), "4")
    assert "length_penalty" not in answered.value.url
    expect(page.locator("output[for=length]")).to_have_text(str(ODD_PENALTY))


def test_the_sliders_caption_again_and_reset(page: Page) -> None:
    first = upload(page)
    with page.expect_response(re.compile("beam_size=1&.*alternatives=0")) as answered:
        slide(page.get_by_label("Beams"), "1")
    expect(page.locator("output[for=beams]")).to_have_text("1")
    expect(page.locator("#others")).to_be_hidden()
    expect(page.get_by_label("Diversity")).to_be_disabled()
    assert caption_of(page) == answered.value.json()["caption"]
    with page.expect_response(re.compile("beam_groups=4&diversity_penalty=2")):
        slide(page.get_by_label("Beams"), "4")
        slide(page.get_by_label("Diversity"), "2")
    with page.expect_response(re.compile("length_penalty=0.3")):
        slide(page.get_by_label("Length"), "0.3")
    with page.expect_response(re.compile(r"caption\?alternatives=3&")):
        page.get_by_role("button", name="Reset").click()
    expect(page.locator(".word")).to_have_text(first.split())


def test_a_stale_answer_is_dropped(page: Page) -> None:
    upload(page)

    def hold(route: Route) -> None:
        page.wait_for_timeout(600)
        route.continue_()

    page.route("**/api/caption?beam_size=2*", hold)
    slide(page.get_by_label("Beams"), "2")
    page.wait_for_timeout(300)
    with page.expect_response(re.compile("beam_size=1&")) as last:
        slide(page.get_by_label("Beams"), "1")
    page.wait_for_timeout(700)
    assert caption_of(page) == last.value.json()["caption"]


def brightest(page: Page) -> tuple[float, float]:
    """Where the overlay lets most of the photo through, as fractions of its size."""
    found = page.evaluate(
        """() => {
            const canvas = document.getElementById("overlay");
            const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            const dark = data.filter((_, i) => i % 4 === 3);
            const least = dark.reduce((a, b) => Math.min(a, b));
            const best = dark.indexOf(least);
            const [row, column] = [Math.floor(best / canvas.width), best % canvas.width];
            return [column / canvas.width, row / canvas.height];
        }"""
    )
    return found[0], found[1]


def test_a_word_shows_where_the_model_looked(page: Page, site: Served) -> None:
    upload(page)
    overlay, words = page.locator("#overlay"), page.locator(".word")
    expect(overlay).not_to_have_class("on")
    caption = site.service.captioner.caption(PHOTO["buffer"], attention=True)
    assert caption.attention is not None
    for number, grid in list(enumerate(caption.attention))[:3]:
        words.nth(number).hover()
        expect(overlay).to_have_class("on")
        expect(words.nth(number)).to_have_class("word on")
        row, column = divmod(int(grid.argmax()), grid.shape[1])
        x, y = brightest(page)
        assert (int(2 * x), int(2 * y)) == (column, row)
    expect(page.locator("#hint")).to_contain_text("% sure of this word")
    page.mouse.move(0, 0)
    expect(overlay).not_to_have_class("on")


def test_what_goes_wrong_is_said(page: Page, context: BrowserContext) -> None:
    alert = page.get_by_role("alert")
    page.locator("#file").set_input_files(TEXT)
    expect(alert).to_contain_text("This is not an image of a supported format")
    expect(page.locator("#zone")).to_be_visible()
    expect(page.locator("#stage")).to_be_hidden()  # no photo, caption or search, and no other note
    upload(page)
    expect(alert).to_be_hidden()
    page.locator("#file").set_input_files({**TEXT, "mimeType": "text/html"})
    expect(alert).to_contain_text("That is not a photo.")
    context.set_offline(True)
    slide(page.get_by_label("Beams"), "3")
    expect(alert).to_contain_text("The server cannot be reached.")
    context.set_offline(False)
    slide(page.get_by_label("Beams"), "2")
    expect(alert).to_be_hidden()


def test_a_photo_that_the_browser_cannot_show_is_captioned(page: Page) -> None:
    file = io.BytesIO()
    Image.open(io.BytesIO(PHOTO["buffer"])).save(file, "TIFF")
    upload(page, {"name": "a.tif", "mimeType": "image/tiff", "buffer": file.getvalue()})
    expect(page.locator("#no-preview")).to_be_visible()
    upload(page)
    expect(page.locator("#no-preview")).to_be_hidden()


def test_a_busy_server_is_asked_again(page: Page) -> None:
    answers = iter([503])

    def busy(route: Route) -> None:
        if next(answers, None):
            route.fulfill(status=503, json={"error": "busy"}, headers={"Retry-After": "1"})
        else:
            route.continue_()

    page.route("**/api/caption*", busy)
    assert upload(page)
