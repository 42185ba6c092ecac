"""The text archive: captions and split lists, as Flickr8k or as Kaggle lays them out."""

import codecs
import io
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.images.names import check_id, slashes, some, to_image_id
from pipeline.images.zip_files import is_junk, open_zip, path_of, read_member
from pipeline.runtime.errors import InputError
from pipeline.sources.caption_rows import read_rows

TOKENS = "Flickr8k.token.txt"
SPLITS = {
    "train": "Flickr_8k.trainImages.txt",
    "val": "Flickr_8k.devImages.txt",
    "test": "Flickr_8k.testImages.txt",
}
KAGGLE = "captions.txt"
TABLES = (KAGGLE, "captions.csv", "results.csv")  # Flickr8k, Flickr30k, and other people's
# Of a text file, each more than COCO's 600,000 captions need. A line costs many times its length
# once it is read, so their number has a limit of its own.
MAX_BYTES = 64 << 20
MAX_LINES = 1_000_000
MAX_LINE = 64 << 10  # bytes
MAX_CAPTION = 10_000  # characters

# Control characters but the tab, and Unicode's own line ends: not all that read a table agree that
# a row goes on after one.
CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")

TEXT = re.compile(r"(?i)\.(txt|csv|tsv|json)$")

# In Flickr8k's own caption file, without an image anywhere.
ORPHAN_CAPTIONS = frozenset({"2258277193_586949ec62.jpg.1"})


@dataclass(frozen=True)
class TextArchive:
    """Raw captions by image id, in the file's order, and the split lists if there are any."""

    captions: dict[str, list[str]]
    splits: dict[str, list[str]] | None


def read_text_archive(path: Path) -> TextArchive:
    """Read `Flickr8k.token.txt` and its three lists, or a table (`pipeline.sources.caption_rows`).

    Raises:
        InputError: the zip, a file in it or a line of one is not what it should be.
    """
    with open_zip(path) as archive:
        members = _members(archive)
        if TOKENS in members:
            where = f"{path}: {TOKENS}"
            captions = _parse_tokens(_lines(archive, members[TOKENS], where), where)
            missing = [name for name in SPLITS.values() if name not in members]
            if len(missing) == len(SPLITS):
                return TextArchive(captions, None)
            if missing:
                raise InputError(f"{path} lacks {missing[0]}; give all three split lists or none")
            splits = {}
            for split, name in SPLITS.items():
                where = f"{path}: {name}"
                splits[split] = _parse_list(_lines(archive, members[name], where), where)
            _check_disjoint(splits, path)
            return TextArchive(captions, splits)
        if table := _table(members, path):
            where = f"{path}: {table}"
            return TextArchive(_parse_table(_lines(archive, members[table], where), where), None)
        texts = [name for member in archive.infolist() if TEXT.search(name := path_of(member))]
    found = f"; it has {some(texts)}" if texts else ""
    raise InputError(f"{path} holds no captions: expected {TOKENS} or {' or '.join(TABLES)}{found}")


def kaggle_member(path: Path) -> bytes | None:
    """The bytes of a Kaggle zip's `captions.txt`, however it is called, or None without one."""
    with open_zip(path) as archive:
        members = _members(archive)
        table = _table(members, path)
        return None if table is None else read_member(archive, members[table], MAX_BYTES)


def _table(members: dict[str, zipfile.ZipInfo], path: Path) -> str | None:
    tables = [name for name in TABLES if name in members]
    if len(tables) > 1:
        raise InputError(f"{path} holds captions twice, {some(tables)}; keep one")
    return tables[0] if tables else None


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The files that are read, by name, in whatever folders they lie.

    Raises:
        InputError: two have the same name.
    """
    found: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        place = path_of(member)
        name = PurePosixPath(place).name
        name = name.lower() if name.lower() in TABLES else name
        if name not in (TOKENS, *TABLES, *SPLITS.values()) or is_junk(place):
            continue
        if name in found:
            raise InputError(
                f"{archive.filename} holds two files {name} "
                f"({path_of(found[name])!r} and {place!r}); keep one"
            )
        found[name] = member
    return found


def _lines(archive: zipfile.ZipFile, member: zipfile.ZipInfo, where: str) -> Iterator[str]:
    """A text file's lines, without their ends; decoded one at a time, so that memory stays near
    the file's size.

    Raises:
        InputError: a line is no UTF-8 or too long, or there are too many.
    """
    whole = read_member(archive, member, MAX_BYTES).removeprefix(codecs.BOM_UTF8)
    content = io.BytesIO(whole if b"\n" in whole else whole.replace(b"\r", b"\n"))  # an old Mac's
    for number, line in enumerate(iter(lambda: content.readline(MAX_LINE + 1), b""), start=1):
        if number > MAX_LINES:
            raise InputError(f"{where} has more than {MAX_LINES} lines; give a part of it")
        if len(line) > MAX_LINE:
            raise InputError(f"{where}, line {number}: more than {MAX_LINE} bytes; shorten it")
        try:
            yield line.decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{where}, line {number} is not UTF-8 at its byte {error.start}; save the file as "
                "UTF-8"
            ) from None


def _parse_tokens(lines: Iterator[str], where: str) -> dict[str, list[str]]:
    """Lines `name.jpg#0<TAB>caption`; the caption is all that follows the first tab."""
    captions = _Captions()
    keys = set[str]()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        key, tab, caption = line.partition("\t")
        name, mark, index = key.strip().rpartition("#")
        if not (tab and mark and name and index.isdigit()):
            raise InputError(f"{where}, line {number}: expected 'name.jpg#0<TAB>caption'")
        if key in keys:
            raise InputError(f"{where}, line {number}: {key!r} is there already; keep one of them")
        keys.add(key)
        captions.add(name, caption, f"{where}, line {number}")
    return captions.by_id


def _parse_table(lines: Iterator[str], where: str) -> dict[str, list[str]]:
    captions = _Captions()
    for name, caption, place in read_rows(lines, where):
        captions.add(name, caption, place)
    if not captions.by_id:
        raise InputError(f"{where} has a header and no captions; add a line for each caption")
    return captions.by_id


class _Captions:
    """Captions by image id, while they are read."""

    def __init__(self) -> None:
        self.by_id: dict[str, list[str]] = {}
        self._folders: dict[str, str] = {}  # of the images that are named with one

    def add(self, name: str, caption: str, where: str) -> None:
        image_id = to_image_id(name)
        if image_id not in self.by_id:
            check_id(image_id, where)
        folder = slashes(name).rpartition("/")[0]
        if folder and self._folders.setdefault(image_id, folder) != folder:
            raise InputError(
                f"{where}: {name!r} is another image than {image_id!r} in "
                f"{self._folders[image_id]!r}, but folders do not count; rename one of the two"
            )
        if len(caption) > MAX_CAPTION:
            raise InputError(
                f"{where}: a caption of {len(caption)} characters, more than {MAX_CAPTION}; "
                "shorten it"
            )
        self.by_id.setdefault(image_id, []).append(CONTROL.sub(" ", caption))


def _parse_list(lines: Iterator[str], where: str) -> list[str]:
    ids = [to_image_id(line.strip()) for line in lines if line.strip()]
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
