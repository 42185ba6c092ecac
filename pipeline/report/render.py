"""From what is known of a run to one page. Everything that comes from data is escaped here.

Captions, image ids and params are strangers' text. Jinja escapes what it puts into HTML; the
images travel as JSON in a script element that is not run, and the page's script puts them into
the document as text. A Content-Security-Policy allows that one script and that one style sheet, by
their digests, images in `data:` URLs, and nothing else: no request can leave the page.
"""

import base64
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.report.evaluation import CaptionedImage
from pipeline.report.thumbnails import Thumbnail
from pipeline.runtime.errors import counted

HERE = Path(__file__).parent
DECIMALS = 2  # of an image's scores


def page_of(images: str, **content: Any) -> bytes:
    """The page, in UTF-8.

    Args:
        images: as `images_json` gives them.
        content: the other names of `page.html`.
    """
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; "
        f"script-src '{_digest(script)}'; base-uri 'none'; form-action 'none'"
    )
    page = environment.get_template("page.html").render(
        policy=policy,
        style=Markup(style),  # ours
        script=Markup(script),
        counted=counted,
        images_json=Markup(images),  # escaped by `json_for_script`
        **content,
    )
    # A JSON escape can name half a character, which UTF-8 has no bytes for.
    return page.encode("utf-8", errors="replace")


def images_json(images: Sequence[CaptionedImage], thumbnails: Iterator[Thumbnail]) -> str:
    """The gallery's data: a list an image, as `page.js` unpacks it."""
    return json_for_script(
        [
            [
                *(one.image_id, one.caption, list(one.references)),
                *(round(one.cider, DECIMALS), round(one.rouge_l, DECIMALS), one.words),
                *(small.width, small.height, small.jpeg),
            ]
            for one, small in zip(images, thumbnails, strict=True)
        ]
    )


def json_for_script(content: Any) -> str:
    """JSON that may stand in a script element: in ASCII, and without the characters by which HTML
    could end the element or begin a comment."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
