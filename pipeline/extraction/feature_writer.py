"""Append rows to a feature cache; resume if interrupted.

HDF5 allocates the file, and plain writes put the rows at its offsets: the HDF5 library does not
survive a full disk, plain writes do.
"""

import errno
import logging
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.features.feature_cache import (
    CHECKSUM_DTYPE,
    USER_BLOCK,
    CacheSpec,
    Layout,
    allocate,
    read_layout,
    row_checksums,
)
from pipeline.features.recipe import FeatureRecipe
from pipeline.runtime.checkpoint import Checkpoint
from pipeline.runtime.files import atomic_write, replace_durably

log = logging.getLogger(__name__)

BLOCK = 1 << 20  # bytes


@dataclass
class FeatureWriter:
    """Appends rows, in the order of the ids."""

    file: FileIO  # unbuffered
    layout: Layout
    dtype: str
    fingerprints: Sequence[str] = ()  # of the rows' images, saved in checkpoints
    rows_written: int = 0

    def append(self, rows: NDArray[Any], checksums: NDArray[np.uint32] | None = None) -> None:
        """Write the next rows (n, …) and the checksums (n,) of them in the file's dtype."""
        layout, values = self.layout, np.ascontiguousarray(rows, dtype=self.dtype)
        self._write(layout.rows + self.rows_written * layout.row_size, values)
        checksums = row_checksums(values) if checksums is None else checksums
        self._write(layout.checksums + self.rows_written * checksums.itemsize, checksums)
        self.rows_written += len(values)  # last: Ctrl-C may come at any time

    def _write(self, offset: int, values: NDArray[Any]) -> None:
        self.file.seek(offset)
        left = values.data.cast("B")
        while left:  # the file is unbuffered, and a write may be partial
            left = left[self.file.write(left) :]

    def save(self, checkpoint: Checkpoint) -> None:
        """Put the rows on the disk, so that they survive a power loss."""
        os.fsync(self.file.fileno())
        checkpoint.save({}, {"rows": self.rows_written, "fingerprints": list(self.fingerprints)})

    def resume(self, rows: int) -> bool:
        """Continue after this number of rows, if they are intact."""
        self.file.seek(self.layout.checksums)
        expected = np.frombuffer(self.file.read(4 * rows), dtype=CHECKSUM_DTYPE)
        self.file.seek(self.layout.rows)
        for checksum in expected:
            if zlib.crc32(self.file.read(self.layout.row_size)) != checksum:
                return False
        self.rows_written = rows
        return True


@contextmanager
def create_features(
    path: Path, ids: Sequence[str], shape: Sequence[int], dtype: str, recipe: FeatureRecipe
) -> Iterator[FeatureWriter]:
    """Write a cache with rows of shape `shape`; it appears at `path` when it is complete."""
    spec = CacheSpec(ids, shape, dtype, recipe)
    _require_space(path, spec)
    with atomic_write(path) as scratch:
        layout = allocate(scratch, spec)
        with scratch.open("r+b", buffering=0) as file:
            yield FeatureWriter(file, layout, dtype)


@contextmanager
def resume_features(
    path: Path, spec: CacheSpec, checkpoint: Checkpoint, fingerprints: Sequence[str], batch: int
) -> Iterator[FeatureWriter]:
    """Write a cache in the checkpoint's folder, after the rows of an interrupted run.

    An interrupt, an error or a full disk in the `with` block keeps the rows written so far.

    Args:
        fingerprints: of the rows' images.
        batch: the batch size; only whole batches are kept, since the other images of its batch may
            change a row's last bits.
    """
    saved = checkpoint.restore()
    scratch = checkpoint.folder / "rows.h5"
    rows = saved[1].get("rows", 0) if saved else 0
    if saved and saved[1]["fingerprints"] != list(fingerprints):
        pairs = zip(saved[1]["fingerprints"][:rows], fingerprints, strict=False)
        unchanged = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        rows = unchanged // batch * batch
        log.info("the images have changed: reusing %d of %d rows", rows, spec.num_rows)
        checkpoint.complete = False
        if not _move_rows(scratch, rows, spec):
            scratch.unlink(missing_ok=True)
            saved = None
    if checkpoint.complete:
        checkpoint.log_complete()
        if complete := _reuse_complete(scratch, spec):
            yield complete
            _publish(scratch, path, checkpoint, fingerprints)
            return
        log.info("the features of the finished run are missing or damaged; starting over")
        scratch.unlink(missing_ok=True)
        saved = None
    if saved is None:
        try:
            _require_space(path, spec)
        except OSError:
            checkpoint.delete()
            raise
    # Also when resuming, so that rows and checksums are all that is reused.
    layout = _allocate_around(scratch, spec)
    with scratch.open("r+b", buffering=0) as file:
        writer = FeatureWriter(file, layout, spec.dtype, fingerprints)
        if saved and rows:
            if writer.resume(rows):
                log.info("resuming after %d of %d images", rows, spec.num_rows)
            else:
                log.info("the rows of the interrupted run are damaged; starting over")
        try:
            yield writer
        except BaseException:
            with suppress(OSError):  # on a full disk, the previous save remains
                writer.save(checkpoint)
            raise
        os.fsync(file.fileno())
    _publish(scratch, path, checkpoint, fingerprints)


