"""The text archive: captions and split lists, as Flickr8k or as Kaggle lays them out."""

import csv
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.errors import InputError
from pipeline.store.pictures import check_id, is_clutter, open_zip, read_member

TOKENS = "Flickr8k.token.txt"
SPLITS = {
    "train": "Flickr_8k.trainImages.txt",
    "dev": "Flickr_8k.devImages.txt",
    "test": "Flickr_8k.testImages.txt",
}
KAGGLE = "captions.txt"
MAX_BYTES = 256 << 20  # of a text file; COCO's captions are a fifth of that
MAX_CAPTION = 10_000  # characters

# In Flickr8k's own caption file, without a picture anywhere.
STRAY = frozenset({"2258277193_586949ec62.jpg.1"})


@dataclass(frozen=True)
class TextArchive:
    """Raw captions by picture id, in the file's order, and the split lists if there are any."""

    captions: dict[str, list[str]]
    splits: dict[str, list[str]] | None


def read_text_archive(path: Path) -> TextArchive:
    """Read `Flickr8k.token.txt` and its three lists, or Kaggle's `captions.txt`.

    Raises:
        InputError: the zip, a file in it or a line of one is not what it should be.
    """
    with open_zip(path) as archive:
        members = {
            PurePosixPath(member.filename).name: member
            for member in archive.infolist()
            if not is_clutter(member)
        }
        if TOKENS in members:
            captions = _parse_tokens(_text(archive, members[TOKENS]), f"{path}: {TOKENS}")
            missing = [name for name in SPLITS.values() if name not in members]
            if len(missing) == len(SPLITS):
                return TextArchive(captions, None)
            if missing:
                raise InputError(f"{path} lacks {missing[0]}; give all three split lists or none")
            splits = {
                split: _parse_list(_text(archive, members[name]), f"{path}: {name}")
                for split, name in SPLITS.items()
            }
            _check_disjoint(splits, path)
            return TextArchive(captions, splits)
        if KAGGLE in members:
            text = _text(archive, members[KAGGLE])
            return TextArchive(_parse_kaggle(text, f"{path}: {KAGGLE}"), None)
    raise InputError(f"{path} holds no captions: expected {TOKENS} or {KAGGLE}")


def kaggle_member(path: Path) -> bytes | None:
    """The bytes of a Kaggle zip's `captions.txt`, or None where it has none."""
    with open_zip(path) as archive:
        for member in archive.infolist():
            if not is_clutter(member) and PurePosixPath(member.filename).name == KAGGLE:
                return read_member(archive, member, MAX_BYTES)
    return None


def _parse_tokens(text: str, where: str) -> dict[str, list[str]]:
    """Lines `name.jpg#0<TAB>caption`; the caption is all that follows the first tab."""
    captions: dict[str, list[str]] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        key, tab, caption = line.rstrip("\r").partition("\t")
        image_id, mark, index = key.rpartition("#")
        if not (tab and mark and image_id and index.isdigit()):
            raise InputError(f"{where}, line {number}: expected 'name.jpg#0<TAB>caption'")
        _add(captions, image_id, caption, f"{where}, line {number}")
    return captions


def _parse_kaggle(text: str, where: str) -> dict[str, list[str]]:
    """A CSV with the header `image,caption`."""
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    captions: dict[str, list[str]] = {}
    try:
        if [name.strip() for name in next(rows, [])] != ["image", "caption"]:
            raise InputError(f"{where}: expected the header 'image,caption'")
        for row in rows:
            if not row:
                continue
            if len(row) < 2:
                raise InputError(f"{where}, line {rows.line_num}: expected 'image,caption'")
            # An unquoted comma belongs to the caption.
            _add(captions, row[0], ",".join(row[1:]), f"{where}, line {rows.line_num}")
    except csv.Error as error:
        raise InputError(f"{where}, line {rows.line_num}: {error}") from None
    return captions


def _add(captions: dict[str, list[str]], image_id: str, caption: str, where: str) -> None:
    if image_id not in captions:
        check_id(image_id, where)
    if len(caption) > MAX_CAPTION:
        raise InputError(
            f"{where}: a caption of {len(caption)} characters, more than {MAX_CAPTION}; shorten it"
        )
    captions.setdefault(image_id, []).append(caption)


def _parse_list(text: str, where: str) -> list[str]:
    ids = [line.strip() for line in text.split("\n") if line.strip()]
    if not ids:
        raise InputError(f"{where} is empty")
    if len(set(ids)) != len(ids):
        raise InputError(f"{where} names {_first_twice(ids)!r} twice")
    return ids


def _check_disjoint(splits: dict[str, list[str]], path: Path) -> None:
    everything = [image_id for ids in splits.values() for image_id in ids]
    if len(set(everything)) != len(everything):
        raise InputError(f"{path}: {_first_twice(everything)!r} is in two split lists")


def _first_twice(ids: list[str]) -> str:
    seen: set[str] = set()
    return next(one for one in ids if one in seen or seen.add(one))  # type: ignore[func-returns-value]


def _text(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> str:
    try:
        return read_member(archive, member, MAX_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{archive.filename}: {member.filename} is not UTF-8 at byte {error.start}; convert it"
        ) from None
