"""Several ranks: the results of one process, a single writer, and one line if a rank fails."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.config.load import load_params
from pipeline.config.schema import EvaluateConfig, ExtractConfig, ScstConfig, TrainConfig
from pipeline.decoders.dropout import Dropout, SharedDropout, set_parts
from pipeline.distributed.part import Part
from pipeline.stages.calibrate import calibrate
from pipeline.stages.extract import extract
from pipeline.stages.scst import scst
from pipeline.stages.train import train
from tests.conftest import Artifacts, one_line, write_params
from tests.helpers.ranks import World

FILES = ("captions.json", "references.json", "scores.csv", "lengths.csv", "metrics.json")
# Every kind of random number that a training draws.
RANDOM = {
    **{"dropout": 0.5, "word_dropout": 0.1, "feature_noise": 0.1, "scheduled_sampling": 0.3},
    **{"label_smoothing": 0.1, "ema_decay": 0.9, "precision": "float32"},
}
ENDLESS = {"epochs": 100_000, "patience": 100_000, "checkpoint_seconds": 0.2}


@pytest.fixture(scope="module")
def grid(tiny: Artifacts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grids with augmentations."""
    folder = tmp_path_factory.mktemp("grid")
    keys = {"layer": "grid", "augmentations": 2}
    params = write_params(
        folder / "params.yaml", extract=keys, train={"decoder": "spatial_attention"}
    )
    out = folder / "features.h5"
    images = (tiny.images, tiny.unreadable, tiny.backbone)
    extract(*images, out, load_params(params, ExtractConfig))
    return out


def options(folder: Path, inputs: dict[str, Path], **changes: Any) -> list[object]:
    """Options of a stage that trains in this folder."""
    params = write_params(folder / "params.yaml", **changes)
    outs = {"out": folder / "model.safetensors", "history": folder / "history.csv"}
    paths = inputs | outs | {"params": params}
    return [word for name, path in paths.items() for word in (f"--{name}", path)]


def training(tiny: Artifacts, folder: Path, features: Path | None = None, **keys: Any) -> list[Any]:
    """The command of a training."""
    folder.mkdir(exist_ok=True)
    inputs = {"features": features or tiny.features, "captions": tiny.table}
    groups: dict[str, Any] = {"distributed": {"timeout": 3.0}, "train": keys}
    if features:
        groups["extract"] = {"layer": "grid"}
    return ["train", *options(folder, inputs | {"vocabulary": tiny.vocabulary}, **groups)]


def alone(arguments: list[Any], folder: Path) -> Path:
    """The history of the same command in one process."""
    folder.mkdir()
    stage, *words = arguments
    given = {name[2:]: Path(path) for name, path in zip(words[::2], words[1::2], strict=True)}
    params, history = given.pop("params"), folder / "history.csv"
    given |= {"out": folder / "model.safetensors", "history": history}
    if stage == "train":
        train(**given, config=load_params(params, TrainConfig))
    else:
        scst(**given, config=load_params(params, ScstConfig))
    return history


def require_same(history: Path, expected: Path) -> None:
    """Losses and rewards to 1e-4; scores of captions are exact."""
    ours, theirs = pd.read_csv(history), pd.read_csv(expected)
    assert list(ours) == list(theirs)
    for name in ours:
        if name in ("bleu_4", "cider"):
            assert ours[name].tolist() == theirs[name].tolist(), name
        else:
            np.testing.assert_allclose(ours[name], theirs[name], atol=1.01e-4, err_msg=name)


CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "show_and_tell": (2, RANDOM),
    # Two images in a batch, and three ranks.
    "spare rank": (3, {"batch_size": 2, "epochs": 1, "learning_rate": 1e-4}),
    "spatial_attention": (2, {**RANDOM, "num_heads": 4, "batch_size": 40}),
    "transformer": (3, {"num_heads": 4, "batch_size": 40, "dropout": 0.5}),
}


@pytest.mark.parametrize("case", CASES)
def test_training_on_ranks_is_that_of_one_process(
    tiny: Artifacts, grid: Path, tmp_path: Path, case: str
) -> None:
    size, keys = CASES[case]
    decoder = case if "_" in case or case == "transformer" else "show_and_tell"
    features = None if decoder == "show_and_tell" else grid
    command = training(tiny, tmp_path / "ranks", features, decoder=decoder, **keys)
    world = World(command, size, tmp_path)
    expected = alone(command, tmp_path / "alone")
    assert world.join() == [0] * size, world.printed()
    require_same(tmp_path / "ranks/history.csv", expected)
    first, *others = world.printed()
    assert "kept epoch" in first
    assert not any(others)


