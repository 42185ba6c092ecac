"""A feature cache in several files, and parts of one that jobs extract on their own."""

import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pipeline.config.load import load_params
from pipeline.config.schema import ExtractConfig, TrainConfig
from pipeline.dataset.feature_cache import read_features
from pipeline.extraction.parts import merge, parse_part
from pipeline.runtime.errors import InputError
from pipeline.stages.extract import extract
from pipeline.stages.train import train
from tests.conftest import Artifacts, write_params


def extraction(tiny: Artifacts, out: Path, part: Any = None, **changes: Any) -> Path:
    """Extract the tiny data set's features, 62 rows of each view."""
    params = write_params(out.parent / f"{out.name}.yaml", extract={"batch_size": 4, **changes})
    config = load_params(params, ExtractConfig)
    extract(tiny.images, tiny.unreadable, tiny.backbone, out, config, part=part)
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def trained(tiny: Artifacts, features: Path, out: Path) -> bytes:
    config = load_params(tiny.params, TrainConfig)
    train(features, tiny.table, tiny.vocabulary, out, out.with_suffix(".csv"), config)
    return out.read_bytes()


def test_a_cache_in_shards_is_read_as_one(tiny: Artifacts, tmp_path: Path) -> None:
    whole = read_features(extraction(tiny, tmp_path / "one.h5"))
    folder = extraction(tiny, tmp_path / "f.h5", shard_rows=25)
    names = ["00000.h5", "00001.h5", "00002.h5", "index.h5"]
    assert sorted(path.name for path in folder.iterdir()) == names
    cache, rows = read_features(folder), np.array([61, 0, 24, 25, 49, 50, 1])
    assert (cache.ids, cache.recipe) == (whole.ids, whole.recipe)
    np.testing.assert_array_equal(cache.read_verified(rows), whole.read_verified(rows))
    with h5py.File(folder / "index.h5") as index:  # and by h5py
        np.testing.assert_array_equal(index["features"][20:30], whole.array[20:30])
    assert trained(tiny, folder, tmp_path / "a") == trained(tiny, whole.path, tmp_path / "b")


def test_only_the_shards_that_are_needed_are_opened(tiny: Artifacts, tmp_path: Path) -> None:
    folder = extraction(tiny, tmp_path / "f.h5", shard_rows=25)
    (folder / "00001.h5").unlink()
    cache = read_features(folder)
    assert len(cache.read_verified(np.array([0, 24, 50]))) == 3
    with pytest.raises(InputError, match=r"00001.h5 does not exist; run 'dvc pull .*00001.h5'"):
        cache.read_verified(np.array([0, 25]))
    shutil.copy(folder / "00000.h5", folder / "00001.h5")
    with pytest.raises(InputError, match="is not the shard"):
        read_features(folder).read_verified(np.array([25]))
    content = bytearray((folder / "index.h5").read_bytes())
    content[-1] ^= 1
    (folder / "index.h5").write_bytes(content)
    with pytest.raises(InputError, match="is damaged"):
        read_features(folder)


def test_shards_take_the_place_of_a_file_and_back(tiny: Artifacts, tmp_path: Path) -> None:
    out = extraction(tiny, tmp_path / "f.h5")
    single = out.read_bytes()
    first = contents(extraction(tiny, out, shard_rows=40))
    assert contents(extraction(tiny, out, shard_rows=40)) == first
    assert extraction(tiny, out).read_bytes() == single
    other = tmp_path / "folder"
    other.mkdir()
    with pytest.raises(InputError, match="is a folder"):  # not any folder is replaced
        extraction(tiny, other, shard_rows=40)


@pytest.mark.parametrize("shard_rows", [None, 50])
def test_parts_merge_into_the_bytes_of_one_job(
    tiny: Artifacts, tmp_path: Path, shard_rows: int | None
) -> None:
    changes: dict[str, Any] = {"shard_rows": shard_rows, "augmentations": 1}
    expected = extraction(tiny, tmp_path / "one.h5", **changes)
    parts = [extraction(tiny, tmp_path / f"{n}.h5", (n, 3), **changes) for n in (3, 1, 2)]
    merge(parts, tmp_path / "merged.h5", shard_rows)
    if shard_rows:
        assert contents(tmp_path / "merged.h5") == contents(expected)
    else:
        assert (tmp_path / "merged.h5").read_bytes() == expected.read_bytes()


def test_parts_that_are_not_one_cache_are_refused(tiny: Artifacts, tmp_path: Path) -> None:
    first, last = (extraction(tiny, tmp_path / f"{n}.h5", (n, 2)) for n in (1, 2))
    third = extraction(tiny, tmp_path / "third.h5", (1, 3))
    foreign = extraction(tiny, tmp_path / "foreign.h5", (2, 2), dtype="float32")
    rotten = tmp_path / "rotten.h5"
    content = bytearray(last.read_bytes())
    content[-5] ^= 1
    rotten.write_bytes(content)
    for parts, message in (
        ([first], "the rows 32 to 61 are in none of the parts"),
        ([last], "the rows 0 to 31 are in none of the parts"),
        ([first, last, third], "has rows that another part has too"),
        ([first, first, last], "has rows that another part has too"),
        ([first, foreign], "is a part of another cache"),
        ([first, rotten], "rotten.h5 is damaged: the features of"),
        ([first, tiny.features], "is not a part"),
        ([first, tmp_path / "none.h5"], "does not exist"),
    ):
        out = tmp_path / "merged.h5"
        with pytest.raises(InputError, match=message):
            merge(parts, out, shard_rows=None)
        assert not out.exists()


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "1/3/3", "٣/٤"])
def test_a_part_is_k_of_n(text: str) -> None:
    with pytest.raises(InputError, match="must be one of 1/N to N/N"):
        parse_part(text)


def test_a_part_is_at_least_one_batch(tiny: Artifacts, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="62 rows in batches of 4 give at most 16 parts"):
        extraction(tiny, tmp_path / "17.h5", (17, 17))
