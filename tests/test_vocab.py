"""The vocabulary: of the training captions only, in a stable order."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.captions.table import TableInfo, read_info, write_info, write_rows
from pipeline.captions.tokenizer import TOKENIZER
from pipeline.captions.vocabulary import END, PAD, SPECIAL, START, UNK, read_vocabulary
from pipeline.config.schema import VocabConfig
from pipeline.runtime.errors import InputError
from pipeline.runtime.files import write_checked_json
from pipeline.stages.vocab import make_vocabulary


def words_of(folder: Path, min_count: int) -> list[str]:
    rows = [
        ("a.jpg", "train", "", "b a c <unk>"),
        ("a.jpg", "train", "", "b a d"),
        ("b.jpg", "val", "", "x x x b"),
        ("c.jpg", "test", "", "y y y b"),
    ]
    table, out = folder / "captions.csv", folder / "vocabulary.json"
    counts = {"train": 1, "val": 1, "test": 1}
    table_info = TableInfo("lists", "", TOKENIZER, write_rows(table, rows), counts, len(rows), {})
    write_info(table, table_info)
    make_vocabulary(table, out, VocabConfig(min_count=min_count))
    return json.loads((folder / "vocabulary.json").read_text())["words"]


def test_words_are_sorted_by_frequency_then_alphabet(tmp_path: Path) -> None:
    assert words_of(tmp_path, 1) == [*SPECIAL, "a", "b", "c", "d"]
    assert words_of(tmp_path, 2) == [*SPECIAL, "a", "b"]


def test_words_of_val_and_test_are_unknown(tmp_path: Path) -> None:
    words_of(tmp_path, 1)
    digest = read_info(tmp_path / "captions.csv").table_digest
    vocabulary = read_vocabulary(tmp_path / "vocabulary.json", digest)
    assert vocabulary.encode(["a", "x", "y"]) == [4, UNK, UNK]
    assert vocabulary.decode([PAD, START, END, UNK]) == list(SPECIAL)


def test_too_high_a_min_count_is_reported(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no word occurs 9 times; lower vocab\.min_count"):
        words_of(tmp_path, 9)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"words": 3}'])
def test_a_file_that_is_not_a_vocabulary_is_reported(tmp_path: Path, content: str) -> None:
    path = tmp_path / "vocabulary.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"vocabulary\.json.*run 'dvc repro'"):
        read_vocabulary(path, "")


@pytest.mark.parametrize("words", [None, 3, ["a"], [*SPECIAL, "a", "a"], [*SPECIAL, 5]], ids=str)
def test_invalid_words_are_reported(tmp_path: Path, words: Any) -> None:
    path = tmp_path / "vocabulary.json"
    write_checked_json(path, {"words": words})
    with pytest.raises(InputError, match=r"vocabulary\.json.*run 'dvc repro'"):
        read_vocabulary(path, "")


def test_the_vocabulary_of_other_captions_is_reported(tmp_path: Path) -> None:
    words_of(tmp_path, 1)
    with pytest.raises(InputError, match=r"vocabulary of another captions table.*run 'dvc repro'"):
        read_vocabulary(tmp_path / "vocabulary.json", "0" * 16)
