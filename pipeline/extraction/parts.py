"""Parts of a feature cache, each extracted by a job of its own, and how they become one."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.extraction.feature_writer import resume_features
from pipeline.features.cache_file import CacheFile, CacheSpec, read_cache_file, row_checksums
from pipeline.features.shards import is_shard_folder
from pipeline.runtime.checkpoint import Checkpoint, run_fingerprint
from pipeline.runtime.errors import InputError
from pipeline.runtime.progress import progress_bar

CHUNK_BYTES = 32 * 2**20
CHECKPOINT_SECONDS = 60.0


def parse_part(text: str) -> tuple[int, int]:
    """Return `3/16` as (3, 16); an InputError for anything else."""
    match = re.fullmatch(r"([1-9]\d{0,8})/([1-9]\d{0,8})", text)
    if not match or int(match[1]) > int(match[2]):
        raise InputError(f"--part is {text!r}, but must be one of 1/N to N/N, such as 3/16")
    return int(match[1]), int(match[2])


def part_rows(part: tuple[int, int], num_rows: int, batch: int) -> range:
    """The rows of part K of N: whole batches, since a row's last bits may depend on its batch.

    Raises:
        InputError: there are fewer batches than parts.
    """
    number, of = part
    batches = -(-num_rows // batch)
    if batches < of:
        raise InputError(
            f"--part: {num_rows} rows in batches of {batch} give at most {batches} parts"
        )
    first, last = (number - 1) * batches // of, number * batches // of
    return range(first * batch, min(last * batch, num_rows))


def merge(paths: Sequence[Path], out: Path, shard_rows: int | None) -> None:
    """Write the cache of which these are the parts, with the bytes that one job would have written.

    A killed run resumes.

    Args:
        shard_rows: rows per file of the cache; None: one file has all.

    Raises:
        InputError: a part is missing, damaged, twice there or another cache's.
    """
    parts = [read_cache_file(path) for path in paths]
    parts.sort(key=lambda part: part.shard.begin if part.shard else 0)
    spec = _spec(parts, shard_rows)
    checksums = np.concatenate([part.checksums for part in parts])  # (R,)
    fingerprint = run_fingerprint("extract", ["merge", shard_rows, spec.recipe.label], [], "cpu")
    prints = [f"{checksum:08x}" for checksum in checksums]
    with (
        Checkpoint(out, fingerprint, CHECKPOINT_SECONDS, is_shard_folder(out)) as checkpoint,
        resume_features(out, spec, checkpoint, prints, batch=1) as writer,
        progress_bar(
            label="merge", total=spec.num_rows, unit="row", initial=writer.rows_written
        ) as progress,
    ):
        for part in parts:
            for rows, sums in _chunks(part, writer.rows_written, spec.row_size):
                writer.append_checked(rows, sums)
                progress.update(len(rows))
                if checkpoint.is_due():
                    writer.save(checkpoint)
    checkpoint.delete()  # no stage of DVC's: the next merge shall read its parts


def _spec(parts: Sequence[CacheFile], shard_rows: int | None) -> CacheSpec:
    """The cache that these parts, in the order of their rows, make up.

    Raises:
        InputError: they do not.
    """
    first, next_row = parts[0], 0
    for part in parts:
        info = part.shard
        if info is None or info.num_rows is None:
            raise InputError(f"{part.path} is not a part, written by 'extract --part'")
        if _kind(part) != _kind(first):
            raise InputError(f"{part.path} is a part of another cache than {first.path}")
        if info.begin < next_row:
            raise InputError(f"{part.path} has rows that another part has too: from {info.begin}")
        if info.begin > next_row:
            raise InputError(f"the rows {next_row} to {info.begin - 1} are in none of the parts")
        next_row = info.end
    num_rows, num_images = _kind(first)[-2:]
    if next_row < num_rows:
        raise InputError(f"the rows {next_row} to {num_rows - 1} are in none of the parts")
    names = [image_id for part in parts for image_id in part.ids]
    ids, copies = names[:num_images], num_rows // num_images
    if ids != sorted(set(ids)) or names != ids * copies:
        raise InputError("the parts are of different sets of images")
    shape, dtype = first.array.shape[1:], first.array.dtype.name
    return CacheSpec(ids, shape, dtype, first.recipe, copies - 1, shard_rows)


def _kind(part: CacheFile) -> tuple[Any, ...]:
    """What all parts of a cache have in common."""
    assert part.shard
    of = (part.shard.num_rows, part.shard.num_images)
    return (part.recipe, part.array.shape[1:], part.array.dtype, *of)


def _chunks(
    part: CacheFile, done: int, row_size: int
) -> Iterator[tuple[NDArray[Any], NDArray[np.uint32]]]:
    """Yield a part's rows (n, …) and checksums (n,), but for the first `done` of the cache.

    Raises:
        InputError: a row is not what was written.
    """
    assert part.shard
    size = max(1, CHUNK_BYTES // row_size)
    for begin in range(max(0, done - part.shard.begin), len(part.array), size):
        rows, sums = (values[begin : begin + size] for values in (part.array, part.checksums))
        damaged = (row_checksums(rows) != sums).nonzero()[0]
        if len(damaged):
            image_id = part.ids[begin + int(damaged[0])]
            raise InputError(
                f"{part.path} is damaged: the features of {image_id!r} are not what was written; "
                "delete it and extract it again"
            )
        yield rows, sums
