"""The little world in Flickr8k's own archive layout, always the same bytes."""

import io
import random
import zipfile
from pathlib import Path

from pipeline.demo.shapes import describe, draw, random_things
from pipeline.runtime.files import atomic_write
from pipeline.runtime.progress import progress_bar
from pipeline.sources.flickr8k import SPLITS, TOKENS


def write_archives(images: Path, text: Path, counts: dict[str, int], seed: int) -> None:
    """Draw and describe scenes of two shapes, and pack them as Flickr8k is packed.

    Args:
        counts: images in each of the splits train, val and test.
    """
    rng = random.Random(seed)
    total = sum(counts.values())
    tokens: list[str] = []
    lists: dict[str, list[str]] = {split: [] for split in SPLITS}
    turns = [split for split, count in counts.items() for _ in range(count)]
    with atomic_write(images) as scratch, zipfile.ZipFile(scratch, "w") as archive:
        _add(archive, "Flicker8k_Dataset/", b"")
        _add(archive, "__MACOSX/._Flicker8k_Dataset", b"\0\5\x16\7")
        for number in progress_bar(range(total), label="draw", unit="image"):
            name = f"{number:06d}_{rng.getrandbits(40):010x}.jpg"
            things = random_things(rng, 2)
            jpeg = io.BytesIO()
            draw(things, rng).save(jpeg, "JPEG", quality=90)
            _add(archive, f"Flicker8k_Dataset/{name}", jpeg.getvalue())
            tokens += [f"{name}#{i}\t{one}" for i, one in enumerate(describe(things, rng))]
            lists[turns[number]].append(name)
    with atomic_write(text) as scratch, zipfile.ZipFile(scratch, "w") as archive:
        _add(archive, TOKENS, "".join(f"{line}\n" for line in tokens).encode())
        for split, file_name in SPLITS.items():
            _add(archive, file_name, "".join(f"{name}\n" for name in lists[split]).encode())


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """With ZipInfo's own fixed date: the same content gives the same archive."""
    archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_STORED)
