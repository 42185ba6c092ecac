"""Find the captions among the text files of a data set, and read them in any known format."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from pydantic_core import from_json

from pipeline.images.names import first_few
from pipeline.runtime.errors import InputError
from pipeline.sources.caption_json import JsonCaptions, parse_captions, parse_json_lines
from pipeline.sources.caption_rows import find_columns, read_rows
from pipeline.sources.collector import CaptionCollector
from pipeline.sources.records import CaptionRecord, ColumnNames
from pipeline.sources.split_files import find_lists, read_lists, split_of_path
from pipeline.sources.text_archive import TextArchive
from pipeline.sources.token_file import is_token_line, read_tokens

log = logging.getLogger(__name__)

EXPECTED = (
    "a token file (name.jpg#0<TAB>caption), a table with the header 'image,caption' (.csv, .tsv, "
    ".txt), JSON of Karpathy or COCO, or JSON Lines"
)


@dataclass(frozen=True)
class SourceCaptions:
    """Captions and splits by the images' names in the source, in its order."""

    captions: dict[str, list[str]]
    splits: dict[str, str] | None  # None: the source has none. Images in no split are left out
    format: str  # token, csv, json, karpathy or coco
    dataset: str = ""  # what the source calls itself: flickr8k, coco


@dataclass
class _File:
    """A file that has captions, or splits alone."""

    name: str
    format: str
    splits_only: bool = False
    header: tuple[str, ...] = ()
    records: Iterator[CaptionRecord] = field(default_factory=lambda: iter(()))
    dataset: str = ""
    place: str = "line"  # what messages count: lines, or entries of JSON


def read_captions(
    text: Path, *, format: str = "auto", file: str | None = None, named: ColumnNames | None = None
) -> SourceCaptions:
    """Read all captions of a text archive, and its splits if it has any.

    Args:
        format: token, csv, json, karpathy or coco; auto: what is recognised.
        file: the captions file's name or path, where there are several.
        named: the columns or keys that params name.

    Raises:
        InputError: no file or more than one is recognised, or one is invalid.
    """
    named = named or ColumnNames()
    with TextArchive(text) as archive:
        files = list(_recognized(archive, file, named))
        caption_files = _select(
            [entry for entry in files if not entry.splits_only], archive, format
        )
        for entry in caption_files:
            _open(entry, archive, named)
        _check_formats(caption_files, archive, format)
        table = CaptionCollector()
        by_file = _splits_of_files(caption_files)
        for entry in caption_files:
            where, split = archive.where(entry.name), by_file.get(entry.name)
            table.add_all(entry.name, entry.records, where, entry.place, split)
        for entry in files:
            if entry.splits_only and table.splits is None:
                _open(entry, archive, named)
                table.add_all(entry.name, entry.records, archive.where(entry.name), entry.place)
        if not table.captions:
            names = first_few([entry.name for entry in caption_files])
            raise InputError(f"{text}: {names} has no captions; add one line per caption")
        splits = table.splits
        if splits is None and named.split is not None:
            header = f"; its header is {', '.join(caption_files[0].header)}"
            raise InputError(
                f"{archive.where(caption_files[0].name)} has no column or key {named.split!r}, "
                f"which prepare.split_column names{header if caption_files[0].header else ''}"
            )
        table.warn_repeated()
        if splits is None and (lists := find_lists(archive)):
            splits = read_lists(archive, lists)
        return SourceCaptions(
            table.captions, splits, caption_files[0].format, caption_files[0].dataset
        )


def _recognized(archive: TextArchive, file: str | None, named: ColumnNames) -> Iterator[_File]:
    """Yield the files that have captions or splits; only this one has captions, if it is named."""
    if file is not None and not any(_is_named(name, file) for name in archive.names):
        raise InputError(
            f"{archive.path} has no {file!r}, which prepare.file names; it has "
            f"{first_few(archive.names) or 'no text files'}"
        )
    for name in archive.names:
        chosen = file is None or _is_named(name, file)
        entry = _recognize(archive, name, named)
        if entry is None and file is not None and chosen:
            begin = archive.head(name)[:60]
            raise InputError(f"{archive.where(name)} begins with {begin!r}; expected {EXPECTED}")
        if entry is not None and (chosen or entry.splits_only):
            yield entry


def _is_named(name: str, file: str) -> bool:
    return file in (name, PurePosixPath(name).name)


