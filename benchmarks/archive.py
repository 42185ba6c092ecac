"""Open a zip of many images, as every worker of an extraction does, beside zipfile.

    python -m benchmarks.archive 1000000

The members have 64 bytes each: only the zip's directory is read. Each way runs in a process of its
own, whose memory is measured at its highest, without pages of files.
"""

import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.scale import run
from pipeline.entrypoint import app, one_line_errors
from pipeline.images.archive import ImageArchive

OPENED_BY = {"ImageArchive": ImageArchive, "zipfile": zipfile.ZipFile}
CHILD = "open-one"


def write_zip(path: Path, images: int) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(images):
            archive.writestr(f"train/{number // 1000:05d}/COCO_{number:012d}.jpg", bytes(64))


def measure(
    images: Annotated[int, typer.Argument(min=1, help="Number of images.")] = 1_000_000,
) -> None:
    """Open a zip of this many images in both ways, and print a table."""
    print("| opened by | seconds | GB |\n" + "| --- " * 3 + "|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_zip(folder / "images.zip", images)
        for opener in OPENED_BY:
            _, memory = run([CHILD, opener, str(folder)], folder, "benchmarks.archive")
            seconds = float((folder / "seconds").read_text())
            print(f"| {opener} | {seconds:.1f} | {memory:.2f} |", flush=True)


def child(opener: str, folder: Path) -> None:
    """Open the zip, and write the seconds."""
    began = time.perf_counter()
    with OPENED_BY[opener](folder / "images.zip"):
        seconds = time.perf_counter() - began
    (folder / "seconds").write_text(str(seconds))


if __name__ == "__main__":
    if sys.argv[1:2] == [CHILD]:
        child(sys.argv[2], Path(sys.argv[3]))
    else:
        archive = app()
        archive.command()(measure)
        with one_line_errors():
            archive()
