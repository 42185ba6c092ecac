"""Splits of one image, or of none: warned of before training, and no score is overstated."""

import logging
from pathlib import Path

import pytest

from pipeline.captions.table import read_info
from pipeline.config.load import load_params
from pipeline.config.schema import EvaluateConfig
from pipeline.runtime.errors import InputError
from tests.conftest import Artifacts, one_line
from tests.helpers.datasets import prepare_text
from tests.helpers.reports import Captioned, write_inputs, write_report
from tests.helpers.runs import Runs
from tests.test_captions import LISTS, table_of
from tests.test_train import run

TOO_SMALL = r"the split 'val' is too small: CIDEr of one image is 0 by definition"


def one_val_image(tiny: Artifacts, folder: Path) -> Path:
    """Write the tiny run's table with one image in val and the others in train."""
    header, *rows = tiny.table.read_text().splitlines()
    (first, *_) = (row.split(",")[0] for row in rows if ",val," in row)
    kept = [row if row.startswith(first) else row.replace(",val,", ",train,") for row in rows]
    return tiny.with_table(folder, "\n".join([header, *kept]) + "\n")


def test_the_sizes_of_the_splits_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    table_of(tmp_path, "a.jpg#0\tA cat\na.jpg#1\tCats\nb.jpg#0\tx y\nc.jpg#0\tx y\n")
    assert "4 captions of 3 images: 1 in train, 1 in val, 1 in test" in caplog.messages


@pytest.mark.parametrize("split", ["val", "test"])
def test_prepare_warns_of_a_split_of_one_image(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, split: str
) -> None:
    table_of(tmp_path, "a.jpg#0\tA cat\nb.jpg#0\tx y\nc.jpg#0\tx y\n")
    (warning,) = (line for line in caplog.messages if f"'{split}' is too small" in line)
    assert "CIDEr of one image is 0 by definition" in warning
    assert f"prepare.{split}_fraction or the captions' own splits" in warning


def test_an_empty_split_is_refused_with_the_param(tmp_path: Path) -> None:
    names = ["0.jpg", "1.jpg", "2.jpg"]
    rows = "image,caption\n" + "".join(f"{name},A dog\n" for name in names)
    with pytest.raises(InputError, match=r"none of 3 images .* prepare\.val_fraction \(0\.125\)"):
        prepare_text(tmp_path, {"captions.txt": rows}, names)
    members = {"Flickr8k.token.txt": "a.jpg#0\tA cat\nc.jpg#0\tx y\n", **LISTS}
    members["Flickr_8k.devImages.txt"] = "\n"
    with pytest.raises(InputError, match=r"val.*list|devImages"):
        prepare_text(tmp_path, members, ["a.jpg", "b.jpg", "c.jpg"])


def test_training_warns_first_and_selects_by_the_val_loss(
    tiny: Artifacts, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """CIDEr is 0 in every epoch: patience would end the run, and keep the first epoch."""
    caplog.set_level(logging.INFO)
    _, history = run(tiny, tmp_path, one_val_image(tiny, tmp_path), epochs=6, patience=1)
    lines = caplog.messages
    assert len(history) == 6
    assert (history["cider"] == 0).all()
    assert f"kept epoch {history['val_loss'].idxmin() + 1}" in lines
    warned = next(i for i, line in enumerate(lines) if "'val' is too small" in line)
    assert warned < next(i for i, line in enumerate(lines) if line.startswith("epoch 1/6"))


def test_evaluation_warns_of_one_image(
    tiny: Artifacts, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = one_val_image(tiny, tmp_path)
    config = load_params(tiny.params, EvaluateConfig).model_copy(update={"split": "val"})
    assert read_info(table).split_digest == read_info(tiny.table).split_digest
    tiny.evaluate(config, tmp_path, table=table)
    assert any("'val' is too small" in line for line in caplog.messages)


def test_a_page_of_one_image_has_no_intervals_and_explains_why(tmp_path: Path) -> None:
    image = Captioned("a.jpg", "a dog runs with it", ["a dog runs with it now"], 0.0, 70.0)
    page = write_report(write_inputs(tmp_path, [image]), tmp_path / "report.html")
    assert "CIDEr of one image is 0 by definition" in page
    assert "no interval" in page
    assert "95 % interval 0.0" not in page
    assert 'class="interval"' not in page


def test_too_few_images_cannot_tell_better_from_chance(tmp_path: Path) -> None:
    runs = Runs(tmp_path / "repository", images=5)
    for tag, wrong in (("base", 0.7), ("good", 0.1)):
        runs.write(runs.captions(wrong=wrong))
        runs.commit(tag)
    done = runs.compare("base", "good")
    assert done.returncode == 0, done.stderr
    assert "Better" not in done.stdout.split("\n\n")[1]
    assert "5 images are too few to tell a difference from chance" in done.stdout
    assert "evaluate on more images" in one_line(runs.compare("base", "good", "--fail-on", "noise"))
