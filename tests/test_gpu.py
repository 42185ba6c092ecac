"""On a GPU, where there is one: what a CPU makes, to rounding; and a run that goes on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.config import read
from pipeline.config.evaluate import EvaluateConfig
from pipeline.config.extract import ExtractConfig
from pipeline.config.scst import ScstConfig
from pipeline.config.train import TrainConfig
from pipeline.extract import extract
from pipeline.model.build import DECODERS
from pipeline.scst import scst
from pipeline.store.checkpoint import Checkpoint
from pipeline.store.features import read_features
from pipeline.train import train
from tests.conftest import Artifacts, write_params

GPU = "cuda"

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def params(folder: Path, **changes: dict[str, Any]) -> Path:
    everywhere = {stage: {"device": GPU} for stage in ("extract", "train", "scst", "evaluate")}
    groups = {stage: keys | changes.pop(stage, {}) for stage, keys in everywhere.items()}
    return write_params(folder / "params.yaml", **groups, **changes)


def cosines(*paths: Path) -> Any:
    a, b = (read_features(path).array[:].reshape(62, -1).astype(np.float64) for path in paths)
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.fixture(scope="module")
def grid(tiny: Artifacts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grid")
    groups = {"extract": {"layer": "grid"}, "train": {"decoder": "spatial_attention"}}
    config = read(params(folder, **groups), ExtractConfig)
    extract(tiny.images, tiny.backbone, folder / "grid.h5", config)
    return folder / "grid.h5"


@pytest.mark.parametrize("changes", [{}, {"batch_size": 7, "workers": 3}, {"mirrored": True}])
def test_the_features_are_those_of_a_cpu(
    tiny: Artifacts, tmp_path: Path, changes: dict[str, Any]
) -> None:
    made = []
    for device in (GPU, "cpu"):
        config = read(params(tmp_path, extract={**changes, "device": device}), ExtractConfig)
        made.append(tmp_path / f"{device}.h5")
        extract(tiny.images, tiny.backbone, made[-1], config)
    assert cosines(*made).min() > 0.999


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_decoder_learns_there_and_captions_on_either(
    tiny: Artifacts, grid: Path, tmp_path: Path, decoder: str
) -> None:
    pooled = decoder == "show_and_tell"
    features = tiny.features if pooled else grid
    model, history = tmp_path / "model.safetensors", tmp_path / "history.csv"
    recipe = {"decoder": decoder, "epochs": 4, "dropout": 0.0, "word_dropout": 0.1, "ema": 0.5}
    layer = {"layer": "pooled" if pooled else "grid"}
    config = read(params(tmp_path, extract=layer, train=recipe), TrainConfig)
    train(features, tiny.table, tiny.summary, tiny.vocabulary, model, history, config)
    rows = pd.read_csv(history)
    assert rows["train_loss"].iloc[-1] < 0.95 * rows["train_loss"].iloc[0]

    captions = []
    for device in (GPU, "cpu"):
        out = tmp_path / device
        path = params(tmp_path, extract=layer, train=recipe, evaluate={"device": device})
        tiny.evaluate(read(path, EvaluateConfig), out, model=model, features=features)
        captions.append(json.loads((out / "captions.json").read_text()))
    same = [one == other for one, other in zip(*captions, strict=True)]
    assert sum(same) >= 0.8 * len(same)  # the rest: two words all but equally likely


class Killed(BaseException):
    """What no handler in between may catch."""


def test_what_was_killed_goes_on_where_it_stood(
    tiny: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = params(
        tmp_path,
        train={"checkpoint_seconds": 0, "word_dropout": 0.2, "ema": 0.9},
        scst={"checkpoint_seconds": 0, "epochs": 2, "pictures": 8, "ema": 0.9},
    )

    def run(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        outs = [folder / name for name in ("t.safetensors", "t.csv", "s.safetensors", "s.csv")]
        data = (tiny.features, tiny.table, tiny.summary)
        if not outs[0].exists():
            train(*data, tiny.vocabulary, *outs[:2], read(path, TrainConfig))
        scst(outs[0], *data, *outs[2:], read(path, ScstConfig))

    saves, really = 0, Checkpoint.save

    def stops_at(self: Checkpoint, *state: Any) -> None:
        nonlocal saves
        really(self, *state)
        saves += 1
        if saves in (5, 37):
            raise Killed

    run(tmp_path / "whole")
    monkeypatch.setattr(Checkpoint, "save", stops_at)
    for _ in range(2):
        with pytest.raises(Killed):
            run(tmp_path / "killed")
    run(tmp_path / "killed")
    for name in ("t.csv", "s.csv"):
        whole, killed = (pd.read_csv(tmp_path / run / name) for run in ("whole", "killed"))
        # Some of a GPU's kernels do not repeat to the bit.
        np.testing.assert_allclose(killed, whole, rtol=0.02, atol=0.5)
