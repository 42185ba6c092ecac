"""What every reader of captions yields, and the columns that params can name."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

# Known names of columns and JSON keys, the least ambiguous first.
IMAGE_COLUMNS = "image image_name file_name filename image_path path img image_id file id".split()
CAPTION_COLUMNS = (
    "caption comment captions comments text sentence sentences description raw".split()
)
SPLIT_COLUMNS = ("split", "subset", "partition", "fold")
SPLITS = {
    **dict.fromkeys(("train", "training", "restval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("", "none", "unused"), ""),
}


class CaptionRecord(NamedTuple):
    """One caption of one image, as the source has them.

    The caption is None where a source only says an image's split.
    """

    image: str  # its path or name
    caption: str | None
    split: str | None  # None: the source says nothing about splits
    number: int  # of the line or entry, from 1


@dataclass(frozen=True)
class ColumnNames:
    """The columns or JSON keys that params name; None: the known ones."""

    image: str | None = None
    captions: tuple[str, ...] | None = None
    split: str | None = None

    def known_images(self) -> Sequence[str]:
        return IMAGE_COLUMNS if self.image is None else [self.image]

    def known_splits(self) -> Sequence[str]:
        return SPLIT_COLUMNS if self.split is None else [self.split]
