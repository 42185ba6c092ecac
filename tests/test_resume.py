"""A killed run resumes from its checkpoint and ends with the same bytes."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.load import load_params
from pipeline.config.schema import (
    EvaluateConfig,
    ExtractConfig,
    ScstConfig,
    TrainConfig,
    VocabConfig,
)
from pipeline.runtime.checkpoint import Checkpoint, discard_if_complete
from pipeline.runtime.tensors import read_tensors, write_tensors
from pipeline.stages.extract import extract
from pipeline.stages.scst import scst
from pipeline.stages.train import train
from pipeline.stages.vocab import make_vocabulary
from tests.conftest import Artifacts, write_params

Run = Callable[[], None]
OUTS = ("model.safetensors", "history.csv")


class Killed(BaseException):
    """Stands for SIGKILL, so no handler may catch it."""


def training(tiny: Artifacts, folder: Path, **changes: Any) -> Run:
    keys = {"epochs": 3, "checkpoint_seconds": 0.0, **changes}
    config = load_params(write_params(folder / "params.yaml", train=keys), TrainConfig)
    outs = tuple(folder / name for name in OUTS)
    paths = (tiny.features, tiny.table, tiny.vocabulary, *outs)
    return lambda: train(*paths, config)


def self_critical(tiny: Artifacts, folder: Path, **changes: Any) -> Run:
    keys = {"epochs": 3, "batch_size": 8, "checkpoint_seconds": 0.0, **changes}
    config = load_params(write_params(folder / "params.yaml", scst=keys), ScstConfig)
    outs = tuple(folder / name for name in OUTS)
    inputs = (tiny.trained, tiny.features, tiny.table)
    return lambda: scst(*inputs, *outs, config)


def killed_at(save: int, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run until this save of a checkpoint is on the disk."""
    saves, really = 0, Checkpoint.save

    def count(self: Checkpoint, *state: Any) -> None:
        nonlocal saves
        really(self, *state)
        saves += 1
        if saves == save:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoint, "save", count)
        with pytest.raises(Killed):
            run()


def outs_of(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in OUTS]


@pytest.fixture(scope="module", params=["train", "averaged", "sampled", "scst", "scst averaged"])
def case(request: pytest.FixtureRequest, tiny: Artifacts, tmp_path_factory: Any) -> Any:
    """A function that creates the run in a folder, and the outputs of an uninterrupted run."""
    make: Callable[..., Run] = training if not request.param.startswith("scst") else self_critical
    changes = {
        "averaged": {"ema_decay": 0.9, "word_dropout": 0.2, "rnn_type": "gru"},
        "sampled": {"scheduled_sampling": 0.5, "feature_noise": 0.2},
        "scst averaged": {"ema_decay": 0.9},
        "scst": {"ema_decay": 0.0, "use_dropout": True},
    }.get(request.param, {})
    folder = tmp_path_factory.mktemp("whole")
    make(tiny, folder, **changes)()
    return lambda where: make(tiny, where, **changes), outs_of(folder)


