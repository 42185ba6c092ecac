"""On a GPU, where there is one: what a CPU makes, to rounding; and a run that goes on."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from pipeline.backbones.weights import read_backbones
from pipeline.config.load import load_params
from pipeline.config.schema import EvaluateConfig, ExtractConfig, ScstConfig, TrainConfig
from pipeline.dataset.feature_cache import read_features
from pipeline.decoders.registry import DECODERS
from pipeline.extraction import nvjpeg
from pipeline.extraction.plan import make_recipe
from pipeline.extraction.preprocess import collate, preprocess
from pipeline.runtime.checkpoint import Checkpoint
from pipeline.runtime.cuda_graphs import CudaGraphs
from pipeline.runtime.errors import InputError
from pipeline.stages.extract import extract
from pipeline.stages.scst import scst
from pipeline.stages.train import train
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
    config = load_params(params(folder, **groups), ExtractConfig)
    extract(tiny.images, tiny.unreadable, tiny.backbone, folder / "grid.h5", config)
    return folder / "grid.h5"


@pytest.mark.parametrize("changes", [{}, {"batch_size": 7, "num_workers": 3}, {"hflip": True}])
def test_the_features_are_those_of_a_cpu(
    tiny: Artifacts, tmp_path: Path, changes: dict[str, Any]
) -> None:
    made = []
    for device in (GPU, "cpu"):
        config = load_params(params(tmp_path, extract={**changes, "device": device}), ExtractConfig)
        made.append(tmp_path / f"{device}.h5")
        extract(tiny.images, tiny.unreadable, tiny.backbone, made[-1], config)
    assert cosines(*made).min() > 0.999


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_decoder_learns_there_and_captions_on_either(
    tiny: Artifacts, grid: Path, tmp_path: Path, decoder: str
) -> None:
    pooled = decoder == "show_and_tell"
    features = tiny.features if pooled else grid
    model, history = tmp_path / "model.safetensors", tmp_path / "history.csv"
    recipe = {
        "decoder": decoder,
        "epochs": 4,
        "dropout": 0.0,
        "word_dropout": 0.1,
        "ema_decay": 0.5,
    }
    layer = {"layer": "pooled" if pooled else "grid"}
    config = load_params(params(tmp_path, extract=layer, train=recipe), TrainConfig)
    train(features, tiny.table, tiny.vocabulary, model, history, config)
    rows = pd.read_csv(history)
    assert rows["train_loss"].iloc[-1] < 0.95 * rows["train_loss"].iloc[0]

    captions = []
    for device in (GPU, "cpu"):
        out = tmp_path / device
        path = params(tmp_path, extract=layer, train=recipe, evaluate={"device": device})
        tiny.evaluate(load_params(path, EvaluateConfig), out, model=model, features=features)
        captions.append(json.loads((out / "captions.json").read_text()))
    same = [one == other for one, other in zip(*captions, strict=True)]
    assert sum(same) >= 0.8 * len(same)  # the rest: two words all but equally likely


def test_a_graph_gives_what_the_function_gives() -> None:
    """Drawn numbers too: they go on from where the last call left the generator."""
    device = torch.device(GPU)

    def function(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return a @ b + 1, torch.rand(3, device=device, generator=generator)

    made = []
    for call in (function, None):
        generator = torch.Generator(device).manual_seed(0)
        graphs = call or CudaGraphs(function, [generator])
        torch.manual_seed(1)
        inputs = [torch.randn(2, 4, 4, device=device) for _ in range(5)]
        made.append([[part.clone() for part in graphs(*pair)] for pair in inputs])
    for ours, theirs in zip(*made, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_what_cannot_be_a_graph_runs_as_it_is() -> None:
    graphs = CudaGraphs(lambda a: (a[a > 0],))  # has to wait to know how many there are
    for _ in range(3):
        assert len(graphs(torch.arange(-2, 5, device=GPU))[0]) == 4


def test_nvjpeg_sees_what_pillow_sees(tiny: Artifacts) -> None:
    """Photos of another size than the CNN's, one of them a PNG, which is left to Pillow."""
    if not nvjpeg.is_available(torch.device(GPU)):
        pytest.skip("this torchvision has no nvJPEG")
    recipe = make_recipe(read_backbones(tiny.backbone), load_params(tiny.params, ExtractConfig))
    rng, contents = np.random.default_rng(0), []
    for kind in ("JPEG", "JPEG", "PNG"):
        small = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8))
        content = io.BytesIO()
        small.resize((200, 150), Image.Resampling.BICUBIC).save(content, kind)
        contents.append(content.getvalue())
    names = ["a", "b", "c"]
    (made,) = nvjpeg.preprocess_on_gpu(contents, names, recipe, torch.device(GPU))
    (usual,) = collate([preprocess(one, recipe) for one in contents])
    apart = (made.cpu().float() - usual.float()).abs()
    assert apart.mean() < 1.5
    broken = [contents[0], contents[1][:300]]
    with pytest.raises(InputError, match=r"the image b .*decoded"):
        nvjpeg.preprocess_on_gpu(broken, names[:2], recipe, torch.device(GPU))


class Killed(BaseException):
    """What no handler in between may catch."""


def test_what_was_killed_goes_on_where_it_stood(
    tiny: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = params(
        tmp_path,
        train={"checkpoint_seconds": 0, "word_dropout": 0.2, "ema_decay": 0.9},
        scst={"checkpoint_seconds": 0, "epochs": 2, "batch_size": 8, "ema_decay": 0.9},
    )

    def run(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        outs = [folder / name for name in ("t.safetensors", "t.csv", "s.safetensors", "s.csv")]
        data = (tiny.features, tiny.table)
        if not outs[0].exists():
            train(*data, tiny.vocabulary, *outs[:2], load_params(path, TrainConfig))
        scst(outs[0], *data, *outs[2:], load_params(path, ScstConfig))

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
