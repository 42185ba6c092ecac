"""The served page in a real browser: photos in, captions out, for everyone."""

import io
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import BrowserContext, Locator, Page, Route, expect

from pipeline.serving.examples import read_examples
from tests.conftest import Artifacts
from tests.helpers.serving import Served, attending, scene, serving, write_scenes

pytest_plugins = ["tests.helpers.report_page", "tests.helpers.serving"]

PHOTO: Any = {"name": "photo.png", "mimeType": "image/png", "buffer": scene(1, side=320)}
ODD_PENALTY = 0.8375  # between two steps of the slider
TEXT: Any = {"name": "notes.png", "mimeType": "image/png", "buffer": b"no image"}
CARD = """---
license: other
---
# <b>A card</b>

A *frozen* CNN (shuffle\\_net), **not `trained`**
on [a site](https://example.org/), or [another](javascript:alert).

| | score |
| --- | --- |
| BLEU\\|4 | 67.50 |

- one, and
  more
- two

```python
x = [1]  # <code>
```
"""
PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}


@pytest.fixture(scope="module")
def site(tiny: Artifacts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A captioner with attention and confidence, a model card with markup, and examples."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "README.md").write_text(CARD)
    examples = read_examples(write_scenes(folder / "examples", 3))
    captioner = attending(tiny, folder)
    captioner.search = replace(captioner.search, length_penalty=ODD_PENALTY)
    with serving(captioner, folder, examples=examples) as server:
        yield server


@pytest.fixture
def page(context: BrowserContext, site: Served) -> Iterator[Page]:
    """The page. A script's error, and a request to anywhere else, fail the test."""
    page, problems = context.new_page(), []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "request",
        lambda request: request.url.startswith((site.url, "blob:")) or problems.append(request.url),
    )
    page.goto(site.url)
    expect(page.locator("#examples img")).to_have_count(3)
    yield page
    assert problems == []


def caption_of(page: Page) -> str:
    """The caption, once it is there."""
    expect(page.locator("#result")).to_have_attribute("aria-busy", "false")
    expect(page.locator(".word").first).to_be_visible()
    return " ".join(page.locator(".word").all_text_contents())


def upload(page: Page, file: Any = PHOTO) -> str:
    page.locator("#file").set_input_files(file)
    return caption_of(page)


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


def test_the_keyboard_is_enough(page: Page) -> None:
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
