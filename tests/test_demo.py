"""The demo: the same graph on images of shapes; captions must depend on the image."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.captions.table import read_table
from pipeline.commands.demo import PARAMS
from pipeline.config.load import load_params
from pipeline.config.schema import EvaluateConfig
from pipeline.dataset.feature_cache import read_features
from pipeline.demo.accuracy import is_correct
from pipeline.extraction.feature_writer import create_features
from tests.conftest import ROOT, Artifacts, command, one_line, showtell


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifacts, str]:
    """A workspace in which the demo has run, and its output."""
    before = git_status()
    workspace = tmp_path_factory.mktemp("demo") / "workspace"
    result = showtell("demo", "--workspace", workspace)
    assert result.returncode == 0, result.stdout + result.stderr
    assert git_status() == before  # the checkout is unchanged
    return Artifacts(workspace), result.stdout


def git_status() -> str:
    command = ["git", "status", "--porcelain", "--ignored"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return "\n".join(line for line in result.stdout.splitlines() if "__pycache__" not in line)


def test_captions_name_the_right_shapes_and_colours(finished: tuple[Artifacts, str]) -> None:
    made, _ = finished
    references = read_table(made.table).split("test").by_image
    captions = json.loads((made.reports / "captions.json").read_text())
    right = [is_correct(c["caption"].split(), references[c["image_id"]][0]) for c in captions]
    assert len(right) == 200
    assert np.mean(right) >= 0.9


def constant_bleu_4(metrics: dict[str, Any]) -> float:
    baselines = {baseline["name"]: baseline for baseline in metrics["baselines"]}
    return float(baselines["constant"]["bleu_4"])


def test_scores_are_far_above_a_constant_caption(finished: tuple[Artifacts, str]) -> None:
    metrics = json.loads((finished[0].reports / "metrics.json").read_text())
    assert metrics["bleu_4"] >= 2 * constant_bleu_4(metrics)


def test_with_the_features_of_other_images_scores_fall_to_it(
    finished: tuple[Artifacts, str], tmp_path: Path
) -> None:
    made, _ = finished
    cache = read_features(made.features)
    shuffled = tmp_path / "features.h5"
    order = np.random.default_rng(0).permutation(len(cache.ids))
    shape = cache.array.shape[1:]
    with create_features(shuffled, cache.ids, shape, "float16", cache.recipe) as writer:
        writer.append(cache.array[order])
    made.evaluate(load_params(made.params, EvaluateConfig), tmp_path, features=shuffled)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["bleu_4"] < 1.3 * constant_bleu_4(metrics)


def test_it_prints_scores_captions_and_what_to_look_at_next(
    finished: tuple[Artifacts, str],
) -> None:
    made, output = finished
    for part in ("bleu_4", "constant", "human", "some captions", "what to look at next"):
        assert part in output
    page = made.reports / "report.html"
    assert str(page) in output
    assert page.is_file()


def test_a_second_run_runs_no_stage(finished: tuple[Artifacts, str]) -> None:
    made, _ = finished
    lock = (made.folder / "dvc.lock").read_bytes()
    result = showtell("demo", "--workspace", made.folder)
    assert result.returncode == 0, result.stderr
    assert "Data and pipelines are up to date." in result.stdout
    assert "Running stage" not in result.stdout
    assert (made.folder / "dvc.lock").read_bytes() == lock


def test_it_differs_from_a_real_run_in_params_only(finished: tuple[Artifacts, str]) -> None:
    made, _ = finished
    assert (made.folder / "dvc.yaml").read_bytes() == (ROOT / "dvc.yaml").read_bytes()
    for path in (ROOT / "pipeline").rglob("*.py"):
        copy = made.folder / path.relative_to(ROOT)
        assert copy.read_bytes() == path.read_bytes()
    assert "random" not in PARAMS["backbone"].values()


def test_the_shipped_weights_are_small() -> None:
    assert (ROOT / "pipeline/demo/shapes.safetensors").stat().st_size < 1_500_000


def test_pretraining_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        result = showtell(
            *("demo-pretrain", "--out", tmp_path / name, "--images", 200, "--epochs", 1)
        )
        assert result.returncode == 0, result.stderr
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("taken", ["checkout", "work", "file"])
def test_it_overwrites_no_other_folder(tmp_path: Path, taken: str) -> None:
    workspace = tmp_path / "workspace"
    if taken == "checkout":
        shutil.copytree(ROOT / "pipeline", workspace / "pipeline")
    elif taken == "work":
        (workspace / "pipeline").mkdir(parents=True)
        (workspace / "pipeline/mine.py").write_text("mine")
    else:
        workspace.write_text("mine")
    before = sorted(workspace.rglob("*"))
    done = command("demo", "--workspace", workspace, "--images", 30)
    assert "already exists and is not a demo workspace" in one_line(done)
    assert sorted(workspace.rglob("*")) == before


def test_outside_a_checkout_it_is_reported(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipeline", "demo"]
    result = subprocess.run(
        command,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "run the demo in the project's checkout" in result.stderr
