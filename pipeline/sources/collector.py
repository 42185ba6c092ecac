"""Collect the records of captions files by image, and check them."""

import logging
import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from pipeline.images.names import check_id, normalize_path
from pipeline.runtime.errors import InputError, pluralize
from pipeline.sources.records import SPLITS, CaptionRecord

log = logging.getLogger(__name__)

MAX_CAPTION = 10_000  # characters

# Control characters except the tab, and Unicode's line ends: some CSV readers end a row there.
CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")


class CaptionCollector:
    """Collects captions and splits by image, and checks them."""

    def __init__(self) -> None:
        self.captions: dict[str, list[str]] = {}
        self.splits: dict[str, str] | None = None
        self._first_file: dict[str, str] = {}  # of each image
        self._repeated = 0

    def warn_repeated(self) -> None:
        """Warn if an image has the same caption more than once."""
        if self._repeated:
            number = pluralize(self._repeated, "caption")
            log.warning("%s repeated word for word for one image", number)

    def add_all(
        self,
        file: str,
        records: Iterable[CaptionRecord],
        where: str,
        place: str = "line",
        split_of_file: str | None = None,
    ) -> None:
        """Add the records of a file.

        Args:
            where: what messages call the file.
            place: what they call a record's number.
            split_of_file: of all its images, unless a record has its own.

        Raises:
            InputError: a name or a caption is not allowed, a split is unknown or another than
                before, or another file has the same caption of an image.
        """
        # The metadata of Hugging Face's imagefolder names files relative to itself.
        relative = PurePosixPath(file).name.lower().startswith("metadata.")
        folder = file[: file.rfind("/") + 1] if relative else ""
        name_of = dict[str, str]()  # normalising a name once saves a third of the time
        for record in records:
            name = name_of.get(record.image)
            if name is None:
                name = name_of[record.image] = normalize_path(folder + record.image.strip())
                named = name if record.image.strip() else ""
                check_id(named, f"{where}, {place} {record.number}")
            split = split_of_file if record.split is None else record.split
            if split is not None:
                self._add_split(name, split, f"{where}, {place} {record.number}")
            if record.caption is None:
                continue
            if (length := len(record.caption)) > MAX_CAPTION:
                raise InputError(
                    f"{where}, {place} {record.number}: the caption has {length} "
                    f"characters, more than {MAX_CAPTION}; shorten it"
                )
            self._add_caption(name, CONTROL.sub(" ", record.caption), file, where)

    def _add_caption(self, name: str, caption: str, file: str, where: str) -> None:
        captions = self.captions.setdefault(name, [])
        first = self._first_file.setdefault(name, file)
        if caption in captions:
            if first != file:
                raise InputError(
                    f"{where} and {first} both have the caption {caption[:60]!r} of {name!r}; name "
                    "one file in prepare.file"
                )
            self._repeated += 1
        captions.append(caption)

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
