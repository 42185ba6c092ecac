"""Write the demo's data set in Flickr8k's archive layout, always with the same bytes."""

import io
import random
import zipfile
from pathlib import Path

from pipeline.demo.shapes import describe, random_shapes, render
from pipeline.runtime.files import atomic_write
from pipeline.runtime.progress import progress_bar

# The names in Flickr8k's text archive.
TOKEN_FILE = "Flickr8k.token.txt"
SPLIT_LISTS = {
    "train": "Flickr_8k.trainImages.txt",
    "val": "Flickr_8k.devImages.txt",
    "test": "Flickr_8k.testImages.txt",
}


def write_archives(images: Path, text: Path, counts: dict[str, int], seed: int) -> None:
    """Render and describe scenes of two shapes, and write them as archives.

    Args:
        counts: images per split (train, val, test).
    """
    rng = random.Random(seed)
    total = sum(counts.values())
    captions: list[str] = []
    split_lists: dict[str, list[str]] = {split: [] for split in SPLIT_LISTS}
    splits = [split for split, count in counts.items() for _ in range(count)]
    with atomic_write(images) as scratch, zipfile.ZipFile(scratch, "w") as archive:
        _add(archive, "Flicker8k_Dataset/", b"")
        _add(archive, "__MACOSX/._Flicker8k_Dataset", b"\0\5\x16\7")
        for number in progress_bar(range(total), label="draw", unit="image"):
            name = f"{number:06d}_{rng.getrandbits(40):010x}.jpg"
            scene = random_shapes(rng, 2)
            jpeg = io.BytesIO()
            render(scene, rng).save(jpeg, "JPEG", quality=90)
            _add(archive, f"Flicker8k_Dataset/{name}", jpeg.getvalue())
            captions += [f"{name}#{i}\t{text}" for i, text in enumerate(describe(scene, rng))]
            split_lists[splits[number]].append(name)
    with atomic_write(text) as scratch, zipfile.ZipFile(scratch, "w") as archive:
        _add(archive, TOKEN_FILE, "".join(f"{line}\n" for line in captions).encode())
        for split, file_name in SPLIT_LISTS.items():
            _add(archive, file_name, "".join(f"{name}\n" for name in split_lists[split]).encode())


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """Add a member with ZipInfo's fixed default date, so that archives have the same bytes."""
    archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_STORED)
