"""The report refuses a bad input in one line that names the file and what to do."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.runtime.errors import InputError
from tests.conftest import command, make_zip, one_line, write_params
from tests.helpers.reports import Inputs, some_images, write_inputs, write_report
from tests.test_report import options


def edit(name: str, change: Callable[[str], str]) -> Callable[[Inputs], None]:
    def apply(inputs: Inputs) -> None:
        path = getattr(inputs.reports, name)
        path.write_text(change(path.read_text()))

    return apply


def without_image(inputs: Inputs) -> None:
    make_zip(inputs.images, {"other.jpg": b"x"})


def with_a_damaged_image(inputs: Inputs) -> None:
    make_zip(inputs.images, {f"{i}.jpg": b"\xff\xd8 damaged" for i in range(3)})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda inputs: inputs.reports.metrics.unlink(),
            r"metrics\.json does not exist; run 'dvc repro'",
        ),
        (lambda inputs: inputs.reports.scst.unlink(), r"scst\.csv does not exist; run 'dvc repro'"),
        (lambda inputs: inputs.models[0].unlink(), r"captioner\.safetensors does not exist"),
        (lambda inputs: inputs.images.unlink(), r"images\.zip does not exist"),
        (edit("metrics", lambda text: text[:50]), r"metrics\.json is not valid JSON"),
        (
            edit("metrics", lambda text: "[]"),
            r"metrics\.json is not a metrics file of this version",
        ),
        (
            edit("metrics", lambda text: text.replace('"cider"', '"cidre"')),
            r"not a metrics file of this version",
        ),
        (
            edit("metrics", lambda text: text.replace("1.0", '"x"', 1)),
            r"cider is 'x', which is not a number",
        ),
        (edit("captions", lambda text: "{}"), r"captions\.json is not a list of captions"),
        (edit("captions", lambda text: text.replace("2.jpg", "1.jpg")), r"one per image"),
        (
            edit("captions", lambda text: text.replace("2.jpg", "9.jpg")),
            r"has no image '9\.jpg', which",
        ),
        (
            edit("references", lambda text: text.replace('"2.jpg"', '"7.jpg"')),
            r"references\.json has no",
        ),
        (edit("references", lambda text: '{"0.jpg": 3}'), r"not an object of lists of captions"),
        (
            edit("scores", lambda text: text.replace("2.jpg", "1.jpg")),
            r"scores\.csv has an image twice",
        ),
        (edit("scores", lambda text: text.replace(",6,", ",-6,", 1)), r"not whole numbers"),
        (edit("scores", lambda text: text.replace("matches_4", "m")), r"has no column 'matches_4'"),
        (edit("scores", lambda text: text + "3.jpg,1\n"), r"has fewer or more cells in line 5"),
        (
            edit("scores", lambda text: text.replace(",2.0000", ",nan", 1)),
            r"scores\.csv, cider in line 4 is nan, which is not a number",
        ),
        (
            edit("scores", lambda text: text.replace(",2.0000", ",92.0", 1)),
            r"are of two evaluations",
        ),
        (edit("scores", lambda text: ""), r"scores\.csv has no rows"),
        (edit("lengths", lambda text: "words,captions\n1,2\n"), r"has no column 'references'"),
        (
            edit("lengths", lambda text: "words,captions,references\n9,1,1\n-5,1,1\n"),
            r"does not count words from 0",
        ),
        (
            edit("history", lambda text: text.replace("3.6", "1e308")),
            r"val_loss in line 2 is 1e\+308, which is not a number",
        ),
        (
            edit("history", lambda text: text.replace("3.6", "")),
            r"val_loss in line 2 is '', which is not a number",
        ),
        (edit("history", lambda text: text.replace("\n2,", "\n1,")), r"epochs out of order"),
        (without_image, r"images\.zip .*'0\.jpg'"),
        (with_a_damaged_image, r"0\.jpg is no"),
    ],
)
def test_a_bad_input_is_named(
    tmp_path: Path, damage: Callable[[Inputs], None], message: str
) -> None:
    inputs, out = write_inputs(tmp_path, some_images(3)), tmp_path / "report.html"
    out.write_text("older")
    damage(inputs)
    with pytest.raises(InputError, match=message):
        write_report(inputs, out)
    assert out.read_text() == "older"


def test_a_damaged_report_is_one_line_on_the_command_line(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path, some_images(3))
    inputs.reports.scores.write_bytes(b"\xff\0")
    path = write_params(tmp_path / "params.yaml")
    result = command("report", *options(inputs), "--out", tmp_path / "r.html", "--params", path)
    assert "scores.csv is not a CSV table" in one_line(result)
