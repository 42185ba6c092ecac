"""The report: one file that tells the whole run truthfully, or one line that says why not."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config.load import load_params
from pipeline.config.schema import ReportConfig
from pipeline.evaluation import bootstrap
from pipeline.evaluation.bootstrap import resample_counts, score_intervals
from pipeline.evaluation.reports import ReportFiles, sealed
from pipeline.report import render
from pipeline.report.charts import nice_ticks
from pipeline.report.evaluation import CaptionedImage
from pipeline.report.provenance import as_yaml
from pipeline.report.render import json_for_script
from pipeline.runtime.errors import InputError
from pipeline.stages.report import PARAM_GROUPS, pick_evenly, report
from tests.conftest import ROOT, Artifacts, command, make_zip, one_line, params, write_params
from tests.reports import Run, Said, write_run


def write_report(inputs: Run, out: Path, **changes: Any) -> str:
    path = write_params(out.parent / "params.yaml", report=changes)
    params = [load_params(path, group) for group in PARAM_GROUPS]
    config = load_params(path, ReportConfig)
    report(inputs.images, inputs.models, inputs.reports, out, params, config, inputs.base)
    return out.read_text(encoding="utf-8")


def images_of(page: str) -> list[list[Any]]:
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.S)
    assert found
    return json.loads(found[1])


@pytest.fixture(scope="module")
def made(tiny: Artifacts) -> Run:
    """What the stages made of the little world."""
    return Run(tiny.images, [tiny.model], ReportFiles(tiny.reports))


@pytest.fixture(scope="module")
def page(made: Run, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report(made, tmp_path_factory.mktemp("report") / "report.html")


def options(inputs: Run) -> list[object]:
    reports = ("--reports-dir", inputs.reports.folder)
    return ["--model", inputs.models[0], "--images", inputs.images, *reports]


def test_the_command_gives_the_same_bytes_as_the_function(
    made: Run, page: str, tmp_path: Path
) -> None:
    out, same = tmp_path / "deep/report.html", write_params(tmp_path / "params.yaml")
    result = command("report", *options(made), "--out", out, "--params", same)
    assert result.returncode == 0, result.stderr
    assert out.read_bytes() == page.encode()
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]


def test_every_image_is_there_with_caption_references_and_scores(made: Run, page: str) -> None:
    captions = {
        one["image_id"]: one["caption"] for one in json.loads(made.reports.captions.read_text())
    }
    references = json.loads(made.reports.references.read_text())
    shown = images_of(page)
    assert {one[0]: one[1] for one in shown} == captions
    assert {one[0]: one[2] for one in shown} == references
    cider = json.loads(made.reports.metrics.read_text())["cider"]
    assert np.mean([one[3] for one in shown]) == pytest.approx(cider, abs=0.01)
    assert all(max(one[6:8]) <= 160 for one in shown)


def test_it_shows_scores_yardsticks_curves_and_every_param(made: Run, page: str) -> None:
    metrics = json.loads(made.reports.metrics.read_text())
    for row in (metrics, *metrics["baselines"]):
        for name in ("bleu_1", "bleu_4", "cider", "rouge_l"):
            assert f">{row[name]:.1f}<" in page
    assert page.count('<svg class="chart"') == 6
    for group in (config.group() for config in PARAM_GROUPS):
        keys = params()[group]
        assert f"<h3>{group}</h3>" in page
        assert all(f"<dt>{key}</dt>" in page for key in keys)
    assert metrics["meta"][0]["split_digest"] in page


def test_it_asks_for_nothing_from_outside(page: str) -> None:
    assert not re.findall(r'(?:src|href)="(?!#|data:)', page)
    assert not re.findall(r"url\(|@import|https?:", page.split("</style>")[0])
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy.startswith("default-src &#39;none&#39;; img-src data:; style-src &#39;sha256-")
    assert "unsafe" not in policy


def test_neither_the_time_nor_this_machine_is_in_it(page: str, tmp_path: Path) -> None:
    assert not re.search(r"\b20\d\d-\d\d-\d\d\b", page.split('<script id="data"')[0])
    assert str(tmp_path) not in page


def test_it_needs_no_torch() -> None:
    code = "import sys, pipeline.stages.report; assert not {'torch', 'dvc'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_without_self_critical_training_it_says_so(page: str, tmp_path: Path) -> None:
    assert "There was none: <code>scst.epochs</code> is 0." in page  # as in the little world
    with_some = write_report(write_run(tmp_path, some(5)), tmp_path / "report.html")
    assert "There was none" not in with_some
    assert with_some.count('<svg class="chart"') == 7


def test_a_model_that_says_less_than_one_caption_of_all_is_warned_of(
    made: Run, page: str, tmp_path: Path
) -> None:
    metrics = json.loads(made.reports.metrics.read_text())
    constant = metrics["baselines"][0]
    assert metrics["cider"] < constant["cider"]  # two epochs in the little world are not enough
    assert "Below the constant caption" in page
    assert f"“{constant['caption']}”, said of every image" in page
    better = write_report(write_run(tmp_path, some(5)), tmp_path / "report.html")
    assert "Below the constant caption" not in better


def some(images: int) -> list[Said]:
    return [
        Said(
            f"{i}.jpg",
            f"a dog runs with ball {i}",
            ["a dog runs", "two dogs, ball 3"],
            *[1.0 * i] * 2,
        )
        for i in range(images)
    ]


def test_of_too_many_images_it_shows_some_from_the_worst_to_the_best(tmp_path: Path) -> None:
    inputs = write_run(tmp_path, some(21))
    page = write_report(inputs, tmp_path / "report.html", images=5)
    assert [one[0] for one in images_of(page)] == [f"{i}.jpg" for i in (0, 5, 10, 15, 20)]
    assert "5 of 21, at even ranks" in page
    assert "21 images, captioned" in page


@pytest.mark.parametrize("most", [1, 2, 3])
def test_so_many_and_no_more(most: int) -> None:
    assert len(pick_evenly([CaptionedImage("", "", [], i, i, 1) for i in range(7)], most)) == most


def test_thumbnails_have_the_pixels_and_quality_asked_for(tmp_path: Path) -> None:
    inputs = write_run(tmp_path, some(2))
    fine = images_of(write_report(inputs, tmp_path / "a.html", thumbnail=100, quality=90))
    poor = images_of(write_report(inputs, tmp_path / "b.html", thumbnail=100, quality=10))
    assert {tuple(one[6:8]) for one in fine + poor} == {(100, 75)}
    assert len(poor[0][8]) < len(fine[0][8]) / 3


def test_text_of_strangers_cannot_end_what_it_stands_in() -> None:
    said = json_for_script(["</script><!--", "a & b", "\u2028\u2029", "\ud800"])
    assert not re.search("[<>&\u2028\u2029]", said)
    assert json.loads(said) == ["</script><!--", "a & b", "\u2028\u2029", "\ud800"]


def test_half_a_character_and_html_in_params_and_captions_do_no_harm(tmp_path: Path) -> None:
    hostile = '\ud800<b>"x"</b></title><script>alert(1)</script>'
    inputs = write_run(tmp_path, some(3))
    metrics = json.loads(inputs.reports.metrics.read_text())
    metrics["baselines"][0]["caption"] = metrics["meta"][0]["features"] = hostile
    metrics["split"] = hostile
    beside = (inputs.reports.captions, inputs.reports.references, inputs.reports.scores)
    metrics = sealed(metrics, [report.read_bytes() for report in beside])
    inputs.reports.metrics.write_text(json.dumps(metrics))
    page = write_report(inputs, tmp_path / "report.html")
    assert "<b>&#34;" not in page
    assert "<script>alert" not in page
    assert page.count("&lt;script&gt;alert(1)") == 5


# Bad inputs: one line that names the file and what to do.


def edit(name: str, change: Callable[[str], str]) -> Callable[[Run], None]:
    def apply(inputs: Run) -> None:
        path = getattr(inputs.reports, name)
        path.write_text(change(path.read_text()))

    return apply


def without_image(inputs: Run) -> None:
    make_zip(inputs.images, {"other.jpg": b"x"})


def with_a_damaged_image(inputs: Run) -> None:
    make_zip(inputs.images, {f"{i}.jpg": b"\xff\xd8 no more" for i in range(3)})


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda i: i.reports.metrics.unlink(), r"metrics\.json does not exist; run 'dvc repro'"),
        (lambda i: i.reports.scst.unlink(), r"scst\.csv does not exist; run 'dvc repro'"),
        (lambda i: i.models[0].unlink(), r"captioner\.safetensors does not exist"),
        (lambda i: i.images.unlink(), r"images\.zip does not exist"),
        (edit("metrics", lambda t: t[:50]), r"metrics\.json is no valid JSON"),
        (edit("metrics", lambda t: "[]"), r"metrics\.json is no metrics of this version"),
        (edit("metrics", lambda t: t.replace('"cider"', '"cidre"')), r"no metrics of this version"),
        (edit("metrics", lambda t: t.replace("1.0", '"x"', 1)), r"cider: 'x' is no number"),
        (edit("captions", lambda t: "{}"), r"captions\.json is no list of captions"),
        (edit("captions", lambda t: t.replace("2.jpg", "1.jpg")), r"one an image"),
        (
            edit("captions", lambda t: t.replace("2.jpg", "9.jpg")),
            r"has no image '9\.jpg', which",
        ),
        (edit("references", lambda t: t.replace('"2.jpg"', '"7.jpg"')), r"references\.json has no"),
        (edit("references", lambda t: '{"0.jpg": 3}'), r"no object of lists of captions"),
        (edit("scores", lambda t: t.replace("2.jpg", "1.jpg")), r"scores\.csv has an image twice"),
        (edit("scores", lambda t: t.replace("matches_4", "m")), r"has no column 'matches_4'"),
        (edit("scores", lambda t: t + "3.jpg,1\n"), r"line 5 has not as many cells"),
        (edit("scores", lambda t: t.replace(",2.0000", ",nan", 1)), r"2\.jpg, cider: 'nan' is no"),
        (edit("scores", lambda t: t.replace(",2.0000", ",92.0", 1)), r"are of two evaluations"),
        (edit("scores", lambda t: ""), r"scores\.csv has no rows"),
        (edit("lengths", lambda t: "words,captions\n1,2\n"), r"has no column 'references'"),
        (edit("lengths", lambda t: "words,captions,references\n9,1,1\n-5,1,1\n"), r"do not count"),
        (edit("history", lambda t: t.replace("3.6", "1e308")), r"val_loss: '1e308' is no number"),
        (edit("history", lambda t: t.replace("3.6", "")), r"line 2, val_loss: '' is no number"),
        (edit("history", lambda t: t.replace("\n2,", "\n1,")), r"epochs out of order"),
        (without_image, r"images\.zip has no image '0\.jpg'"),
        (with_a_damaged_image, r"0\.jpg is not an image of a supported format"),
    ],
)
def test_a_bad_input_is_named(tmp_path: Path, damage: Callable[[Run], None], said: str) -> None:
    inputs, out = write_run(tmp_path, some(3)), tmp_path / "report.html"
    out.write_text("older")
    damage(inputs)
    with pytest.raises(InputError, match=said):
        write_report(inputs, out)
    assert out.read_text() == "older"


def test_on_the_command_line_it_is_one_line(tmp_path: Path) -> None:
    inputs = write_run(tmp_path, some(3))
    inputs.reports.scores.write_bytes(b"\xff\0")
    same = write_params(tmp_path / "params.yaml")
    result = command("report", *options(inputs), "--out", tmp_path / "r.html", "--params", same)
    assert "scores.csv is no CSV table" in one_line(result)


# The numbers.


def test_a_resample_draws_as_many_images_as_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(resample_counts(7, 50, seed=3)))
    assert whole.shape == (50, 7)
    assert (whole.sum(axis=1) == 7).all()
    monkeypatch.setattr(bootstrap, "CELLS", 20)  # two rows at a time
    assert (np.concatenate(list(resample_counts(7, 50, seed=3))) == whole).all()


def test_intervals_of_means_are_those_of_the_normal_law() -> None:
    rng = np.random.default_rng(0)
    means = np.round(rng.normal(50, 10, (400, 1)), 4)
    counts = np.tile([10, 10, 8, 5, 3, 1], (400, 1))
    *bleu, (low, high) = score_intervals(counts, means, resamples=4000, seed=0)
    assert (low + high) / 2 == pytest.approx(means.mean(), abs=0.1)
    assert high - low == pytest.approx(2 * 1.96 * means.std() / 20, rel=0.05)
    assert all(low == pytest.approx(high) for low, high in bleu)  # all captions are alike


@pytest.mark.parametrize(
    ("low", "high", "most", "ticks"),
    [
        (0, 40, 6, [0, 10, 20, 30, 40]),
        (2.8, 5.2, 6, [2.5, 3, 3.5, 4, 4.5, 5, 5.5]),
        (1, 12, 9, [0, 2, 4, 6, 8, 10, 12]),
        (0, 0, 6, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 0.003, 6, [0, 0.001, 0.002, 0.003]),
    ],
)
def test_ticks_are_round_and_hold_the_ends(
    low: float, high: float, most: int, ticks: list[float]
) -> None:
    assert nice_ticks(low, high, most) == pytest.approx(ticks)


def test_params_read_as_yaml_says_them() -> None:
    values = [None, True, 0.0005, 1e-7, 5, "auto", (224, 320), ("resnet50",)]
    said = ["null", "true", "0.0005", "1e-07", "5", "auto", "[224, 320]", "resnet50"]
    assert [as_yaml(value) for value in values] == said


def test_template_style_and_script_fit_in_one_reading() -> None:
    for name in ("page.html", "page.css", "page.js"):
        assert len((render.HERE / name).read_text(encoding="utf-8").splitlines()) <= 260


def test_another_run_stands_beside_the_yardsticks(made: Run, tmp_path: Path) -> None:
    base = tmp_path / "metrics.json"
    content = json.loads(made.reports.metrics.read_text())
    base.write_text(json.dumps(content | {"cider": 77.7}))
    page = write_report(replace(made, base=base), tmp_path / "report.html")
    assert '<th scope="col">base</th>' in page
    assert "base 77.7" in page


def test_another_run_that_was_not_measured_alike_is_refused(made: Run, tmp_path: Path) -> None:
    base = tmp_path / "metrics.json"
    for change, said in (
        ({"split": "val (lists)"}, "another split"),
        ({"meta": []}, "no metrics"),
    ):
        base.write_text(json.dumps(json.loads(made.reports.metrics.read_text()) | change))
        with pytest.raises(InputError, match=said):
            write_report(replace(made, base=base), tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
