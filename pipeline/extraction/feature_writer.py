"""A feature cache while it is made: rows are appended, and an interrupted one is gone on with.

HDF5 lays the file out, and the rows go straight to where it says: the HDF5 library does not survive
a disk that fills up, plain writes do.
"""

import errno
import logging
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import FileIO
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.features.feature_cache import (
    CHECKSUM,
    USER_BLOCK,
    Layout,
    allocate,
    checksums_of,
    row_size,
    sealed_layout,
)
from pipeline.features.recipe import FeatureRecipe
from pipeline.runtime.checkpoint import Checkpoint
from pipeline.runtime.files import atomic_write, replace_durably

log = logging.getLogger(__name__)

BLOCK = 1 << 20  # bytes


class FeatureWriter:
    """Appends rows, in the order of the ids."""

    def __init__(
        self, file: FileIO, layout: Layout, dtype: str, contents: Sequence[str] = ()
    ) -> None:
        self._file, self._layout, self._dtype = file, layout, dtype
        self._contents = list(contents)  # by row, what tells whether it is still right
        self.done = 0  # rows that are written

    def append(self, rows: NDArray[Any], checksums: NDArray[np.uint32] | None = None) -> None:
        """Write `rows` (n, …) and their checksums behind those that are there.

        Args:
            checksums: (n,), of the rows in the file's dtype, where they are known.
        """
        layout, content = self._layout, np.ascontiguousarray(rows, dtype=self._dtype)
        self._write(layout.rows + self.done * layout.row_size, content)
        checksums = checksums_of(content) if checksums is None else checksums
        self._write(layout.checksums + self.done * checksums.itemsize, checksums)
        self.done += len(content)  # last: Ctrl-C may come any time

    def _write(self, offset: int, content: NDArray[Any]) -> None:
        self._file.seek(offset)
        left = content.data.cast("B")
        while left:  # without a buffer, so that what is counted is written; it may be less at once
            left = left[self._file.write(left) :]

    def save(self, checkpoint: Checkpoint) -> None:
        """Make what is written last, whatever happens to this process or to the power."""
        os.fsync(self._file.fileno())
        checkpoint.save({}, {"rows": self.done, "contents": self._contents})

    def resume(self, rows: int) -> bool:
        """Go on behind so many rows, if they are as they were written."""
        layout = self._layout
        self._file.seek(layout.checksums)
        expected = np.frombuffer(self._file.read(4 * rows), dtype=CHECKSUM)
        self._file.seek(layout.rows)
        for checksum in expected:
            if zlib.crc32(self._file.read(layout.row_size)) != checksum:
                return False
        self.done = rows
        return True


@contextmanager
def create_features(
    path: Path, ids: Sequence[str], shape: Sequence[int], dtype: str, recipe: FeatureRecipe
) -> Iterator[FeatureWriter]:
    """Append rows of shape `shape`; the file appears at `path` when all is done."""
    _require_room(path, len(ids) * row_size(shape, dtype))
    with atomic_write(path) as scratch:
        layout = allocate(scratch, ids, shape, dtype, recipe)
        with scratch.open("r+b", buffering=0) as file:
            yield FeatureWriter(file, layout, dtype)


@contextmanager
def resume_features(
    path: Path,
    ids: Sequence[str],
    shape: Sequence[int],
    dtype: str,
    recipe: FeatureRecipe,
    checkpoint: Checkpoint,
    contents: Sequence[str],
    batch: int,
) -> Iterator[FeatureWriter]:
    """The same, in the checkpoint's folder: a run that was interrupted is gone on with.

    What is interrupted in here, by Ctrl-C, an error or a full disk, leaves all that was appended.

    Args:
        contents: by row, a text that changes with its image.
        batch: how many rows come at a time; what else came with a row may touch its last bits.
    """
    saved = checkpoint.restore()
    scratch = checkpoint.folder / "rows.h5"
    done = saved[1].get("rows", 0) if saved else 0
    if saved and saved[1]["contents"] != list(contents):
        pairs = zip(saved[1]["contents"][:done], contents, strict=False)
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        done = same // batch * batch
        log.info("other images than before: %d of %d rows are still right", done, len(ids))
        checkpoint.complete = False
        if not _keep(scratch, done, (ids, shape, dtype, recipe)):
            scratch.unlink(missing_ok=True)
            saved = None
    if checkpoint.complete:
        checkpoint.log_complete()
        if whole := _reuse_complete(scratch, ids, shape, dtype, recipe):
            yield whole
            _publish(scratch, path, checkpoint, contents)
            return
        log.info("the features of the finished run are missing or damaged; starting over")
        scratch.unlink(missing_ok=True)
        saved = None
    if saved is None:
        try:
            _require_room(path, len(ids) * row_size(shape, dtype))
        except OSError:
            checkpoint.delete()
            raise
    # Laid out anew either way, so that only rows have to be trusted.
    layout = _lay_out_around(scratch, ids, shape, dtype, recipe)
    with scratch.open("r+b", buffering=0) as file:
        rows = FeatureWriter(file, layout, dtype, contents)
        if saved and done:
            if rows.resume(done):
                log.info("resuming after %d of %d images", rows.done, len(ids))
            else:
                log.info("the rows of the interrupted run are damaged; starting over")
        try:
            yield rows
        except BaseException:
            with suppress(OSError):  # a full disk, say: what was saved before is still there
                rows.save(checkpoint)
            raise
        os.fsync(file.fileno())
    _publish(scratch, path, checkpoint, contents)


