"""Append rows to a feature cache; resume if interrupted.

HDF5 allocates the files (`row_files.py`), and plain writes put the rows at their offsets: the HDF5
library does not survive a full disk, plain writes do.
"""

import errno
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.extraction.row_files import (
    RowFile,
    delete_files,
    is_complete,
    move_rows,
    open_files,
    publish,
)
from pipeline.features.cache_file import CacheSpec, allocate, row_checksums
from pipeline.features.recipe import FeatureRecipe
from pipeline.runtime.checkpoint import Checkpoint
from pipeline.runtime.files import atomic_write

log = logging.getLogger(__name__)


@dataclass
class FeatureWriter:
    """Appends rows, in the order of the ids."""

    files: Sequence[RowFile]
    dtype: str
    fingerprints: Sequence[str] = ()  # of the rows' images, saved in checkpoints
    rows_written: int = 0

    def append(self, rows: NDArray[Any]) -> None:
        """Write the next rows (n, …)."""
        values = np.ascontiguousarray(rows, dtype=self.dtype)
        self.append_checked(values, row_checksums(values))

    def append_checked(self, values: NDArray[Any] | None, checksums: NDArray[np.uint32]) -> None:
        """Write the next rows (n, …) in the files' dtype, or None if they are in the files already,
        and their checksums (n,)."""
        for file in self.files:
            file.write(self.files[0].begin + self.rows_written, values, checksums)
        self.rows_written += len(checksums)  # last: Ctrl-C may come at any time

    def sync(self) -> None:
        """Put the rows on the disk."""
        for file in self.files:
            os.fsync(file.file.fileno())

    def save(self, checkpoint: Checkpoint) -> None:
        """Put the rows on the disk, so that they survive a power loss."""
        self.sync()
        checkpoint.save({}, {"rows": self.rows_written, "fingerprints": list(self.fingerprints)})

    def resume(self, rows: int) -> bool:
        """Continue after this number of rows, if they are intact."""
        if not all(file.is_intact(self.files[0].begin + rows) for file in self.files):
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
            yield FeatureWriter([RowFile(file, layout, 0)], dtype)


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
    saved, folder = checkpoint.restore(), checkpoint.folder
    rows, total = saved[1].get("rows", 0) if saved else 0, len(spec.rows)
    if saved and saved[1]["fingerprints"] != list(fingerprints):
        pairs = zip(saved[1]["fingerprints"][:rows], fingerprints, strict=False)
        unchanged = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        rows = unchanged // batch * batch
        log.info("the images have changed: reusing %s of %s rows", f"{rows:,}", f"{total:,}")
        checkpoint.complete = False
        if not move_rows(folder, rows, spec):
            delete_files(folder, spec)
            saved = None
    if checkpoint.complete:
        checkpoint.log_complete()
        if is_complete(folder, spec):
            yield FeatureWriter([], spec.dtype, fingerprints, total)
            publish(path, spec, checkpoint, fingerprints)
            return
        log.info("the features of the finished run are missing or damaged; starting over")
        delete_files(folder, spec)
        saved = None
    if saved is None:
        try:
            _require_space(path, spec)
        except OSError:
            checkpoint.delete()
            raise
    with open_files(folder, spec) as files:
        writer = FeatureWriter(files, spec.dtype, fingerprints)
        if saved and rows:
            if writer.resume(rows):
                log.info("resuming after %s of %s images", f"{rows:,}", f"{total:,}")
            else:
                log.info("the rows of the interrupted run are damaged; starting over")
        try:
            yield writer
        except BaseException:
            with suppress(OSError):  # on a full disk, the previous save remains
                writer.save(checkpoint)
            raise
        writer.sync()
    publish(path, spec, checkpoint, fingerprints)


def _require_space(path: Path, spec: CacheSpec) -> None:
    """Fail now rather than after an hour if the disk is too full."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(path.parent).free < len(spec.rows) * spec.row_size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