def test_self_critical_training_on_ranks_is_that_of_one_process(
    tiny: Artifacts, tmp_path: Path
) -> None:
    keys = {"epochs": 2, "batch_size": 7, "use_dropout": True, "bleu_weight": 0.5}
    inputs = {"trained": tiny.trained, "features": tiny.features, "captions": tiny.table}
    (tmp_path / "ranks").mkdir()
    command = ["scst", *options(tmp_path / "ranks", inputs, scst=keys | {"ema_decay": 0.9})]
    world = World(command, 3, tmp_path)
    expected = alone(command, tmp_path / "alone")
    assert world.join() == [0, 0, 0], world.printed()
    require_same(tmp_path / "ranks/history.csv", expected)


def test_evaluation_on_ranks_has_the_bytes_of_one_process(tiny: Artifacts, tmp_path: Path) -> None:
    params = write_params(tmp_path / "params.yaml", evaluate={"batch_size": 5})
    config = load_params(params, EvaluateConfig)
    data = ("--features", tiny.features, "--captions", tiny.table, "--params", params)
    calibrated, out = tmp_path / "confidence.json", tmp_path / "reports"
    evaluates = ("--model", tiny.model, "--confidence", tiny.confidence, "--out-dir", out)
    worlds = [
        World(["calibrate", "--model", tiny.model, "--out", calibrated, *data], 2, tmp_path / "c"),
        World(["evaluate", *evaluates, *data], 3, tmp_path / "e"),
    ]
    expected = tmp_path / "alone"
    expected.mkdir()
    inputs = (tiny.features, tiny.table, tiny.neighbors)
    calibrate([tiny.model], *inputs, expected / "confidence.json", config)
    tiny.evaluate(config, expected)
    for world in worlds:
        assert set(world.join()) == {0}, world.printed()
    assert calibrated.read_bytes() == (expected / "confidence.json").read_bytes()
    for name in FILES:
        assert (out / name).read_bytes() == (expected / name).read_bytes(), name


def wait_for(condition: Callable[[], bool], world: World) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, world.printed()
        time.sleep(0.02)


def started(folder: Path, world: World) -> World:
    """The world once it has saved a checkpoint."""
    wait_for((folder / ".model.safetensors.resume/state.safetensors").exists, world)
    return world


def test_another_number_of_ranks_resumes(tiny: Artifacts, tmp_path: Path) -> None:
    keys = {**RANDOM, "epochs": 2, "checkpoint_seconds": 0.0, "batch_size": 8}
    folder = tmp_path / "ranks"
    command = training(tiny, folder, **keys)
    world = started(folder, World(command, 3, tmp_path))
    os.kill(world.ranks[2].pid or 0, signal.SIGTERM)  # one of them is enough
    expected = alone(command, tmp_path / "alone")
    assert world.join() == [130, 130, 130], world.printed()
    assert len(world.errors()) == 1
    world = World(command, 2, tmp_path)
    assert world.join() == [0, 0], world.printed()
    assert "resuming an interrupted run" in world.printed()[0]
    require_same(folder / "history.csv", expected)


def test_a_resumed_run_has_the_bytes_of_one_that_was_not_interrupted(
    tiny: Artifacts, tmp_path: Path
) -> None:
    # From three ranks on, the order in which their gradients are added makes a difference.
    keys = {**RANDOM, "epochs": 2, "checkpoint_seconds": 0.0, "batch_size": 8}
    undisturbed, resumed = tmp_path / "undisturbed", tmp_path / "resumed"
    world = World(training(tiny, undisturbed, **keys), 3, tmp_path / "a")
    command = training(tiny, resumed, **keys)
    killed = started(resumed, World(command, 3, tmp_path / "b"))
    killed.ranks[1].kill()
    killed.join()
    assert world.join() == [0, 0, 0], world.printed()
    world = World(command, 3, tmp_path / "c")
    assert world.join() == [0, 0, 0], world.printed()
    assert "resuming an interrupted run" in world.printed()[0]
    for name in ("model.safetensors", "history.csv"):
        assert (resumed / name).read_bytes() == (undisturbed / name).read_bytes(), name


