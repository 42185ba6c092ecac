"""The vocabulary: from the training captions alone, in a stable order."""

import json
from pathlib import Path

import pytest

from pipeline.config.vocab import VocabConfig
from pipeline.errors import InputError
from pipeline.store.table import write_table
from pipeline.store.vocabulary import END, PAD, SPECIAL, START, UNK, read_vocabulary
from pipeline.vocab import make_vocabulary


def made(folder: Path, min_count: int) -> list[str]:
    rows = [
        ("a.jpg", "train", "", ["b", "a", "c", "<unk>"]),
        ("a.jpg", "train", "", ["b", "a", "d"]),
        ("b.jpg", "dev", "", ["x", "x", "x", "b"]),
        ("c.jpg", "test", "", ["y", "y", "y", "b"]),
    ]
    write_table(folder / "captions.csv", rows)
    make_vocabulary(
        folder / "captions.csv", folder / "vocabulary.json", VocabConfig(min_count=min_count)
    )
    return json.loads((folder / "vocabulary.json").read_text())["words"]


def test_frequent_words_first_ties_by_the_alphabet(tmp_path: Path) -> None:
    assert made(tmp_path, 1) == [*SPECIAL, "a", "b", "c", "d"]
    assert made(tmp_path, 2) == [*SPECIAL, "a", "b"]


def test_words_of_dev_and_test_are_unknown(tmp_path: Path) -> None:
    made(tmp_path, 1)
    vocabulary = read_vocabulary(tmp_path / "vocabulary.json")
    assert vocabulary.encode(["a", "x", "y"]) == [4, UNK, UNK]
    assert vocabulary.decode([PAD, START, END, UNK]) == list(SPECIAL)


def test_too_high_a_count_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no word is seen 9 times; lower vocab\.min_count"):
        made(tmp_path, 9)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"words": 3}',
        '{"words": ["a"]}',
        json.dumps({"words": [*SPECIAL, "a", "a"]}),
    ],
)
def test_a_bad_vocabulary_is_said(tmp_path: Path, content: str) -> None:
    path = tmp_path / "vocabulary.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"vocabulary\.json.*'vocab'"):
        read_vocabulary(path)
