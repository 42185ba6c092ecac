"""Find the captions among the text files of a data set, and read them in any known format."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from pydantic_core import from_json

from pipeline.images.names import check_id, first_few, normalize_path
from pipeline.runtime.errors import InputError
from pipeline.sources.caption_json import JsonCaptions, parse_captions, parse_json_lines
from pipeline.sources.caption_rows import find_columns, read_rows
from pipeline.sources.records import SPLITS, CaptionRecord, ColumnNames
from pipeline.sources.split_files import find_lists, read_lists, split_of_path
from pipeline.sources.text_archive import TextArchive
from pipeline.sources.token_file import is_token_line, read_tokens

MAX_CAPTION = 10_000  # characters
EXPECTED = (
    "a token file (name.jpg#0<TAB>caption), a table with the header 'image,caption' (.csv, .tsv, "
    ".txt), JSON of Karpathy or COCO, or JSON Lines"
)

# Control characters except the tab, and Unicode's line ends: some CSV readers end a row there.
CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")


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
        table = _Collector()
        by_file = _splits_of_files(caption_files)
        for entry in caption_files:
            table.add_all(entry, archive.where(entry.name), by_file.get(entry.name))
        for entry in files:
            if entry.splits_only and table.splits is None:
                _open(entry, archive, named)
                table.add_all(entry, archive.where(entry.name), None)
        if not table.captions:
            names = first_few([entry.name for entry in caption_files])
            raise InputError(f"{text}: {names} has no captions; add one line per caption")
        splits = table.splits
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


class _Collector:
    """Collects captions and splits by image, and checks them."""

    def __init__(self) -> None:
        self.captions: dict[str, list[str]] = {}
        self.splits: dict[str, str] | None = None

    def add_all(self, entry: _File, where: str, split_of_file: str | None) -> None:
        # The metadata of Hugging Face's imagefolder names files relative to itself.
        relative = PurePosixPath(entry.name).name.lower().startswith("metadata.")
        folder = entry.name[: entry.name.rfind("/") + 1] if relative else ""
        name_of = dict[str, str]()  # normalising a name once saves a third of the time
        for record in entry.records:
            name = name_of.get(record.image)
            if name is None:
                name = name_of[record.image] = normalize_path(folder + record.image.strip())
                named = name if record.image.strip() else ""
                check_id(named, f"{where}, {entry.place} {record.number}")
            split = split_of_file if record.split is None else record.split
            if split is not None:
                self._add_split(name, split, f"{where}, {entry.place} {record.number}")
            if record.caption is None:
                continue
            if (length := len(record.caption)) > MAX_CAPTION:
                raise InputError(
                    f"{where}, {entry.place} {record.number}: the caption has {length} "
                    f"characters, more than {MAX_CAPTION}; shorten it"
                )
            self.captions.setdefault(name, []).append(CONTROL.sub(" ", record.caption))

    def _add_split(self, name: str, split: str, where: str) -> None:
        known = SPLITS.get(split.strip().lower()) if isinstance(split, str) else None
        if known is None:
            allowed = ", ".join(filter(None, SPLITS))
            raise InputError(f"{where}: the split {split!r} is unknown; allowed are {allowed}")
        if self.splits is None:
            self.splits = {}
        if self.splits.setdefault(name, known) != known:
            raise InputError(
                f"{where}: {name!r} is in two splits, '{self.splits[name]}' and '{known}'; keep one"
            )
