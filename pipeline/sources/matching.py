"""Bring captions and images together, and list what does not fit."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NamedTuple

from pipeline.images.names import first_few, similar_names
from pipeline.runtime.errors import InputError, pluralize
from pipeline.sources.captions import SourceCaptions

MISSING = "missing image"  # captions name it
UNCAPTIONED = "image without captions"
UNREADABLE = "unreadable image"
EMPTY = "empty caption"

MAX_HINTS = 3  # of similar names in a message
# Images that Flickr8k's caption file names but the data set does not have.
KNOWN_MISSING = frozenset({"2258277193_586949ec62.jpg.1"})


class Excluded(NamedTuple):
    """A caption or an image that is set aside, and why."""

    reason: str
    image: str
    caption: str


@dataclass(frozen=True)
class Matched:
    """Captions and splits by image id, and what does not fit."""

    captions: dict[str, list[str]]
    splits: dict[str, str] | None
    excluded: list[Excluded]


class ImageIndex:
    """Finds images by the names that captions have for them."""

    def __init__(self, ids: Iterable[str]) -> None:
        self._by_name: dict[str, list[str]] = {}
        for image_id in ids:
            self._by_name.setdefault(PurePosixPath(image_id).name, []).append(image_id)

    def find(self, name: str) -> str | None:
        """Return the image whose path ends with this name, or whose path the name ends with.

        Raises:
            InputError: there are several.
        """
        candidates = self._by_name.get(name.rpartition("/")[2], [])
        if name in candidates:
            return name
        found = [
            image_id
            for image_id in candidates
            if f"/{image_id}".endswith(f"/{name}") or f"/{name}".endswith(f"/{image_id}")
        ]
        if len(found) > 1:
            raise InputError(
                f"the captions name {name!r}, which may be {pluralize(len(found), 'image')}: "
                f"{first_few(sorted(found))}; write the folder too"
            )
        return found[0] if found else None


def match(source: SourceCaptions, ids: Collection[str], unreadable: Collection[str]) -> Matched:
    """Assign captions and splits to images.

    Args:
        ids: of the images that can be used.
        unreadable: of the images that cannot.

    Raises:
        InputError: a name may mean several images, or an image is in two splits.
    """
    index = ImageIndex([*ids, *unreadable])
    captions: dict[str, list[str]] = {}
    excluded: list[Excluded] = []
    for name, own in source.captions.items():
        image_id = index.find(name)
        if image_id is None and name in KNOWN_MISSING:
            continue
        if image_id is None or image_id in unreadable:
            reason = MISSING if image_id is None else UNREADABLE
            excluded += [Excluded(reason, image_id or name, caption) for caption in own]
        else:
            captions.setdefault(image_id, []).extend(own)
    splits: dict[str, str] | None = None if source.splits is None else {}
    for name, split in (source.splits or {}).items():
        image_id = index.find(name)
        if image_id is None and name not in source.captions:
            excluded.append(Excluded(MISSING, name, ""))
        elif image_id is not None and splits is not None:
            first = splits.setdefault(image_id, split)
            if first != split:
                raise InputError(
                    f"{image_id!r} is in two splits, '{first}' and '{split}'; keep one"
                )
    captioned = captions.keys() | {entry.image for entry in excluded}
    excluded += [Excluded(UNREADABLE, name, "") for name in sorted(set(unreadable) - captioned)]
    excluded += [Excluded(UNCAPTIONED, name, "") for name in sorted(set(ids) - captioned)]
    return Matched(captions, splits, excluded)


def explain(
    excluded: Iterable[Excluded], images: object, ids: Collection[str], others: Collection[str]
) -> str:
    """Say what does not fit: the first few of each kind, their number, and the likely reason.

    Args:
        images: what messages call the image archive.
        ids: its images.
        others: the names of its files that are not images.
    """
    by_reason: dict[str, list[str]] = {}
    for entry in excluded:
        by_reason.setdefault(entry.reason, []).append(entry.image)
    parts = []
    for reason in (MISSING, UNREADABLE, UNCAPTIONED, EMPTY):
        names = list(dict.fromkeys(by_reason.get(reason, [])))
        if reason == UNCAPTIONED:  # said of its captions already
            names = [name for name in names if name not in by_reason.get(EMPTY, [])]
        if not names:
            continue
        if reason == MISSING:
            parts.append(_explain_missing(names, images, ids, others))
        elif reason == EMPTY:
            number = pluralize(len(by_reason[reason]), "caption")
            parts.append(f"{number} without words, of {first_few(names)}: write or remove them")
        else:
            what = "without captions" if reason == UNCAPTIONED else "that cannot be read"
            hint = "; add captions, or remove the images" if reason == UNCAPTIONED else ""
            parts.append(f"{pluralize(len(names), 'image')} {what}: {first_few(names)}{hint}")
    return "; ".join(parts)


def _explain_missing(
    missing: list[str], images: object, ids: Collection[str], others: Collection[str]
) -> str:
    unsupported = [name for name in missing if PurePosixPath(name).name in others]
    if unsupported:
        suffixes = {PurePosixPath(name).suffix or "no suffix" for name in unsupported}
        return (
            f"{pluralize(len(unsupported), 'image')} of an unsupported format "
            f"({', '.join(sorted(suffixes))}) in {images}: {first_few(unsupported)}; convert to "
            "JPEG, or remove the captions"
        )
    similar = similar_names(missing, ids)
    hints = [f"{name!r} is named {similar[name]!r} there" for name in missing if name in similar]
    hint = "add them, or remove their captions"
    if hints:
        hint = f"{'; '.join(hints[:MAX_HINTS])}: use one name"
    return f"{pluralize(len(missing), 'image')} that {images} lacks: {first_few(missing)}; {hint}"
