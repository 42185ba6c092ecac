"""Read the text archive, captions and split lists, in Flickr8k's or Kaggle's layout."""

import codecs
import io
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.images.names import check_id, first_few, to_image_id, to_posix
from pipeline.images.zip_files import decoded_path, is_junk, open_zip, read_member
from pipeline.runtime.errors import InputError
from pipeline.sources.caption_rows import read_rows

TOKENS = "Flickr8k.token.txt"
SPLITS = {
    "train": "Flickr_8k.trainImages.txt",
    "val": "Flickr_8k.devImages.txt",
    "test": "Flickr_8k.testImages.txt",
}
KAGGLE = "captions.txt"
TABLES = (KAGGLE, "captions.csv", "results.csv")  # of Flickr8k, users' own data, Flickr30k
# Limits per text file, above what COCO's 600,000 captions need. In memory a line takes many times
# its length, so the number of lines has its own limit.
MAX_BYTES = 64 << 20
MAX_LINES = 1_000_000
MAX_LINE = 64 << 10  # bytes
MAX_CAPTION = 10_000  # characters

# Control characters except the tab, and Unicode's line ends: some CSV readers end a row there.
CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")

# Other files that may hold captions, to name in a message.
OTHER_CAPTIONS = re.compile(r"(?i)\.(txt|csv|tsv|json|jsonl|xlsx|parquet|zip)$")

# Images that Flickr8k's caption file names but the data set does not have.
ORPHAN_CAPTIONS = frozenset({"2258277193_586949ec62.jpg.1"})


@dataclass(frozen=True)
class TextArchive:
    """Raw captions by image id, in the file's order, and the image ids of each split, if listed."""

    captions: dict[str, list[str]]
    splits: dict[str, list[str]] | None


def read_text_archive(path: Path) -> TextArchive:
    """Read `Flickr8k.token.txt` and its three lists, or a table (`pipeline.sources.caption_rows`).

    Raises:
        InputError: the zip, a file in it or a line of one is invalid.
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
                raise InputError(f"{path} lacks {missing[0]}; add all three split lists or none")
            splits = {}
            for split, name in SPLITS.items():
                where = f"{path}: {name}"
                splits[split] = _parse_list(_lines(archive, members[name], where), where)
            _check_disjoint(splits, path)
            return TextArchive(captions, splits)
        if table := _table(members, path):
            where = f"{path}: {table}"
            return TextArchive(_parse_table(_lines(archive, members[table], where), where), None)
        raise InputError(f"{path} {_no_captions(archive, (TOKENS, *TABLES))}")


def read_kaggle_table(path: Path) -> bytes:
    """Return the captions table (one of `TABLES`) of a Kaggle zip.

    Raises:
        InputError: it has none.
    """
    with open_zip(path) as archive:
        members = _members(archive)
        if table := _table(members, path):
            return read_member(archive, members[table], MAX_BYTES)
        raise InputError(
            f"download.text is null, but {path} {_no_captions(archive, TABLES)}; "
            "add one, or set download.text to the text archive"
        )


def _no_captions(archive: zipfile.ZipFile, expected: Sequence[str]) -> str:
    names = map(decoded_path, archive.infolist())
    others = [name for name in names if OTHER_CAPTIONS.search(name) and not is_junk(name)]
    found = f", found {first_few(others)}, which is not read" if others else ""
    return f"has no captions; expected {' or '.join(expected)}{found}"


def _table(members: dict[str, zipfile.ZipInfo], path: Path) -> str | None:
    tables = [name for name in TABLES if name in members]
    if len(tables) > 1:
        raise InputError(f"{path} has two captions files, {first_few(tables)}; keep one")
    return tables[0] if tables else None


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Map the names of caption files and split lists to their members, in any folder.

    Raises:
        InputError: two have the same name.
    """
    members: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        path = decoded_path(member)
        name = PurePosixPath(path).name
        name = name.lower() if name.lower() in TABLES else name
        if name not in (TOKENS, *TABLES, *SPLITS.values()) or is_junk(path):
            continue
        if name in members:
            raise InputError(
                f"{archive.filename} has two files {name} "
                f"({decoded_path(members[name])!r} and {path!r}); keep one"
            )
        members[name] = member
    return members


def _lines(archive: zipfile.ZipFile, member: zipfile.ZipInfo, where: str) -> Iterator[str]:
    """Yield a text file's lines, decoded one at a time: memory stays near the file's size.

    Raises:
        InputError: a line is not UTF-8 or too long, or there are too many.
    """
    content = read_member(archive, member, MAX_BYTES).removeprefix(codecs.BOM_UTF8)
    if b"\n" not in content:  # classic Mac OS
        content = content.replace(b"\r", b"\n")
    file = io.BytesIO(content)
    for number, line in enumerate(iter(lambda: file.readline(MAX_LINE + 1), b""), start=1):
        if number > MAX_LINES:
            raise InputError(f"{where} has more than {MAX_LINES} lines; use a part of it")
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
    """Parse lines `name.jpg#0<TAB>caption`; the caption is what follows the first tab."""
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
            raise InputError(f"{where}, line {number}: {key!r} appears twice; keep one of them")
        keys.add(key)
        captions.add(name, caption, f"{where}, line {number}")
    return captions.by_id


def _parse_table(lines: Iterator[str], where: str) -> dict[str, list[str]]:
    captions = _Captions()
    for name, caption, line_where in read_rows(lines, where):
        captions.add(name, caption, line_where)
    if not captions.by_id:
        raise InputError(f"{where} has a header but no captions; add one line per caption")
    return captions.by_id


class _Captions:
    """Collect and check captions by image id."""

    def __init__(self) -> None:
        self.by_id: dict[str, list[str]] = {}
        self._folders: dict[str, str] = {}  # of images that are named with their folder

    def add(self, name: str, caption: str, where: str) -> None:
        image_id = to_image_id(name)
        if image_id not in self.by_id:
            check_id(image_id, where)
        folder = to_posix(name).rpartition("/")[0]
        if folder and self._folders.setdefault(image_id, folder) != folder:
            raise InputError(
                f"{where}: {name!r} and {image_id!r} in {self._folders[image_id]!r} have the same "
                "name, and folders are ignored; rename one of the two"
            )
        if len(caption) > MAX_CAPTION:
            raise InputError(
                f"{where}: the caption has {len(caption)} characters, more than {MAX_CAPTION}; "
                "shorten it"
            )
        self.by_id.setdefault(image_id, []).append(CONTROL.sub(" ", caption))


def _parse_list(lines: Iterator[str], where: str) -> list[str]:
    ids = [to_image_id(line.strip()) for line in lines if line.strip()]
    if not ids:
        raise InputError(f"{where} is empty")
    if len(set(ids)) != len(ids):
        raise InputError(f"{where} names {_first_duplicate(ids)!r} twice")
    return ids


def _check_disjoint(splits: dict[str, list[str]], path: Path) -> None:
    all_ids = [image_id for ids in splits.values() for image_id in ids]
    if len(set(all_ids)) != len(all_ids):
        raise InputError(f"{path}: {_first_duplicate(all_ids)!r} is in two split lists")


def _first_duplicate(ids: list[str]) -> str:
    seen: set[str] = set()
    return next(image_id for image_id in ids if image_id in seen or seen.add(image_id))  # type: ignore[func-returns-value]