def _move_rows(path: Path, rows: int, spec: CacheSpec) -> bool:
    """Replace a cache by one for other images, with its first rows; return whether that worked.

    The old file itself does not change: DVC's cache may hold it too.
    """
    fresh = path.with_name("layout.h5")
    layout = allocate(fresh, spec)
    with suppress(FileNotFoundError), path.open("rb") as source, fresh.open("r+b") as target:
        before = read_layout(source)
        if before is None or before.row_size != layout.row_size:
            return False
        for source_offset, target_offset, size in (
            (before.rows, layout.rows, rows * layout.row_size),
            (before.checksums, layout.checksums, rows * np.dtype(CHECKSUM_DTYPE).itemsize),
        ):
            source.seek(source_offset)
            target.seek(target_offset)
            for left in range(size, 0, -BLOCK):
                target.write(source.read(min(left, BLOCK)))
    fresh.replace(path)
    return True


def _publish(
    scratch: Path, path: Path, checkpoint: Checkpoint, fingerprints: Sequence[str]
) -> None:
    """Put the complete cache at `path` as a hard link, so that a copy stays if DVC removes it."""
    link = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        # Complete before it is linked: the linked file is never written to again.
        rows = {"rows": len(fingerprints), "fingerprints": list(fingerprints)}
        checkpoint.save({}, {"complete": True, **rows})
        os.link(scratch, link)
    except OSError:  # no space for the state, or no hard links
        replace_durably(scratch, path)
        checkpoint.delete()
        return
    replace_durably(link, path)
    link.unlink(missing_ok=True)  # renaming between two links of one file does nothing


def _reuse_complete(path: Path, spec: CacheSpec) -> FeatureWriter | None:
    """Return a writer with all rows written if the cache at `path` is complete and intact.

    It is only read: DVC's cache may hold the same file.
    """
    fresh = path.with_name("layout.h5")
    layout = allocate(fresh, spec)
    try:
        if not path.exists() or path.stat().st_size != fresh.stat().st_size:
            return None
        with path.open("rb", buffering=0) as file, fresh.open("rb") as expected:
            same = file.read(USER_BLOCK) == expected.read(USER_BLOCK)
            writer = FeatureWriter(file, layout, spec.dtype)
            same = same and layout.digest(file) == layout.digest(expected)
            return writer if same and writer.resume(spec.num_rows) else None
    finally:
        fresh.unlink()


def _allocate_around(path: Path, spec: CacheSpec) -> Layout:
    """Allocate a cache, but keep the rows and checksums that are at `path`, if any."""
    fresh = path.with_name("layout.h5")
    layout = allocate(fresh, spec)
    if not path.exists():
        fresh.replace(path)
        return layout
    size = fresh.stat().st_size
    with fresh.open("rb") as source, path.open("r+b") as file:
        file.truncate(size)
        for begin, end in layout.gaps(0, size):
            source.seek(begin)
            file.seek(begin)
            file.write(source.read(end - begin))
    fresh.unlink()
    return layout


def _require_space(path: Path, spec: CacheSpec) -> None:
    """Fail now rather than after an hour if the disk is too full."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(path.parent).free < spec.num_rows * spec.row_size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
