"""Captions of many images as text, JSON Lines, CSV or COCO's results format."""

import csv
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from pipeline.runtime.errors import sanitize

if TYPE_CHECKING:
    from pipeline.captioning.caption import Caption

# 000000000139.jpg of 2017, COCO_val2014_000000391895.jpg of 2014
COCO_NAME = re.compile(r"(?:COCO_[a-z]+[0-9]{4}_)?([0-9]{12})\.jpg")

Rows = Iterable[tuple[str, "Sequence[Caption]"]]  # images by name, with the best caption first


def write_text(rows: Rows, out: TextIO) -> None:
    """Write a line per caption: image, caption and, if the model has one, its confidence."""
    for name, captions in rows:
        for caption in captions:
            confidence = "" if caption.confidence is None else f"\t{caption.confidence:.2f}"
            print(f"{sanitize(name)}\t{caption}{confidence}", file=out, flush=True)


def write_jsonl(rows: Rows, out: TextIO) -> None:
    """Write a JSON object per image, with everything that is known of its captions."""
    for name, captions in rows:
        best, *others = map(_describe, captions)
        print(json.dumps({"image": name, **best, "alternatives": others}), file=out, flush=True)


def write_csv(rows: Rows, out: TextIO) -> None:
    """Write a row per caption, with a header."""
    table = csv.writer(out, lineterminator="\n")
    table.writerow(["image", "rank", "caption", "confidence", "score"])
    for name, captions in rows:
        for rank, caption in enumerate(captions, start=1):
            values = [_rounded(caption.confidence), _rounded(caption.score)]
            table.writerow([name, rank, caption.text, *values])
        out.flush()


def write_coco(rows: Rows, out: TextIO) -> None:
    """Write one JSON list, which ends with the last image."""
    rows = list(rows)
    ids = _image_ids([name for name, _ in rows])
    results = [
        {"image_id": image_id, "caption": caption.text}
        for image_id, (_, captions) in zip(ids, rows, strict=True)
        for caption in captions
    ]
    print(json.dumps(results, indent=2), file=out)  # ASCII, which any terminal and program reads


def _image_ids(paths: Sequence[str]) -> Sequence[int | str]:
    """COCO's numbers if all files have COCO's names; otherwise the files' names, or their paths if
    two have the same name. One type for all: COCO's tools compare ids."""
    names = [Path(path).name for path in paths]
    matches = [COCO_NAME.fullmatch(name) for name in names]
    for ids in ([int(match[1]) for match in matches if match], names):
        if len(set(ids)) == len(paths):
            return ids
    return [Path(path).as_posix() for path in paths]


WRITERS = {"text": write_text, "jsonl": write_jsonl, "csv": write_csv, "coco": write_coco}


def _describe(caption: "Caption") -> dict[str, Any]:
    return {
        "caption": caption.text,
        "confidence": _rounded(caption.confidence),
        "score": _rounded(caption.score),
        "tokens": list(caption.tokens),
        "token_probs": [_rounded(value) for value in caption.token_probs],
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
