"""`showtell caption`: text, JSON, CSV and COCO's results."""

import csv
import io
import json
from pathlib import Path

import pytest

from tests.conftest import Artifacts, command, one_line, showtell
from tests.helpers.captions import caption

pytest_plugins = ["tests.helpers.captions"]


def test_each_image_has_a_line_in_the_order_given(tiny: Artifacts, photos: Path) -> None:
    files = sorted(photos.iterdir(), reverse=True)[:3]
    result = command(*caption(tiny, *files))
    lines = [line.split("\t") for line in result.stdout.splitlines()]
    assert [Path(line[0]) for line in lines] == files
    assert all(line[1] for line in lines)


def test_each_image_has_one_id(tiny: Artifacts, photos: Path, tmp_path: Path) -> None:
    """The file's name, or COCO's number; the path where two have one name; and each image once."""
    (first, *_) = sorted(photos.iterdir())
    other = tmp_path / "other" / first.name
    other.parent.mkdir()
    other.write_bytes(first.read_bytes())

    def ids(*arguments: object) -> list[str]:
        result = command(*caption(tiny, *arguments, "--format", "coco"))
        return [one["image_id"] for one in json.loads(result.stdout)]

    assert ids(first, first) == [first.name]
    assert ids(first, other) == [first.as_posix(), other.as_posix()]
    coco = [tmp_path / f"{name}.jpg" for name in ("000000000139", "COCO_val2014_000000391895")]
    for path in coco:
        path.write_bytes(first.read_bytes())
    assert ids(*coco) == [139, 391895]  # as pycocotools reads them
    assert ids(*coco, first) == [*(path.name for path in coco), first.name]  # never of two types


def test_a_terminal_of_ascii_gets_escapes_and_every_caption(
    tiny: Artifacts, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first, second, *_) = sorted(photos.iterdir())
    odd = first.rename(photos / "été.jpg")
    as_json = command(*caption(tiny, odd, "--format", "coco")).stdout
    assert as_json.isascii()
    assert json.loads(as_json)[0]["image_id"] == "été.jpg"
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    result = showtell(*caption(tiny, odd, second))
    assert result.returncode == 0, result.stderr
    assert [Path(line.split("\t")[0]).name for line in result.stdout.splitlines()] == [
        r"\xe9t\xe9.jpg",
        second.name,
    ]


def test_json_lines_and_csv_have_what_is_known(tiny: Artifacts, photos: Path) -> None:
    options = ("--beam-size", 3, "--alternatives", 2)
    lines = command(*caption(tiny, photos, *options, "--format", "jsonl")).stdout.splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 12
    for row in rows:
        assert len(row["tokens"]) == len(row["token_probs"]) > 0
        assert 0 < row["confidence"] < 1
        assert len(row["alternatives"]) == 2
        assert row["score"] >= row["alternatives"][0]["score"]
    text = command(*caption(tiny, photos, *options, "--format", "csv")).stdout
    table = list(csv.DictReader(io.StringIO(text)))
    assert [row["rank"] for row in table] == ["1", "2", "3"] * 12
    assert [row["caption"] for row in table[::3]] == [row["caption"] for row in rows]
    assert [float(row["confidence"]) for row in table[::3]] == [row["confidence"] for row in rows]
    line = one_line(command(*caption(tiny, photos, "--format", "xml")))
    assert "--format is 'xml', but must be one of text, jsonl, csv, coco" in line