def _keep(
    path: Path, rows: int, made_of: tuple[Sequence[str], Sequence[int], str, FeatureRecipe]
) -> bool:
    """Another file in this one's place, for other images, with its first rows.

    DVC's cache may hold the same file, so it is left as it is.
    """
    fresh = path.with_name("layout.h5")
    layout = allocate(fresh, *made_of)
    with suppress(FileNotFoundError), path.open("rb") as source, fresh.open("r+b") as target:
        before = sealed_layout(source)
        if before is None or before.row_size != layout.row_size:
            return False
        for begin, to, size in (
            (before.rows, layout.rows, rows * layout.row_size),
            (before.checksums, layout.checksums, rows * np.dtype(CHECKSUM).itemsize),
        ):
            source.seek(begin)
            target.seek(to)
            for left in range(size, 0, -BLOCK):
                target.write(source.read(min(left, BLOCK)))
    fresh.replace(path)
    return True


def _publish(scratch: Path, path: Path, checkpoint: Checkpoint, contents: Sequence[str]) -> None:
    """Under another name too, so that DVC can take that one away."""
    other = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        # First: a file that has gone out under its other name is not written to again.
        complete = {"complete": True, "rows": len(contents), "contents": list(contents)}
        checkpoint.save({}, complete)
        os.link(scratch, other)
    except OSError:  # no room for the state, or a file system where a file has one name
        replace_durably(scratch, path)
        checkpoint.delete()
        return
    replace_durably(other, path)
    other.unlink(missing_ok=True)  # two names of one file are not moved onto each other


def _reuse_complete(
    path: Path, ids: Sequence[str], shape: Sequence[int], dtype: str, recipe: FeatureRecipe
) -> FeatureWriter | None:
    """With nothing left to write, if the cache at `path` is still what it was when it was whole.
    It is only read: DVC's cache may hold the same file."""
    fresh = path.with_name("layout.h5")
    layout = allocate(fresh, ids, shape, dtype, recipe)
    try:
        if not path.exists() or path.stat().st_size != fresh.stat().st_size:
            return None
        with path.open("rb", buffering=0) as file, fresh.open("rb") as expected:
            same = file.read(USER_BLOCK) == expected.read(USER_BLOCK)
            rows = FeatureWriter(file, layout, dtype)
            same = same and layout.digest(file) == layout.digest(expected)
            return rows if same and rows.resume(len(ids)) else None
    finally:
        fresh.unlink()


def _lay_out_around(
    path: Path, ids: Sequence[str], shape: Sequence[int], dtype: str, recipe: FeatureRecipe
) -> Layout:
    """Lay a cache out and leave rows and checksums as they are, if there are any."""
    fresh = path.with_name("layout.h5")
    layout = allocate(fresh, ids, shape, dtype, recipe)
    if not path.exists():
        fresh.replace(path)
        return layout
    size = fresh.stat().st_size
    with fresh.open("rb") as source, path.open("r+b") as file:
        file.truncate(size)
        for begin, end in layout.between(0, size):
            source.seek(begin)
            file.seek(begin)
            file.write(source.read(end - begin))
    fresh.unlink()
    return layout


def _require_room(path: Path, size: int) -> None:
    """Say so now, rather than after an hour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(path.parent).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
