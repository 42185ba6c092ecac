"""Render the page from its template. All text that comes from data is escaped here.

Captions, image ids and params are untrusted text. Jinja escapes what it inserts into HTML. The
images are JSON in a script element that does not run, and the page's script adds them to the
document as text. A Content-Security-Policy allows that one script and the style sheet, by their
digests, images in `data:` URLs, and nothing else: the page cannot send a request.
"""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.report.charts import format_number
from pipeline.runtime.errors import pluralize

HERE = Path(__file__).parent


def render_page(images_json: str, **content: Any) -> bytes:
    """Return the page in UTF-8.

    Args:
        images_json: as `pipeline.report.gallery.images_json` returns it.
        content: the other names of `page.html`.
    """
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(px="{:.1f}".format, number=format_number)  # px: a coordinate
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; "
        f"script-src '{_digest(script)}'; base-uri 'none'; form-action 'none'"
    )
    page = environment.get_template("page.html").render(
        policy=policy,
        style=Markup(style),  # files of this package
        script=Markup(script),
        pluralize=pluralize,
        images_json=Markup(images_json),  # escaped by `json_for_script`
        **content,
    )
    # A JSON escape can be a lone surrogate, which UTF-8 cannot encode.
    return page.encode("utf-8", errors="replace")


def json_for_script(content: Any) -> str:
    """Return JSON that is safe in a script element: ASCII without the characters that could end
    the element or begin a comment."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
