"""Read splits that are files of their own: one list of names per split."""

import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from pipeline.captions.table import SPLIT_NAMES
from pipeline.images.names import is_image_name, normalize_path
from pipeline.runtime.errors import InputError
from pipeline.sources.records import SPLITS
from pipeline.sources.text_archive import TextArchive

_SPLIT_WORD = re.compile(
    rf"(?<![a-z])({'|'.join(filter(None, SPLITS))})(?:images)?(?![a-z])", re.IGNORECASE
)


def split_of_path(path: str) -> str | None:
    """Return the split that a file's name or one of its folders names, if only one does."""
    found = {
        SPLITS[word.lower()]
        for part in PurePosixPath(path).parts
        for word in _SPLIT_WORD.findall(part)
    }
    return found.pop() if len(found) == 1 else None


def find_lists(archive: TextArchive) -> dict[str, str]:
    """Return the file of each split's list: `Flickr_8k.trainImages.txt`, `val.txt`, …

    Raises:
        InputError: a split has two lists, or one of the three is missing.
    """
    lists: dict[str, str] = {}
    for name in archive.names:
        split = split_of_path(PurePosixPath(name).name)
        if split is None or not name.lower().endswith(".txt") or not _is_list(archive.head(name)):
            continue
        if split in lists:
            raise InputError(
                f"{archive.path} has two lists of the split '{split}', {lists[split]!r} and "
                f"{name!r}; keep one"
            )
        lists[split] = name
    missing = [split for split in SPLIT_NAMES if split not in lists]
    if lists and missing:
        raise InputError(
            f"{archive.path} has split lists ({', '.join(sorted(lists.values()))}) but none of "
            f"'{missing[0]}'; add all three split lists or none"
        )
    return dict(sorted(lists.items(), key=lambda item: SPLIT_NAMES.index(item[0])))


def read_lists(archive: TextArchive, lists: Mapping[str, str]) -> dict[str, str]:
    """Return the split of each image that the lists name.

    Raises:
        InputError: a list is empty, or names an image twice, or another list names it too.
    """
    split_of: dict[str, str] = {}
    for split, name in lists.items():
        where, size = archive.where(name), len(split_of)
        for image in _names(archive.lines(name)):
            if image in split_of:
                twice = split_of[image] == split
                both = "twice" if twice else f"and so does the list of '{split_of[image]}'"
                raise InputError(f"{where} names {image!r} {both}; keep one")
            split_of[image] = split
        if len(split_of) == size:
            raise InputError(f"{where} is empty")
    return split_of


def _names(lines: Iterator[str]) -> Iterator[str]:
    return (normalize_path(line.strip()) for line in lines if line.strip())


def _is_list(line: str) -> bool:
    """Whether a first line is an image's name, or none: then the list is empty."""
    name = line.strip()
    return not name or is_image_name(name) or re.fullmatch(r"[\w.-]+", name) is not None
