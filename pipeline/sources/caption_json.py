"""Read captions from JSON: Karpathy's format, COCO's, a list of objects, or JSON Lines."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

from pipeline.runtime.errors import InputError
from pipeline.sources.records import CAPTION_COLUMNS, CaptionRecord, ColumnNames

# In memory a value takes tens of bytes. COCO in Karpathy's format has 20 million.
MAX_VALUES = 60_000_000
FORMATS = (
    'Karpathy\'s {"images": [{"filename": …, "sentences": [{"raw": …}]}]}, '
    'COCO\'s {"images": …, "annotations": [{"image_id": …, "caption": …}]}, '
    'a list of {"image": …, "caption": …}, or {"name.jpg": ["caption", …]}'
)


@dataclass(frozen=True)
class JsonCaptions:
    """The captions of one JSON file, its format, and the data set that it says it is."""

    format: str  # karpathy, coco or json
    records: Iterator[CaptionRecord]
    dataset: str = ""


def parse_captions(content: bytes, where: str, named: ColumnNames) -> JsonCaptions:
    """Parse a JSON file in any of the known formats.

    Raises:
        InputError: it is not JSON, or has no captions; when read, an entry lacks something.
    """
    if content.count(b",") > MAX_VALUES:
        raise InputError(f"{where} has more than {MAX_VALUES:,} values; use a part of it")
    try:
        # Equal strings share their memory: COCO takes 0.7 GB, and 1.2 GB with Python's parser.
        top = from_json(content, cache_strings="all", allow_inf_nan=True)
    except ValueError as error:
        raise InputError(f"{where} is not valid JSON: {error}") from None
    if isinstance(top, list):
        return JsonCaptions("json", _read_objects(enumerate(top, 1), where, "entry", named))
    images = top.get("images") if isinstance(top, dict) else None
    annotations = top.get("annotations") if isinstance(top, dict) else None
    if isinstance(images, list) and isinstance(annotations, list):
        return JsonCaptions("coco", _read_coco(images, annotations, where))
    if isinstance(images, list):
        dataset = top.get("dataset")
        name = dataset if isinstance(dataset, str) else ""
        return JsonCaptions("karpathy", _read_karpathy(images, where), name)
    if isinstance(top, dict) and top and all(map(_is_caption, top.values())):
        return JsonCaptions("json", _read_mapping(top))
    if isinstance(top, dict):  # one line of JSON Lines, or a list under a key
        lists = [value for value in top.values() if isinstance(value, list)]
        objects = lists[0] if len(lists) == 1 and len(top) == 1 else [top]
        if any(isinstance(entry, dict) and _find(entry, named) for entry in objects[:1]):
            return JsonCaptions("json", _read_objects(enumerate(objects, 1), where, "entry", named))
    raise InputError(f"{where} has no captions in a known format; expected {FORMATS}")


def parse_json_lines(lines: Iterator[str], where: str, named: ColumnNames) -> JsonCaptions:
    """Parse JSON Lines: one object per line."""

    def objects() -> Iterator[tuple[int, Any]]:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    yield number, from_json(line)
                except ValueError as error:
                    raise InputError(f"{where}, line {number} is not valid JSON: {error}") from None

    return JsonCaptions("json", _read_objects(objects(), where, "line", named))


def _read_karpathy(images: list[Any], where: str) -> Iterator[CaptionRecord]:
    for number, image in enumerate(images, start=1):
        entry = f"{where}, images[{number - 1}]"
        name, folder = _text(image, "filename", entry), image.get("filepath", "")
        if isinstance(folder, str) and folder:
            name = f"{folder}/{name}"
        split = _text(image, "split", entry) if "split" in image else None
        sentences = image.get("sentences")
        if not isinstance(sentences, list):
            raise InputError(f"{entry}: expected a list 'sentences'")
        for sentence in sentences:
            yield CaptionRecord(name, _text(sentence, "raw", entry), split, number)
        if not sentences:
            yield CaptionRecord(name, None, split, number)


def _read_coco(images: list[Any], annotations: list[Any], where: str) -> Iterator[CaptionRecord]:
    names: dict[str, str] = {}
    for number, image in enumerate(images):
        entry = f"{where}, images[{number}]"
        image_id, name = _id(image, "id", entry), _text(image, "file_name", entry)
        if names.setdefault(image_id, name) != name:
            raise InputError(
                f"{entry}: the id {image_id} is {names[image_id]!r} too; give each image its own"
            )
    for number, annotation in enumerate(annotations, start=1):
        entry = f"{where}, annotations[{number - 1}]"
        image_id = _id(annotation, "image_id", entry)
        # One that 'images' does not have counts as a missing image.
        name = names.get(image_id, f"image_id {image_id}")
        yield CaptionRecord(name, _text(annotation, "caption", entry), None, number)


def _read_objects(
    objects: Iterable[tuple[int, Any]], where: str, place: str, named: ColumnNames
) -> Iterator[CaptionRecord]:
    """Read objects with an image, a caption or a list of them, and perhaps a split."""
    for number, entry in objects:
        keys = _find(entry, named) if isinstance(entry, dict) else None
        if keys is None:
            found = ", ".join(map(repr, entry)) if isinstance(entry, dict) else repr(entry)[:60]
            wanted = [named.image or "image", *(named.captions or ["caption"])]
            raise InputError(
                f"{where}, {place} {number}: expected an object with "
                f"{' and '.join(map(repr, wanted))}, found {found}; or name your keys in "
                "prepare.image_column and prepare.caption_column"
            )
        image, captions, split = keys
        value = entry[image]
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise InputError(f"{where}, {place} {number}: {image!r} must be the image's name")
        split_value = entry[split] if split else None
        split_name = "" if split and split_value is None else split_value
        for caption in _captions_of([entry[key] for key in captions], f"{where}, {place} {number}"):
            yield CaptionRecord(str(value), caption, split_name, number)


def _read_mapping(top: dict[str, Any]) -> Iterator[CaptionRecord]:
    for number, (name, captions) in enumerate(top.items(), start=1):
        for caption in [captions] if isinstance(captions, str) else captions or [None]:
            yield CaptionRecord(name, caption, None, number)


def _find(entry: dict[str, Any], named: ColumnNames) -> tuple[str, list[str], str | None] | None:
    """Return the keys of the image, the captions and the split; None if one of the first lacks."""
    image = next((key for key in named.known_images() if key in entry), None)
    captions = [key for key in named.captions or CAPTION_COLUMNS if key in entry]
    split = next((key for key in named.known_splits() if key in entry), None)
    if image is None or not (captions or split):
        return None
    return image, captions if named.captions else captions[:1], split


def _captions_of(values: list[Any], where: str) -> list[str | None]:
    """Flatten captions and lists of captions; those of Karpathy's format are objects with `raw`."""
    captions: list[str | None] = []
    for value in values:
        for caption in value if isinstance(value, list) else [value]:
            if isinstance(caption, dict):
                caption = caption.get("raw")
            if caption is not None and not isinstance(caption, str):
                raise InputError(f"{where}: expected captions, found {repr(caption)[:60]}")
            captions.append(caption or "")
    return captions or [None]


def _is_caption(value: Any) -> bool:
    return isinstance(value, str) or (
        isinstance(value, list) and all(isinstance(item, str) for item in value)
    )


def _text(entry: Any, key: str, where: str) -> str:
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, str):
        raise InputError(
            f"{where}: expected a text {key!r}, found {repr(value)[:60]}; use a file of captions"
        )
    return value


def _id(entry: Any, key: str, where: str) -> str:
    """The id as text: some files quote it in one place and not in the other."""
    value = entry.get(key) if isinstance(entry, dict) else None
    if isinstance(value, float) and value.is_integer():  # pandas writes 3 as 3.0
        value = int(value)
    if not isinstance(value, (int, str)):
        raise InputError(f"{where}: expected an id {key!r}, found {repr(value)[:60]}")
    return str(value)