@pytest.mark.parametrize(
    ("number", "rank"),
    [(signal.SIGKILL, 0), (signal.SIGKILL, 2), (signal.SIGSTOP, 0)],
    ids=["killed, with the store", "killed", "hangs, with the store"],
)
def test_a_rank_that_fails_is_named_in_one_line(
    tiny: Artifacts, tmp_path: Path, number: signal.Signals, rank: int
) -> None:
    folder = tmp_path / "ranks"
    world = started(folder, World(training(tiny, folder, **ENDLESS), 3, tmp_path))
    os.kill(world.ranks[rank].pid or 0, number)
    others = [one for one in world.ranks if one is not world.ranks[rank]]
    for other in others:
        other.join(60)
    assert [other.exitcode for other in others] == [1, 1], world.printed()
    world.ranks[rank].kill()
    (line,) = world.errors()
    assert line.startswith(f"error: rank {rank} ended, or did not answer within 3 s"), line


def test_a_rank_that_never_starts_is_named(tiny: Artifacts, tmp_path: Path) -> None:
    arguments = training(tiny, tmp_path / "ranks")
    arguments[arguments.index("--features") + 1] = tmp_path / "missing"
    world = World(arguments, 3, tmp_path)
    world.ranks[1].kill()
    world.join()
    (line,) = world.errors()
    assert line.startswith("error: rank 1 of 3 did not start within 3 s"), line


def test_bad_input_and_a_second_launch_are_one_line_each(tiny: Artifacts, tmp_path: Path) -> None:
    folder = tmp_path / "ranks"
    first = started(folder, World(training(tiny, folder, **ENDLESS), 2, tmp_path / "first"))
    second = World(training(tiny, folder, **ENDLESS), 2, tmp_path / "second")
    arguments = training(tiny, tmp_path / "other")
    arguments[arguments.index("--vocabulary") + 1] = tmp_path / "missing"
    bad = World(arguments, 2, tmp_path / "bad")
    assert second.join() == bad.join() == [1, 1]
    (line,) = second.errors()
    assert f"process {first.ranks[0].pid} is already writing" in line
    (line,) = bad.errors()
    assert f"{tmp_path / 'missing'} does not exist" in line
    for rank in first.ranks:
        rank.kill()


def test_the_stage_starts_its_own_ranks(tiny: Artifacts, tmp_path: Path) -> None:
    """And says in one line which of them was killed; the run then resumes in one process."""
    folder = tmp_path / "ranks"
    command = training(tiny, folder, epochs=3, checkpoint_seconds=0.0)
    params = folder / "params.yaml"
    write_params(
        params,
        train={"epochs": 3, "checkpoint_seconds": 0.0},
        distributed={"processes": 2},
    )
    words = [sys.executable, "-m", "pipeline", *map(str, command)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as launcher:
        children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children")
        while not (folder / ".model.safetensors.resume/state.safetensors").exists():
            assert launcher.poll() is None
            time.sleep(0.02)
        victim = int(children.read_text().split()[1])
        os.kill(victim, signal.SIGKILL)
        done = subprocess.CompletedProcess(words, launcher.wait(), "", launcher.communicate()[1])
    assert f"rank 1 (process {victim}) was ended by SIGKILL" in one_line(done)
    assert done.stderr.count("error: ") == 1
    assert "Warning" not in done.stderr
    expected = alone(command, tmp_path / "alone")
    train(
        *(tiny.features, tiny.table, tiny.vocabulary),
        *(folder / "model.safetensors", folder / "history.csv"),
        load_params(params, TrainConfig),
    )
    require_same(folder / "history.csv", expected)


@pytest.mark.parametrize("kind", [Dropout, SharedDropout])
def test_dropout_of_parts_is_that_of_the_whole(kind: type[SharedDropout]) -> None:
    dropout, rows = kind(0.3), torch.ones(7, 5, 3)
    torch.manual_seed(0)
    whole, state = dropout(rows), torch.get_rng_state()
    for part in (Part.of(7, rank, 3) for rank in range(3)):
        set_parts(dropout, [part])
        torch.manual_seed(0)
        assert torch.equal(dropout(rows[part.rows]), whole[part.rows])
        assert torch.equal(torch.get_rng_state(), state)
