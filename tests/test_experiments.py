"""Experiments as users run them: sweeps, queues, temporary runs, tables, images, sharing.

One repository for the whole file, and one sweep in it. Its stages record what they do
(tests/helpers/laboratory.py).
"""

import fcntl
import itertools
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from dvc.utils.hydra import get_hydra_sweeps

from pipeline.dataset.feature_cache import read_features
from pipeline.runtime.files import file_digest
from pipeline.sources.fetch import fetch
from tests.conftest import ROOT, Artifacts
from tests.helpers.browser import draw
from tests.helpers.laboratory import DEAR, STAND_IN, Found, Laboratory, finish, start_workers
from tests.helpers.repository import Checkout, Repository
from tests.helpers.server import serving

DOCS = (ROOT / "docs/experiments.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory, tiny: Artifacts) -> Iterator[Laboratory]:
    folder = tmp_path_factory.mktemp("experiments")
    seen, stand_in = folder / "seen", folder / "bin/python"
    stand_in.parent.mkdir()
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    search = (str(stand_in.parent), str(Path(sys.executable).parent), os.environ["PATH"])
    variables = {"SEEN": str(seen), "PATH": os.pathsep.join(search)}
    with serving(tiny.images.read_bytes()) as server:
        repository = Repository(folder / "repository", tiny, variables)
        digest = file_digest(tiny.images)
        repository.params["download"] |= {
            "images": server.url,
            "images_md5": digest,
            "text_md5": file_digest(tiny.text),
        }
        repository.write()
        settings = repository.folder / ".dvc/config"
        store = f"['remote \"store\"']\n    url = {folder}/store\n[core]\n    remote = store"
        settings.write_text(settings.read_text().replace("[core]", store))
        archive = repository.folder / "data/images.zip"
        fetch(server.url, archive, digest, retries=0, timeout=30)
        repository.take_over(tiny)
        yield Laboratory(repository, server, seen)


@dataclass
class Sweep:
    """What a queue of three experiments, one of them impossible, has left behind."""

    states: dict[str, str]
    found: list[Found]
    unchanged: bool


@pytest.fixture(scope="module")
def sweep(laboratory: Laboratory) -> Sweep:
    repository, _ = laboratory.repository, laboratory.forget()
    before = repository.lock
    grid = ("-S", "train.rnn_type=lstm,gru,rnn", "-S", "train.learning_rate=0.02")
    queued = repository.run("dvc", "exp", "run", "--queue", "--name", "cells", *grid)
    assert queued.count("Queued experiment") == 3
    assert "Started '2'" in start_workers(repository, jobs=2)
    states = finish(repository, 3)
    unchanged = repository.lock == before and not repository.run("git", "status", "--porcelain")
    return Sweep(states, laboratory.found(), unchanged)


def test_the_documented_sweep_is_a_grid_of_backbones_cells_and_learning_rates() -> None:
    """By what DVC makes of its command; to run it would take hours."""
    (line,) = re.findall(r"^\$ (dvc exp run --queue .*)$", DOCS.replace("\\\n", ""), re.MULTILINE)
    settings = re.findall(r"-S (\S+)", " ".join(shlex.split(line)))
    combinations = get_hydra_sweeps({"params.yaml": settings})
    queued = {tuple(one["params.yaml"]) for one in combinations}
    names = [f"backbone.name={name}" for name in ("resnet50", "convnext_tiny")]
    cells = [f"train.rnn_type={cell}" for cell in ("lstm", "gru")]
    rates = [f"train.learning_rate={rate}" for rate in (0.001, 0.002)]
    assert queued == set(itertools.product(names, cells, rates))


def test_a_grid_in_the_queue_is_an_experiment_a_combination_run_by_parallel_workers(
    laboratory: Laboratory, sweep: Sweep
) -> None:
    assert sweep.states == {"cells-1": "Success", "cells-2": "Success", "cells-3": "Failed"}
    for name, cell in (("cells-1", "lstm"), ("cells-2", "gru")):
        params = laboratory.read(name, "params.yaml")
        assert (params["train"]["rnn_type"], params["train"]["learning_rate"]) == (cell, 0.02)


def test_what_fails_stops_nothing_else_and_its_log_says_why(
    laboratory: Laboratory, sweep: Sweep
) -> None:
    log = laboratory.repository.run("dvc", "queue", "logs", "cells-3")
    assert "error: params.yaml: train.rnn_type is 'rnn', but must be" in log


def test_queued_experiments_leave_the_checkout_as_it_is(sweep: Sweep) -> None:
    assert sweep.unchanged


@pytest.mark.parametrize("name", DEAR)
def test_their_folders_hold_links_to_the_archive_and_the_features(
    laboratory: Laboratory, sweep: Sweep, tmp_path: Path, name: str
) -> None:
    folder = laboratory.repository.folder
    found = [one for one in sweep.found if one.name == name]
    assert {one.stage for one in found} >= {"train", "scst", "evaluate"}
    assert folder not in {one.folder for one in found}
    assert {one.mode for one in found} == {"0o444"}
    if clones_files(tmp_path):
        pytest.skip("DVC clones files on this file system, which takes no room, but an inode")
    digest = file_digest(folder / name)
    cached = (folder / ".dvc/cache/files/md5" / digest[:2] / digest[2:]).stat()
    assert {one.inode for one in found} == {(cached.st_dev, cached.st_ino)}


def clones_files(folder: Path) -> bool:
    (folder / "a").write_text("a")
    command = ["cp", "--reflink=always", "a", "b"]
    return subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode == 0


def test_what_is_linked_is_opened_for_reading_alone(laboratory: Laboratory) -> None:
    """The stages above ran without root's power to write to a read-only file, and so does this."""
    write = "open('features/features.h5', 'r+b')"
    assert "PermissionError" in laboratory.repository.try_to("python", "-c", write).stderr
    read = "from pathlib import Path; from pipeline.images.archive import ImageArchive as Archive"
    laboratory.repository.run("python", "-c", f"{read}; Archive(Path('data/images.zip'))")


def test_nothing_is_downloaded_again(laboratory: Laboratory, sweep: Sweep) -> None:
    """The baseline asked once; the same server counts what experiments ask."""
    assert laboratory.server.requests == [None]


def test_a_reader_needs_no_lock(tiny: Artifacts) -> None:
    """Even while another process holds the file's lock for itself alone."""
    with tiny.features.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert len(read_features(tiny.features).ids) == 62


def test_the_table_has_what_varies_and_the_scores_best_first(
    laboratory: Laboratory, sweep: Sweep
) -> None:
    """`make experiments`, whose command is taken from the Makefile."""
    recipe = subprocess.run(
        ["make", "--dry-run", "experiments"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    (line,) = re.findall(r"^\S+/dvc exp show .*$", recipe.replace("\\\n", ""), re.MULTILINE)
    command = ["dvc", *shlex.split(line)[1:]]
    table = laboratory.repository.run(*command)
    header = re.findall(r"^ +Experiment .*$", table, re.MULTILINE)[0].split()
    assert header[:6] == ["Experiment", "State", "bleu_4", "cider", "rouge_l", "length"]
    varied = {name for name in header[6:] if "." in name}
    assert varied == {"train.rnn_type", "train.learning_rate"}
    assert not [name for name in header if "/" in name]
    assert max(map(len, table.splitlines())) <= 160
    rows = re.findall(r"\[cells-[12]\] +Success +\S+ +(\S+)", table)
    scores = [float(score) for score in rows]
    assert len(scores) == 2
    assert scores == sorted(scores, reverse=True)


def test_two_experiments_are_overlaid_in_images_worth_looking_at(
    laboratory: Laboratory, sweep: Sweep, tmp_path: Path
) -> None:
    """`dvc plots diff`, drawn by a browser; what it looks like is left in experiments.png."""
    repository = laboratory.repository
    repository.run("dvc", "plots", "diff", "cells-1", "cells-2", "--out", str(tmp_path))
    charts = draw(tmp_path / "index.html", tmp_path / "experiments.png")
    assert [chart.title for chart in charts] == [
        *("loss by epoch", "CIDEr on val by epoch", "BLEU-4 on val by epoch", "caption length"),
        *("learning rate by epoch", "self-critical training: CIDEr on val by epoch"),
    ]
    two = {
        "loss by epoch": {"train_loss", "val_loss"},
        "caption length": {"captions", "references"},
    }
    for chart in charts:
        assert chart.legend == {"cells-1", "cells-2"} | two.get(chart.title, set())
        assert len(chart.colours) == 2, chart
        assert chart.curves == (4 if chart.title in two else 2), chart
        assert chart.axes[0] == ("words" if chart.title == "caption length" else "epoch")
        assert not re.fullmatch("[a-z]+_[a-z]+", chart.axes[1]), "a column's name, not a reader's"
    # Two a row, none over another.
    assert charts[0].top == charts[1].top < charts[0].bottom <= charts[2].top


def test_an_experiment_is_shared_with_its_model(
    laboratory: Laboratory, sweep: Sweep, tmp_path: Path
) -> None:
    """By way of a git remote and a DVC remote, to a clone that has no data at all."""
    repository, model = laboratory.repository, laboratory.cached_model("cells-2")
    repository.run("git", "clone", "--quiet", "--bare", ".", str(tmp_path / "origin"))
    repository.run("dvc", "exp", "push", str(tmp_path / "origin"), "cells-2")
    Checkout(tmp_path).run("git", "clone", "--quiet", "origin", "clone")
    clone = Checkout(tmp_path / "clone")
    clone.run("dvc", "exp", "pull", "origin", "cells-2")
    assert clone.run("git", "for-each-ref", "refs/exps").rstrip().endswith("/cells-2")
    received = clone.folder / model.relative_to(repository.folder)
    assert received.read_bytes() == model.read_bytes()


def test_an_experiment_can_be_applied_branched_renamed_and_removed(
    laboratory: Laboratory, sweep: Sweep
) -> None:
    repository = laboratory.repository
    model = repository.folder / "models/captioner.safetensors"
    before = model.read_bytes()
    repository.run("dvc", "exp", "apply", "cells-2")
    assert "rnn_type: gru" in (repository.folder / "params.yaml").read_text()
    assert model.read_bytes() == laboratory.cached_model("cells-2").read_bytes() != before
    repository.run("git", "checkout", "--quiet", ".")
    repository.run("dvc", "checkout", "--quiet")
    assert model.read_bytes() == before
    repository.run("dvc", "exp", "branch", "cells-2", "gru-cell")
    assert "rnn_type: gru" in repository.run("git", "show", "gru-cell:params.yaml")
    repository.run("git", "branch", "--quiet", "--delete", "--force", "gru-cell")
    repository.run("dvc", "exp", "rename", "cells-1", "greedy")
    assert laboratory.read("greedy", "params.yaml")["train"]["learning_rate"] == 0.02
    repository.run("dvc", "exp", "remove", "greedy")
    assert "greedy" not in repository.run("git", "for-each-ref", "refs/exps")


def test_clean_up_frees_what_no_experiment_needs_any_more(
    laboratory: Laboratory, sweep: Sweep
) -> None:
    repository, model = laboratory.repository, laboratory.cached_model("cells-2")
    assert model.exists()
    repository.run("dvc", "exp", "remove", "cells-2")
    repository.run("dvc", "gc", "--workspace", "--all-experiments", "--force")
    assert not model.exists()
    kept = yaml.safe_load(repository.lock)["stages"]["scst"]["outs"][0]["md5"]
    assert (model.parent.parent / kept[:2] / kept[2:]).exists()
