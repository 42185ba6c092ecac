"""A training that was killed goes on where it stood and ends with the same bytes."""

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
    """What no handler in between may catch, as none catches SIGKILL."""


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
    """Run until this save of a checkpoint is on the disk, and no further."""
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
    """How to run it in a folder, and what comes of it uninterrupted."""
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
        for name in OUTS:  # as DVC does before it runs a stage
            (tmp_path / name).unlink(missing_ok=True)
    run()
    assert outs_of(tmp_path) == whole
    discard_if_complete(tmp_path / OUTS[0])
    assert not list(tmp_path.glob(".*"))  # and nothing is left over


def test_killed_after_the_last_epoch_only_the_end_is_missing(
    tiny: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    training(tiny, whole)()
    steps = 3 * 13 + 3  # 200 captions in batches of 16, and a save an epoch
    run = training(tiny, tmp_path)
    killed_at(steps, run, monkeypatch)
    (tmp_path / OUTS[0]).unlink()
    run()
    assert outs_of(tmp_path) == outs_of(whole)


@pytest.mark.parametrize("found", ["cut", "another's", "none"])
def test_what_is_handed_out_is_this_runs_best_whatever_lay_there(
    tiny: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: str
) -> None:
    """The first epoch is the best: the model is not written again after the interruption."""
    whole = tmp_path / "whole"
    whole.mkdir()
    keys = {"epochs": 3, "learning_rate": 1e-9}  # nothing is learnt, so the first epoch stays best
    training(tiny, whole, **keys)()
    run = training(tiny, tmp_path, **keys)
    killed_at(20, run, monkeypatch)
    model = tmp_path / OUTS[0]
    if found == "another's":
        model.write_bytes(tiny.model.read_bytes())
    elif found == "cut":
        model.write_bytes(model.read_bytes()[:1000])
    else:
        model.unlink()
    run()
    assert outs_of(tmp_path) == outs_of(whole)


@pytest.mark.parametrize("what", ["params", "inputs", "code", "damage", "best"])
def test_it_starts_afresh_and_says_so_where_anything_differs(
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
        named = "state" if what == "damage" else "best-*"
        (saved,) = (tmp_path / ".model.safetensors.resume").glob(f"{named}.safetensors")
        if what == "damage":
            saved.write_bytes(saved.read_bytes()[:-7])
        else:  # a model as whole as ours
            tensors, header = read_tensors(tiny.model)
            write_tensors(saved, tensors, header | {"split_digest": "another's"})
    train(*inputs, *outs, config)
    assert "starting over" in caplog.text
    assert "resuming" not in caplog.text


def test_how_much_may_be_lost_is_a_param(
    tiny: Artifacts,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    run = training(tiny, tmp_path, checkpoint_seconds=3600.0)
    killed_at(1, run, monkeypatch)  # not within an epoch: at its end
    run()
    assert "resuming an interrupted run after epoch 1" in caplog.text


# Whoever ran a stage, DVC say, may be killed before it has noted that the stage ended. It takes the
# outputs away then, and runs the stage again.


def extraction(tiny: Artifacts, folder: Path) -> Run:
    config = load_params(write_params(folder / "params.yaml"), ExtractConfig)
    return lambda: extract(tiny.images, tiny.backbone, folder / "features.h5", config)


def nothing_to_do(_: Any, left: Any, *__: Any) -> Iterator[Any]:
    assert not left, "it is done again"
    return iter(())


STAGES: dict[str, tuple[Callable[..., Run], tuple[str, ...], str]] = {
    "extract": (extraction, ("features.h5",), "pipeline.stages.extract.iter_features"),
    "train": (training, OUTS, "pipeline.stages.train.Trainer.train_epoch"),
    "scst": (self_critical, OUTS, "pipeline.stages.scst.SelfCriticalTrainer.train_epoch"),
}


def ended(tiny: Artifacts, folder: Path, stage: str) -> tuple[Run, list[Path], list[bytes]]:
    """How to run it again, where its outputs stood, and what they were."""
    make, names, _ = STAGES[stage]
    run, outs = make(tiny, folder), [folder / name for name in names]
    run()
    made = [path.read_bytes() for path in outs]
    outs[0].chmod(0o444)  # as DVC's cache has it, which may be the same file
    for path in outs:
        path.unlink()
    return run, outs, made


@pytest.mark.parametrize("stage", STAGES)
def test_what_has_ended_is_not_done_again_where_nobody_noted_that(
    tiny: Artifacts,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    stage: str,
) -> None:
    caplog.set_level(logging.INFO)
    run, outs, made = ended(tiny, tmp_path, stage)
    for _ in range(2):
        caplog.clear()
        with monkeypatch.context() as patched:
            patched.setattr(STAGES[stage][2], nothing_to_do)
            run()
        assert [path.read_bytes() for path in outs] == made
        assert "this exact run already finished" in caplog.text
        for path in outs:
            path.unlink()
    discard_if_complete(outs[0])
    caplog.clear()
    run()  # really
    assert [path.read_bytes() for path in outs] == made
    assert "already finished" not in caplog.text


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("rot", ["middle", "cut", "gone"])
def test_what_was_kept_of_an_ended_run_and_has_rotted_is_made_anew(
    tiny: Artifacts, tmp_path: Path, caplog: pytest.LogCaptureFixture, stage: str, rot: str
) -> None:
    caplog.set_level(logging.INFO)
    run, outs, made = ended(tiny, tmp_path, stage)
    kept = "rows.h5" if stage == "extract" else "best-*.safetensors"
    (path,) = (tmp_path / f".{outs[0].name}.resume").glob(kept)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    if rot == "gone":
        path.unlink()
    else:
        path.write_bytes(content if rot == "middle" else content[:-100])
    run()
    assert [path.read_bytes() for path in outs] == made
    assert "starting over" in caplog.text


def test_who_reads_an_output_ends_what_is_kept_of_it(tiny: Artifacts, tmp_path: Path) -> None:
    extraction(tiny, tmp_path)()
    kept = tmp_path / ".features.h5.resume"
    assert kept.exists()
    learn = load_params(write_params(tmp_path / "params.yaml", train={"epochs": 1}), TrainConfig)
    outs = [tmp_path / name for name in OUTS]
    train(tmp_path / "features.h5", tiny.table, tiny.vocabulary, *outs, learn)
    assert not kept.exists()
    kept = tmp_path / f".{OUTS[0]}.resume"
    assert kept.exists()
    config = load_params(write_params(tmp_path / "params.yaml"), EvaluateConfig)
    tiny.evaluate(config, tmp_path / "reports", model=outs[0], features=tmp_path / "features.h5")
    assert not kept.exists()
