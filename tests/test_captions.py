"""The table of all captions, and its splits."""

import random
from pathlib import Path

import pandas as pd
import pytest

from pipeline.captions.table import read_info, read_table
from pipeline.images.unreadable import write_unreadable
from pipeline.runtime.errors import InputError
from pipeline.sources.matching import Matched
from pipeline.stages.prepare import assign_splits, prepare
from tests.conftest import SHARED, Artifacts
from tests.helpers.datasets import prepare_config, prepare_text

LISTS = {
    "Flickr_8k.trainImages.txt": "a.jpg\n",
    "Flickr_8k.devImages.txt": "b.jpg\n",
    "Flickr_8k.testImages.txt": "c.jpg\n",
}


def table_of(folder: Path, tokens: str, **changes: object) -> pd.DataFrame:
    members = {"Flickr8k.token.txt": tokens, **LISTS}
    return read_table(prepare_text(folder, members, ["a.jpg", "b.jpg", "c.jpg"], **changes)).rows


def test_one_row_per_caption_with_its_split_and_tokens(tmp_path: Path) -> None:
    table = table_of(
        tmp_path, "b.jpg#0\tTwo dogs .\nc.jpg#0\tA man 's hat !\na.jpg#0\tA cat\na.jpg#1\tCats"
    )
    assert table.to_numpy().tolist() == [
        ["a.jpg", "train", "A cat", "a cat"],
        ["a.jpg", "train", "Cats", "cats"],
        ["b.jpg", "val", "Two dogs .", "two dogs"],
        ["c.jpg", "test", "A man 's hat !", "a man 's hat"],
    ]


@pytest.mark.parametrize(
    "caption",
    ["a\ttab", 'say "hi", ok', "null", "NA", "=1+1", "café 狗 🐕", "a, b; c", "  spaced  "],
)
def test_odd_captions_are_read_back_unchanged(tmp_path: Path, caption: str) -> None:
    table = table_of(tmp_path, f"a.jpg#0\t{caption}\nb.jpg#0\tx y\nc.jpg#0\tx y\n")
    assert table["caption"][0] == caption


@pytest.mark.parametrize("char", [*"\r\v\f\x1e\x85\u2028\u2029\0\x1b"])
def test_a_line_end_inside_a_caption_becomes_a_space(tmp_path: Path, char: str) -> None:
    table = table_of(tmp_path, f"a.jpg#0\tA{char}dog\r\nb.jpg#0\tx y\nc.jpg#0\tx y\n")
    assert table.to_numpy()[0].tolist() == ["a.jpg", "train", "A dog", "a dog"]


def test_a_caption_without_words_is_refused_or_set_aside(tmp_path: Path) -> None:
    tokens = "a.jpg#0\t\na.jpg#1\tA cat\nb.jpg#0\tx\nc.jpg#0\ty\n"
    with pytest.raises(
        InputError, match=r"1 caption without words, of 'a\.jpg': write or remove them; that is"
    ):
        table_of(tmp_path, tokens)
    assert len(table_of(tmp_path, tokens, on_mismatch="exclude", max_excluded=0.3)) == 3
    assert read_info(tmp_path / "captions.csv").excluded == {"empty caption": 1}
    assert (tmp_path / "excluded.csv").read_text().splitlines()[1] == "empty caption,a.jpg,"


def test_an_image_without_any_words_is_reported(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"1 caption without words, of 'b\.jpg': write or"):
        table_of(tmp_path, "a.jpg#0\tA cat\nb.jpg#0\t . \nc.jpg#0\ty\n")


def test_without_split_lists_images_are_split_by_a_hash_of_the_id() -> None:
    ids = [f"{number}.jpg" for number in range(4000)]
    config = prepare_config()
    split_of = assign_splits(Matched({image_id: ["A dog"] for image_id in ids}, None, []), config)
    sizes = {name: list(split_of.values()).count(name) for name in ("train", "val", "test")}
    assert 2900 < sizes["train"] < 3100
    assert 430 < sizes["val"] < 570
    assert 430 < sizes["test"] < 570
    # The split of an image depends neither on the order nor on other images.
    random.Random(0).shuffle(ids)
    ids = ids[:2000]
    other = assign_splits(Matched({image_id: ["A dog"] for image_id in ids}, None, []), config)
    assert all(split_of[image_id] == other[image_id] for image_id in ids)


def test_the_info_has_the_source_of_the_split(tmp_path: Path, tiny: Artifacts) -> None:
    assert read_info(tiny.table).split == "lists"
    names = [f"{n}.jpg" for n in range(60)]
    rows = "image,caption\n" + "".join(f"{name},A dog\n" for name in names)
    prepare_text(tmp_path, {"captions.txt": rows}, names)
    assert read_info(tmp_path / "captions.csv").split == "hash, not official"


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs Flickr8k in ../shared")
def test_flickr8ks_own_lists_are_the_official_split(tmp_path: Path) -> None:
    flickr8k = SHARED / "flickr8k"
    table = tmp_path / "captions.csv"
    write_unreadable(tmp_path / "unreadable.csv", {})
    prepare(
        *(flickr8k / "Flickr8k_text.zip", flickr8k / "Flickr8k_Dataset.zip"),
        *(tmp_path / "unreadable.csv", table, tmp_path / "excluded.csv"),
        prepare_config(),
    )
    info = read_info(tmp_path / "captions.csv")
    assert info.split == "official"
    assert info.images == {"train": 6000, "val": 1000, "test": 1000}
    assert len(read_table(tmp_path / "captions.csv").split("test").references) == 1000


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "image_id,split,caption,tokens\nx,none,A,a\n"])
def test_a_bad_table_is_reported(tiny: Artifacts, tmp_path: Path, text: str) -> None:
    table = tiny.with_table(tmp_path, text)
    with pytest.raises(InputError, match=r"captions\.csv .*run 'dvc repro'"):
        read_table(table)