@pytest.mark.parametrize("saves", [[1], [4], [1, 2, 5]], ids=str)
def test_the_same_bytes_wherever_it_was_killed(
    case: Any, saves: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, whole = case
    run = make(tmp_path)
    for save in saves:
        killed_at(save, run, monkeypatch)
        for name in OUTS:  # DVC does so before it runs a stage
            (tmp_path / name).unlink(missing_ok=True)
    run()
    assert outs_of(tmp_path) == whole
    discard_if_complete(tmp_path / OUTS[0])
    assert not list(tmp_path.glob(".*"))


def test_a_run_killed_after_its_last_epoch_finishes(
    tiny: Artifacts,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    whole = tmp_path / "whole"
    whole.mkdir()
    training(tiny, whole)()
    # Per epoch, one save after each of 13 steps, one after all of them, one after validation.
    run = training(tiny, tmp_path)
    killed_at(3 * (13 + 2), run, monkeypatch)
    (tmp_path / OUTS[0]).unlink()
    run()
    assert "resuming an interrupted run after epoch 3" in caplog.text
    assert outs_of(tmp_path) == outs_of(whole)


@pytest.mark.parametrize("existing", ["truncated", "another's", "none"])
def test_the_output_is_the_best_model_of_this_run(
    tiny: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existing: str
) -> None:
    """The first epoch is the best, so the model is not written again after the kill."""
    whole = tmp_path / "whole"
    whole.mkdir()
    keys = {"epochs": 3, "learning_rate": 1e-9}  # too low to improve on the first epoch
    training(tiny, whole, **keys)()
    run = training(tiny, tmp_path, **keys)
    killed_at(20, run, monkeypatch)
    model = tmp_path / OUTS[0]
    if existing == "another's":
        model.write_bytes(tiny.model.read_bytes())
    elif existing == "truncated":
        model.write_bytes(model.read_bytes()[:1000])
    else:
        model.unlink()
    run()
    assert outs_of(tmp_path) == outs_of(whole)


@pytest.mark.parametrize("what", ["params", "inputs", "code", "damage", "best"])
def test_a_run_starts_over_and_logs_it_if_anything_differs(
    tiny: Artifacts,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    what: str,
) -> None:
    caplog.set_level(logging.INFO)
    inputs = (tiny.features, tiny.table, tiny.vocabulary)
    config = load_params(
        write_params(tmp_path / "params.yaml", train={"checkpoint_seconds": 0.0}), TrainConfig
    )
    outs = [tmp_path / name for name in OUTS]
    killed_at(15, lambda: train(*inputs, *outs, config), monkeypatch)  # in the second epoch
    if what == "params":
        config = config.model_copy(update={"seed": 1})
    elif what == "inputs":
        text = tiny.table.read_text().replace(",train,A ", ",train,One ")
        captions = tiny.with_table(tmp_path, text)
        vocabulary = tmp_path / "vocabulary.json"
        make_vocabulary(captions, vocabulary, load_params(tiny.params, VocabConfig))
        inputs = (tiny.features, captions, vocabulary)
    elif what == "code":
        monkeypatch.setattr("pipeline.runtime.checkpoint.code_digest", lambda stage: "other")
    else:
        name = "state" if what == "damage" else "best-*"
        (saved,) = (tmp_path / ".model.safetensors.resume").glob(f"{name}.safetensors")
        if what == "damage":
            saved.write_bytes(saved.read_bytes()[:-7])
        else:  # a valid model, but not this run's
            tensors, header = read_tensors(tiny.model)
            write_tensors(saved, tensors, header | {"split_digest": "another's"})
    train(*inputs, *outs, config)
    assert "starting over" in caplog.text
    assert "resuming" not in caplog.text


def test_the_save_interval_is_a_param(
    tiny: Artifacts,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    run = training(tiny, tmp_path, checkpoint_seconds=3600.0)
    killed_at(2, run, monkeypatch)  # after the epoch's steps, and after its validation
    run()
    assert "resuming an interrupted run after epoch 1" in caplog.text


# DVC may be killed before it records that a stage finished. Then it deletes the outputs and reruns
# the stage.


def extraction(tiny: Artifacts, folder: Path) -> Run:
    config = load_params(write_params(folder / "params.yaml"), ExtractConfig)
    return lambda: extract(
        tiny.images, tiny.unreadable, tiny.backbone, folder / "features.h5", config
    )


def nothing_to_do(_: Any, left: Any, *__: Any) -> Iterator[Any]:
    assert not left, "features are extracted again"
    return iter(())


STAGES: dict[str, tuple[Callable[..., Run], tuple[str, ...], str]] = {
    "extract": (extraction, ("features.h5",), "pipeline.extraction.worker.iter_features"),
    "train": (training, OUTS, "pipeline.stages.train.Trainer.train_epoch"),
    "scst": (self_critical, OUTS, "pipeline.stages.scst.SelfCriticalTrainer.train_epoch"),
}


def finish(tiny: Artifacts, folder: Path, stage: str) -> tuple[Run, list[Path], list[bytes]]:
    """Finish a run and delete its outputs; return the run, and the outputs' paths and content."""
    make, names, _ = STAGES[stage]
    run, outs = make(tiny, folder), [folder / name for name in names]
    run()
    content = [path.read_bytes() for path in outs]
    outs[0].chmod(0o444)  # as in DVC's cache, which may hold the same file
    for path in outs:
        path.unlink()
    return run, outs, content


@pytest.mark.parametrize("stage", STAGES)
def test_a_finished_run_that_dvc_did_not_record_is_not_repeated(
    tiny: Artifacts,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    stage: str,
) -> None:
    caplog.set_level(logging.INFO)
    run, outs, content = finish(tiny, tmp_path, stage)
    for _ in range(2):
        caplog.clear()
        with monkeypatch.context() as patched:
            patched.setattr(STAGES[stage][2], nothing_to_do)
            run()
        assert [path.read_bytes() for path in outs] == content
        assert "this exact run already finished" in caplog.text
        for path in outs:
            path.unlink()
    discard_if_complete(outs[0])
    caplog.clear()
    run()  # in full
    assert [path.read_bytes() for path in outs] == content
    assert "already finished" not in caplog.text


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("damage", ["bit flip", "truncated", "deleted"])
def test_a_damaged_checkpoint_of_a_finished_run_starts_over(
    tiny: Artifacts, tmp_path: Path, caplog: pytest.LogCaptureFixture, stage: str, damage: str
) -> None:
    caplog.set_level(logging.INFO)
    run, outs, content = finish(tiny, tmp_path, stage)
    kept = "rows.h5" if stage == "extract" else "best-*.safetensors"
    (path,) = (tmp_path / f".{outs[0].name}.resume").glob(kept)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.chmod(0o644)
    if damage == "deleted":
        path.unlink()
    else:
        path.write_bytes(damaged if damage == "bit flip" else damaged[:-100])
    run()
    assert [path.read_bytes() for path in outs] == content
    assert "starting over" in caplog.text


def test_the_stage_that_reads_an_output_discards_its_checkpoint(
    tiny: Artifacts, tmp_path: Path
) -> None:
    extraction(tiny, tmp_path)()
    checkpoint = tmp_path / ".features.h5.resume"
    assert checkpoint.exists()
    config = load_params(write_params(tmp_path / "params.yaml", train={"epochs": 1}), TrainConfig)
    outs = [tmp_path / name for name in OUTS]
    train(tmp_path / "features.h5", tiny.table, tiny.vocabulary, *outs, config)
    assert not checkpoint.exists()
    checkpoint = tmp_path / f".{OUTS[0]}.resume"
    assert checkpoint.exists()
    settings = load_params(write_params(tmp_path / "params.yaml"), EvaluateConfig)
    tiny.evaluate(settings, tmp_path / "reports", model=outs[0], features=tmp_path / "features.h5")
    assert not checkpoint.exists()
