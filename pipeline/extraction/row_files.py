"""The files of a feature cache while its rows are written: one, or one for each shard.

They are in the checkpoint's folder until the last row is there.
"""

import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.features.cache_file import (
    CHECKSUM_DTYPE,
    USER_BLOCK,
    CacheSpec,
    Layout,
    allocate,
    read_cache_file,
    read_layout,
)
from pipeline.features.shards import INDEX, write_index
from pipeline.runtime.checkpoint import Checkpoint
from pipeline.runtime.files import replace_durably

BLOCK = 1 << 20  # bytes


@dataclass(frozen=True)
class RowFile:
    """An open file with some of a cache's rows."""

    file: FileIO  # unbuffered
    layout: Layout
    begin: int  # the number of its first row

    @property
    def end(self) -> int:
        """The number of the row after its last."""
        return self.begin + self.layout.count

    def write(self, begin: int, values: NDArray[Any] | None, checksums: NDArray[np.uint32]) -> None:
        """Write those of the rows from `begin` (n, …), unless they are written already, and of
        their checksums (n,), that are here."""
        first, last = max(begin, self.begin), min(begin + len(checksums), self.end)
        if first < last:
            mine, layout = slice(first - begin, last - begin), self.layout
            if values is not None:
                self._write(layout.rows + (first - self.begin) * layout.row_size, values[mine])
            offset = (first - self.begin) * checksums.itemsize
            self._write(layout.checksums + offset, checksums[mine])

    def _write(self, offset: int, values: NDArray[Any]) -> None:
        self.file.seek(offset)
        left = values.data.cast("B")
        while left:  # the file is unbuffered, and a write may be partial
            left = left[self.file.write(left) :]

    def is_intact(self, end: int) -> bool:
        """Whether the rows before `end` have their checksums."""
        count = min(end, self.end) - self.begin
        if count <= 0:
            return True
        self.file.seek(self.layout.checksums)
        expected = np.frombuffer(self.file.read(4 * count), dtype=CHECKSUM_DTYPE)
        self.file.seek(self.layout.rows)
        rows = (self.file.read(self.layout.row_size) for _ in expected)
        return all(zlib.crc32(row) == sum_ for row, sum_ in zip(rows, expected, strict=True))


def _rows_of(spec: CacheSpec) -> dict[str, range]:
    """The names of the files, and the rows of each."""
    if not spec.is_sharded:
        return {"rows.h5": spec.rows}
    return {f"{number:05d}.h5": rows for number, rows in enumerate(spec.shards)}


def _allocate(path: Path, spec: CacheSpec, rows: range) -> Layout:
    whole = not spec.is_sharded and spec.part is None
    return allocate(path, spec, None if whole else rows)


@contextmanager
def open_files(folder: Path, spec: CacheSpec) -> Iterator[list[RowFile]]:
    """Open the files, made new around the rows and checksums that they have, if any.

    So rows and checksums are all that an interrupted run leaves.
    """
    with ExitStack() as stack:
        files = []
        for name, rows in _rows_of(spec).items():
            layout = _allocate_around(folder / name, spec, rows)
            file = stack.enter_context((folder / name).open("r+b", buffering=0))
            files.append(RowFile(file, layout, rows.start))
        yield files


def _allocate_around(path: Path, spec: CacheSpec, rows: range) -> Layout:
    fresh = path.with_name("layout.h5")
    layout = _allocate(fresh, spec, rows)
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


def move_rows(folder: Path, count: int, spec: CacheSpec) -> bool:
    """Replace the files by those for other images, with the first `count` rows; return whether that
    worked.

    The old files themselves do not change: DVC's cache may hold them too.
    """
    for name, rows in _rows_of(spec).items():
        kept = max(0, min(count, rows.stop - spec.rows.start) - (rows.start - spec.rows.start))
        if not _move(folder / name, kept, spec, rows):
            return False
    return True


def _move(path: Path, count: int, spec: CacheSpec, rows: range) -> bool:
    fresh = path.with_name("layout.h5")
    layout = _allocate(fresh, spec, rows)
    with suppress(FileNotFoundError), path.open("rb") as source, fresh.open("r+b") as target:
        before = read_layout(source)
        if before is None or before.row_size != layout.row_size or before.count < count:
            return False
        for source_offset, target_offset, size in (
            (before.rows, layout.rows, count * layout.row_size),
            (before.checksums, layout.checksums, count * np.dtype(CHECKSUM_DTYPE).itemsize),
        ):
            source.seek(source_offset)
            target.seek(target_offset)
            for left in range(size, 0, -BLOCK):
                target.write(source.read(min(left, BLOCK)))
    fresh.replace(path)
    return True


def delete_files(folder: Path, spec: CacheSpec) -> None:
    """Delete the files that there are."""
    for name in _rows_of(spec):
        (folder / name).unlink(missing_ok=True)


def is_complete(folder: Path, spec: CacheSpec) -> bool:
    """Whether the files are there and intact. They are only read: DVC's cache may hold them too."""
    fresh = folder / "layout.h5"
    for name, rows in _rows_of(spec).items():
        path = folder / name
        layout = _allocate(fresh, spec, rows)
        try:
            if not path.exists() or path.stat().st_size != fresh.stat().st_size:
                return False
            with path.open("rb", buffering=0) as file, fresh.open("rb") as expected:
                same = file.read(USER_BLOCK) == expected.read(USER_BLOCK)
                same = same and layout.digest(file) == layout.digest(expected)
                if not (same and RowFile(file, layout, rows.start).is_intact(rows.stop)):
                    return False
        finally:
            fresh.unlink()
    return True


def publish(path: Path, spec: CacheSpec, checkpoint: Checkpoint, prints: Sequence[str]) -> None:
    """Put the complete cache at `path`, by hard links: a copy stays if DVC removes it.

    Args:
        prints: fingerprints of the rows' images, for the checkpoint.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}.part")
    rows = {"rows": len(prints), "fingerprints": list(prints)}
    keeps = True
    try:
        # Complete before they are linked: a linked file is never written to again.
        checkpoint.save({}, {"complete": True, **rows})
    except OSError:  # no space for the state
        keeps = False
    try:
        if spec.is_sharded:
            scratch.mkdir()
            for name in _rows_of(spec):
                keeps = _link_or_move(checkpoint.folder / name, scratch / name) and keeps
            sums = [read_cache_file(scratch / name).checksums for name in _rows_of(spec)]
            write_index(scratch / INDEX, spec, list(_rows_of(spec)), np.concatenate(sums))
        else:
            keeps = _link_or_move(checkpoint.folder / "rows.h5", scratch) and keeps
        _replace(scratch, path)
    finally:
        # Renaming between two links of one file does nothing.
        shutil.rmtree(scratch) if scratch.is_dir() else scratch.unlink(missing_ok=True)
    if not keeps:
        checkpoint.delete()


def _link_or_move(source: Path, target: Path) -> bool:
    """Return whether a hard link could be made, and so `source` stays."""
    try:
        os.link(source, target)
    except OSError:
        source.replace(target)
        return False
    return True


def _replace(source: Path, target: Path) -> None:
    """Move a file or folder to `target`; a folder cannot be replaced in one step."""
    if target.is_dir() or (source.is_dir() and target.exists()):
        aside = source.with_suffix(".old")
        target.replace(aside)
        replace_durably(source, target)
        shutil.rmtree(aside) if aside.is_dir() else aside.unlink()
    else:
        replace_durably(source, target)