def _recognize(archive: TextArchive, name: str, named: ColumnNames) -> _File | None:
    head, lowered = archive.head(name), PurePosixPath(name).name.lower()
    if lowered.endswith((".json", ".jsonl")) or head.lstrip().startswith(("{", "[{")):
        return _File(name, "json")
    if is_token_line(head) or lowered.endswith((".token", ".token.txt")):
        return None if "lemma" in lowered else _File(name, "token")
    if columns := find_columns(head, named):
        return _File(name, "csv", not columns.captions, columns.names)
    if lowered.endswith((".csv", ".tsv")) or lowered.startswith("captions."):
        return _File(name, "csv")  # to say what its header lacks
    return None


def _select(files: list[_File], archive: TextArchive, format: str) -> list[_File]:
    """Return the files to read together.

    Raises:
        InputError: there is none, or there are several that do not belong together.
    """
    kind = "json" if format in ("karpathy", "coco") else format
    matching = [entry for entry in files if format == "auto" or entry.format == kind]
    if not matching:
        expected = EXPECTED if format == "auto" else f"the format '{format}' (prepare.format)"
        others = archive.names + archive.other_files
        found = f", found only {first_few(others)}" if others else ""
        raise InputError(f"{archive.path} has no captions; expected {expected}{found}")
    # COCO's archive has captions_train2014.json beside instances_train2014.json and others.
    if len(matching) > 1 and all(entry.format == "json" for entry in matching):
        matching = [entry for entry in matching if "captions_" in entry.name.lower()] or matching
    # A table of something else does not count beside one of captions.
    if known := [entry for entry in matching if entry.format != "csv" or entry.header]:
        for entry in matching:
            if entry not in known:
                log.warning(
                    "%s is not read: its header has no images with captions or splits; name its "
                    "columns in prepare if it should be",
                    archive.where(entry.name),
                )
        matching = known
    alike = len({(entry.format, entry.header) for entry in matching}) == 1
    if len(matching) > 1 and (not alike or matching[0].format == "token"):
        raise InputError(_too_many(matching, archive))
    return matching


def _too_many(files: Sequence[_File], archive: TextArchive) -> str:
    names = first_few([entry.name for entry in files])
    number = "two" if len(files) == 2 else str(len(files))
    return f"{archive.path} has {number} captions files, {names}; name one in prepare.file"


def _open(entry: _File, archive: TextArchive, named: ColumnNames) -> None:
    """Make the file's records ready; of JSON, find its format."""
    where = archive.where(entry.name)
    if entry.format == "token":
        entry.records = read_tokens(archive.lines(entry.name), where)
    elif entry.format == "csv":
        entry.records = read_rows(archive.lines(entry.name), where, named)
    else:
        parsed: JsonCaptions
        if _has_json_lines(archive, entry.name):
            parsed = parse_json_lines(archive.lines(entry.name), where, named)
        else:
            parsed = parse_captions(archive.content(entry.name), where, named)
            entry.place = "entry"
        entry.format, entry.records, entry.dataset = parsed.format, parsed.records, parsed.dataset


def _has_json_lines(archive: TextArchive, name: str) -> bool:
    """Whether a JSON file has one object per line, whatever its suffix."""
    if name.lower().endswith(".jsonl"):
        return True
    head = archive.head(name).strip()
    if not (head.startswith("{") and head.endswith("}")):
        return False
    try:
        return isinstance(from_json(head), dict) and b"\n" in archive.content(name).strip()
    except ValueError:  # the line ends within an object
        return False


def _check_formats(files: Sequence[_File], archive: TextArchive, format: str) -> None:
    formats = {entry.format for entry in files}
    if format in ("karpathy", "coco") and formats != {format}:
        raise InputError(
            f"{archive.where(files[0].name)} is not in the format '{format}', which prepare.format "
            f"names; it looks like '{files[0].format}'"
        )
    if len(files) > 1 and (len(formats) > 1 or formats == {"karpathy"}):
        raise InputError(_too_many(files, archive))


def _splits_of_files(files: Sequence[_File]) -> dict[str, str]:
    """Return the split of each file where train, val and test have files of their own."""
    splits = {entry.name: split_of_path(entry.name) for entry in files}
    if set(splits.values()) != {"train", "val", "test"} or files[0].format == "coco":
        return {}
    return {name: split for name, split in splits.items() if split}
