"""The served page in a browser, with a captioner behind it."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from pipeline.serving.examples import read_examples
from tests.conftest import Artifacts
from tests.helpers.serving import Served, attending, scene, serving, write_scenes

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
