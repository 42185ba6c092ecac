"""Read Flickr8k's and Flickr30k's token files: lines `name.jpg#0<TAB>caption`."""

import re
from collections.abc import Iterator

from pipeline.runtime.errors import InputError
from pipeline.sources.records import CaptionRecord

EXAMPLE = "name.jpg#0<TAB>caption"
LINE = re.compile(r"\s*(.*\S)\s*#(\d+)\s*")


def is_token_line(line: str) -> bool:
    """Whether a line is one of a token file."""
    key, tab, _ = line.partition("\t")
    return bool(tab and LINE.fullmatch(key))


def read_tokens(lines: Iterator[str], where: str) -> Iterator[CaptionRecord]:
    """Yield each line's caption, which is what follows the first tab.

    Raises:
        InputError: a line has another format, or its name and number were there before.
    """
    keys = set[str]()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        key, tab, caption = line.partition("\t")
        match = LINE.fullmatch(key) if tab else None
        if match is None:
            raise InputError(f"{where}, line {number}: expected '{EXAMPLE}'")
        if key in keys:
            raise InputError(f"{where}, line {number}: {key!r} appears twice; keep one of them")
        keys.add(key)
        yield CaptionRecord(match[1], caption, None, number)
