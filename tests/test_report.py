"""The report's page shows the whole run, truthfully and in one file."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.evaluation.metrics_file import add_digest
from pipeline.evaluation.reports import ReportFiles
from pipeline.metrics.registry import DIVERSITY_NAMES, METRICS
from pipeline.report import render
from pipeline.report.charts import nice_ticks
from pipeline.report.gallery import CaptionedImage, pick_evenly
from pipeline.report.provenance import as_yaml
from pipeline.report.render import json_for_script
from pipeline.runtime.errors import InputError
from pipeline.stages.report import PARAM_GROUPS
from tests.conftest import ROOT, Artifacts, command, params, write_params
from tests.helpers.reports import Inputs, some_images, write_inputs, write_report


def gallery_of(page: str) -> list[list[Any]]:
    match = re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.S)
    assert match
    return json.loads(match[1])


def options(inputs: Inputs) -> list[object]:
    reports = ("--reports-dir", inputs.reports.metrics.parent)
    return ["--model", inputs.models[0], "--images", inputs.images, *reports]


@pytest.fixture(scope="module")
def tiny_run(tiny: Artifacts) -> Inputs:
    """The reports of the tiny run, from the stages themselves."""
    return Inputs(tiny.images, [tiny.model], ReportFiles.in_folder(tiny.reports))


@pytest.fixture(scope="module")
def page(tiny_run: Inputs, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report(tiny_run, tmp_path_factory.mktemp("report") / "report.html")


def test_the_command_writes_the_same_bytes_as_the_function(
    tiny_run: Inputs, page: str, tmp_path: Path
) -> None:
    out, path = tmp_path / "deep/report.html", write_params(tmp_path / "params.yaml")
    result = command("report", *options(tiny_run), "--out", out, "--params", path)
    assert result.returncode == 0, result.stderr
    assert out.read_bytes() == page.encode()
    assert [file.name for file in out.parent.iterdir()] == ["report.html"]


def test_it_has_every_image_with_caption_references_and_scores(tiny_run: Inputs, page: str) -> None:
    rows = json.loads(tiny_run.reports.captions.read_text())
    captions = {row["image_id"]: row["caption"] for row in rows}
    references = json.loads(tiny_run.reports.references.read_text())
    shown = gallery_of(page)
    assert {row[0]: row[1] for row in shown} == captions
    assert {row[0]: row[2] for row in shown} == references
    cider = json.loads(tiny_run.reports.metrics.read_text())["cider"]
    assert np.mean([row[3] for row in shown]) == pytest.approx(cider, abs=0.01)
    assert all(max(row[6:8]) <= 160 for row in shown)


def test_it_shows_scores_baselines_curves_and_every_param(tiny_run: Inputs, page: str) -> None:
    metrics = json.loads(tiny_run.reports.metrics.read_text())
    for row in (metrics, *metrics["baselines"]):
        for name in ("bleu_1", "bleu_4", "cider", "rouge_l"):
            assert f">{row[name]:.1f}<" in page
    for name in DIVERSITY_NAMES:
        value = METRICS[name].format.format(metrics[name])
        assert f"<dt>{METRICS[name].label}</dt><dd>{value}</dd>" in page
    for group in (config.group() for config in PARAM_GROUPS):
        keys = params()[group]
        assert f"<h3>{group}</h3>" in page
        assert all(f"<dt>{key}</dt>" in page for key in keys)
    assert metrics["meta"][0]["split_digest"] in page


def test_it_requests_nothing_from_a_network(page: str) -> None:
    assert not re.findall(r'(?:src|href)="(?!#|data:)', page)
    assert not re.findall(r"url\(|@import|https?:", page.split("</style>")[0])
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy.startswith("default-src &#39;none&#39;; img-src data:; style-src &#39;sha256-")
    assert "unsafe" not in policy


def test_it_contains_neither_the_time_nor_this_machine(page: str, tmp_path: Path) -> None:
    assert not re.search(r"\b20\d\d-\d\d-\d\d\b", page.split('<script id="data"')[0])
    assert str(tmp_path) not in page


def test_it_imports_neither_torch_nor_dvc() -> None:
    code = "import sys, pipeline.stages.report; assert not {'torch', 'dvc'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_without_self_critical_training_a_sentence_says_so_and_no_card(
    page: str, tmp_path: Path
) -> None:
    sentence = "There was no self-critical training: <code>scst.epochs</code> is 0."
    assert sentence in page  # as in the tiny run
    assert "<h3>Self-critical training</h3>" not in page
    assert page.count('<figure class="card">') == page.count('<svg class="chart"') == 7
    other = write_report(write_inputs(tmp_path, some_images(5)), tmp_path / "report.html")
    assert "There was no self-critical" not in other
    assert other.count('<svg class="chart"') == 7


def test_a_model_below_the_constant_caption_is_warned_of(
    tiny_run: Inputs, page: str, tmp_path: Path
) -> None:
    metrics = json.loads(tiny_run.reports.metrics.read_text())
    constant = metrics["baselines"][0]
    assert metrics["cider"] < constant["cider"]  # two epochs are not enough
    assert "Below the constant caption" in page
    assert f"“{constant['caption']}”, as the caption of every image" in page
    better = write_report(write_inputs(tmp_path, some_images(5)), tmp_path / "report.html")
    assert "Below the constant caption" not in better


def test_of_too_many_images_it_shows_some_from_worst_to_best(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path, some_images(21))
    page = write_report(inputs, tmp_path / "report.html", max_images=5)
    assert [row[0] for row in gallery_of(page)] == [f"{i}.jpg" for i in (0, 5, 10, 15, 20)]
    assert "5 of 21, at even ranks" in page
    assert "21 images, captioned" in page


@pytest.mark.parametrize("most", [1, 2, 3])
def test_pick_evenly_returns_as_many_as_asked(most: int) -> None:
    images = [CaptionedImage("", "", [], i, i, 1) for i in range(7)]
    assert len(pick_evenly(images, most)) == most


def test_thumbnails_have_the_configured_size_and_quality(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path, some_images(2))
    fine = gallery_of(
        write_report(inputs, tmp_path / "a.html", thumbnail_size=100, jpeg_quality=90)
    )
    poor = gallery_of(
        write_report(inputs, tmp_path / "b.html", thumbnail_size=100, jpeg_quality=10)
    )
    assert {tuple(row[6:8]) for row in fine + poor} == {(100, 75)}
    assert len(poor[0][8]) < len(fine[0][8]) / 3


def test_untrusted_text_cannot_end_the_script_element() -> None:
    text = json_for_script(["</script><!--", "a & b", "\u2028\u2029", "\ud800"])
    assert not re.search("[<>&\u2028\u2029]", text)
    assert json.loads(text) == ["</script><!--", "a & b", "\u2028\u2029", "\ud800"]


def test_lone_surrogates_and_html_in_the_reports_do_no_harm(tmp_path: Path) -> None:
    hostile = '\ud800<b>"x"</b></title><script>alert(1)</script>'
    inputs = write_inputs(tmp_path, some_images(3))
    metrics = json.loads(inputs.reports.metrics.read_text())
    metrics["baselines"][0]["caption"] = metrics["meta"][0]["features"] = hostile
    metrics["split"] = hostile
    _, *others = inputs.reports.evaluation
    metrics = add_digest(metrics, [report.read_bytes() for report in others])
    inputs.reports.metrics.write_text(json.dumps(metrics))
    page = write_report(inputs, tmp_path / "report.html")
    assert "<b>&#34;" not in page
    assert "<script>alert" not in page
    assert page.count("&lt;script&gt;alert(1)") == 5


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
def test_ticks_are_round_and_enclose_the_ends(
    low: float, high: float, most: int, ticks: list[float]
) -> None:
    assert nice_ticks(low, high, most) == pytest.approx(ticks)


def test_params_are_shown_as_yaml() -> None:
    values = [None, True, 0.0005, 1e-7, 5, "auto", (224, 320), ("resnet50",)]
    expected = ["null", "true", "0.0005", "1e-07", "5", "auto", "[224, 320]", "resnet50"]
    assert [as_yaml(value) for value in values] == expected


def test_template_style_and_script_are_short() -> None:
    for name in ("page.html", "page.css", "page.js"):
        assert len((render.HERE / name).read_text(encoding="utf-8").splitlines()) <= 260


def test_another_run_is_shown_beside_the_baselines(tiny_run: Inputs, tmp_path: Path) -> None:
    base = tmp_path / "metrics.json"
    content = json.loads(tiny_run.reports.metrics.read_text())
    base.write_text(json.dumps(content | {"cider": 77.7}))
    page = write_report(replace(tiny_run, base=base), tmp_path / "report.html")
    assert '<th scope="col">base</th>' in page
    assert "base 77.7" in page


def test_another_run_with_another_protocol_is_refused(tiny_run: Inputs, tmp_path: Path) -> None:
    base = tmp_path / "metrics.json"
    for change, message in (
        ({"split": "val (lists)"}, "another split"),
        ({"meta": []}, "not a metrics file"),
    ):
        base.write_text(json.dumps(json.loads(tiny_run.reports.metrics.read_text()) | change))
        with pytest.raises(InputError, match=message):
            write_report(replace(tiny_run, base=base), tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
