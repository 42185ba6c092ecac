"""The graph as users run it: real `dvc repro` in real repositories, on a small world."""

import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import STAGES
from pipeline.metrics.registry import METRICS
from pipeline.sources.captions import read_captions
from tests.conftest import Artifacts
from tests.helpers.repository import Repository

pytest_plugins = ["tests.helpers.warm_python"]


@pytest.fixture(scope="module")
def variables(warm_python: Path) -> dict[str, str]:
    """Of the environment, for stages that start quickly."""
    search = (str(warm_python), str(Path(sys.executable).parent), os.environ["PATH"])
    return {"PATH": os.pathsep.join(search)}


@pytest.fixture(scope="module")
def repository(
    tmp_path_factory: pytest.TempPathFactory, world: Artifacts, variables: dict[str, str]
) -> Repository:
    made = Repository(tmp_path_factory.mktemp("repro") / "repository", world, variables)
    assert made.repro() == set(STAGES)
    made.commit()
    return made


def test_again_no_stage_runs_and_git_has_nothing_to_say(repository: Repository) -> None:
    assert "Data and pipelines are up to date." in repository.run("dvc", "repro")
    assert repository.run("git", "status", "--porcelain") == ""
    # Code deps are folders, in which Python keeps its bytecode: .dvcignore leaves it out.
    (repository.folder / "pipeline/runtime/__pycache__").mkdir(exist_ok=True)
    (repository.folder / "pipeline/runtime/__pycache__/other.pyc").write_bytes(b"code")
    assert "Data and pipelines are up to date." in repository.run("dvc", "status")


def test_git_carries_the_small_results_and_dvc_the_rest(repository: Repository) -> None:
    tracked = set(repository.run("git", "ls-files").splitlines())
    assert {f"reports/{n}" for n in ("metrics.json", "history.csv", "captions.json")} <= tracked
    assert not [name for name in tracked if name.endswith((".zip", ".h5", "captioner.safetensors"))]
    assert "reports/report.html" not in tracked
    assert (repository.folder / "reports/report.html").is_file()


def test_two_runs_from_nothing_give_the_same_lock(
    repository: Repository, tmp_path: Path, world: Artifacts
) -> None:
    other = Repository(tmp_path / "other", world)  # with the real python
    assert other.repro() == set(STAGES)
    assert other.lock == repository.lock


TRAINED = {"train", "scst", "calibrate", "evaluate"}
# What one param makes run, besides `report`, which shows them all; the cheap ones first.
RERUN: tuple[tuple[dict[str, dict[str, Any]], set[str]], ...] = (
    ({"download": {"retries": 1}}, {"download"}),
    ({"prepare": {"val_fraction": 0.2}}, {"prepare"}),  # this text archive has its own lists
    ({"report": {"jpeg_quality": 50}}, set()),
    ({"evaluate": {"beam_size": 1}}, {"calibrate", "evaluate"}),
    ({"scst": {"seed": 1}}, {"scst"}),  # no epochs: the model stays the same
    ({"train": {"seed": 1}}, TRAINED),
    ({"vocab": {"min_count": 40}}, {"vocab", "neighbors", *TRAINED}),
    ({"extract": {"image_size": 32}}, {"extract", "neighbors", *TRAINED}),
    ({"backbone": {"weights": "random"}}, {"backbone", "extract", "neighbors", *TRAINED}),
)


def test_one_param_reruns_what_depends_on_it(repository: Repository) -> None:
    """One change on top of the other, each run by itself."""
    changed: dict[str, dict[str, Any]] = {}
    for change, rerun in RERUN:
        changed |= change
        repository.write(**changed)
        assert repository.repro() == rerun | {"report"}, change
    # These two have no params of their own.
    assert {*changed, "calibrate", "neighbors"} == set(STAGES)
    repository.write()
    # Back again, all that is dear comes from the run cache.
    assert repository.repro() <= {"download", "calibrate", "evaluate"}


def test_another_format_of_the_same_data_reruns_nothing_after_prepare(
    repository: Repository, world: Artifacts, tmp_path: Path
) -> None:
    """Karpathy's JSON in the place of the token file and its lists."""
    source = read_captions(world.text)
    assert source.splits is not None
    images = [
        {
            "filename": name,
            "split": source.splits[name],
            "sentences": [{"raw": caption} for caption in captions],
        }
        for name, captions in source.captions.items()
    ]
    text = tmp_path / "dataset.json"
    text.write_text(json.dumps({"images": images, "dataset": "shapes"}))
    repository.write(download={"text": str(text)})
    try:
        # The page shows the params.
        assert repository.repro() == {"download", "prepare", "report"}
    finally:
        repository.run("git", "checkout", "--quiet", ".")
        repository.run("dvc", "checkout", "--quiet", "--force")


def test_metrics_params_plots_and_experiments_show_tables_worth_reading(
    repository: Repository,
) -> None:
    header, _ = repository.run("dvc", "metrics", "show").splitlines()
    assert header.split() == ["Path", *sorted([*METRICS, "split"])]
    repository.write(train={"rnn_type": "gru"}, evaluate={"length_penalty": 0.0})
    try:
        assert repository.repro() == {*TRAINED, "report"}
        diff = repository.run("dvc", "params", "diff")
        assert re.search(r"train\.rnn_type\s+lstm\s+gru", diff)
        diff = json.loads(repository.run("dvc", "metrics", "diff", "--json"))
        assert "diff" in diff["reports/metrics.json"]["cider"]
        table = repository.run("dvc", "exp", "show", "--csv")
        assert "train.rnn_type" in table
        assert "cider" in table
        repository.run("dvc", "plots", "show", "-o", "plots")
        page = (repository.folder / "plots/index.html").read_text()
        for name in ("loss by epoch", "caption length", "train_loss", "references"):
            assert name in page
        shutil.rmtree(repository.folder / "plots")
    finally:
        repository.run("git", "checkout", "--quiet", ".")
        repository.run("dvc", "checkout", "--quiet", "--force")


def test_a_temporary_experiment_runs_the_code_of_its_own_copy(repository: Repository) -> None:
    """`dvc exp run --temp` with a changed param, without touching the workspace."""
    before = repository.lock
    repository.run("dvc", "exp", "run", "--temp", "--name", "greedy", "-S", "evaluate.beam_size=1")
    assert repository.lock == before
    shown = repository.run("dvc", "exp", "show", "--csv")
    assert "greedy" in shown


def test_a_failing_stage_says_why_in_one_line_and_keeps_what_was_made(
    repository: Repository,
) -> None:
    repository.write(train={"learning_rate": 0.5, "device": "cuda"})
    model = (repository.folder / "reports/metrics.json").read_bytes()
    result = repository.try_to("dvc", "repro", CUDA_VISIBLE_DEVICES="")
    repository.write()
    assert result.returncode != 0
    assert "error: the device is cuda, but no CUDA device" in result.stderr
    assert "Traceback" not in result.stderr
    assert (repository.folder / "reports/metrics.json").read_bytes() == model
    assert repository.repro() <= {"calibrate", "evaluate"}


def test_an_impossible_param_starts_nothing_and_the_reports_stay(repository: Repository) -> None:
    reports = {p: p.read_bytes() for p in (repository.folder / "reports").glob("*.json")}
    assert len(reports) == 3
    repository.write(evaluate={"beam_size": 0})
    result = repository.try_to("dvc", "repro")
    repository.write()
    assert result.returncode != 0
    assert "error: params.yaml: evaluate.beam_size is 0, but must be" in result.stderr
    assert reports == {p: p.read_bytes() for p in (repository.folder / "reports").glob("*.json")}
