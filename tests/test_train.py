"""Training: from the cache alone, the same bytes each time, the best epoch by its own captions."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from pipeline.config.load import load_params
from pipeline.config.schema import ExtractConfig, TrainConfig, VocabConfig
from pipeline.decoders.captioner_file import read_model
from pipeline.decoders.decoder import Decoder
from pipeline.decoders.registry import DECODERS
from pipeline.runtime.errors import InputError
from pipeline.stages.extract import extract
from pipeline.stages.train import train
from pipeline.stages.vocab import make_vocabulary
from pipeline.training import trainer
from pipeline.training.scheduled_sampling import scheduled_sampling
from tests.conftest import ROOT, Artifacts, showtell, write_params

CPU = torch.device("cpu")


def run(
    tiny: Artifacts, folder: Path, captions: Path | None = None, **changes: Any
) -> tuple[Path, pd.DataFrame]:
    """
    Args:
        captions: a table, if not the little world's own.
    """
    config = load_params(write_params(folder / "params.yaml", train=changes), TrainConfig)
    model, history = folder / "model.safetensors", folder / "history.csv"
    table = captions or tiny.table
    vocabulary = folder / "vocabulary.json"
    make_vocabulary(table, vocabulary, load_params(tiny.params, VocabConfig))
    train(tiny.features, table, vocabulary, model, history, config)
    return model, pd.read_csv(history)


def test_the_same_bytes_every_time(tiny: Artifacts, tmp_path: Path) -> None:
    model, _ = run(tiny, tmp_path)
    assert model.read_bytes() == tiny.model.read_bytes()
    assert (tmp_path / "history.csv").read_bytes() == tiny.history.read_bytes()


def test_in_float32_the_number_of_threads_does_not_matter(
    tiny: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"precision": "float32", "hidden_size": 512, "embed_size": 512, "epochs": 1}
    given = {
        **{"features": tiny.features, "captions": tiny.table},
        **{"vocabulary": tiny.vocabulary},
        **{"params": write_params(tmp_path / "params.yaml", train=config)},
    }
    made = []
    for threads in (1, 2):
        monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
        outs = {"out": tmp_path / f"{threads}.safetensors", "history": tmp_path / f"{threads}.csv"}
        done = showtell("train", *(w for o, p in (given | outs).items() for w in (f"--{o}", p)))
        assert done.returncode == 0, done.stderr
        made.append([path.read_bytes() for path in outs.values()])
    assert made[0] == made[1]


def test_another_seed_gives_another_model(tiny: Artifacts, tmp_path: Path) -> None:
    model, _ = run(tiny, tmp_path, seed=1)
    assert model.read_bytes() != tiny.model.read_bytes()


def test_the_history_has_a_line_an_epoch(tiny: Artifacts) -> None:
    history = pd.read_csv(tiny.history)
    assert list(history.columns) == [
        *("epoch", "learning_rate", "train_loss", "val_loss", "bleu_4", "cider")
    ]
    assert history["epoch"].tolist() == [1, 2]
    assert history.notna().all(axis=None)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_it_learns(tiny: Artifacts, tmp_path: Path, cell: str) -> None:
    model, history = run(tiny, tmp_path, rnn_type=cell, epochs=8, dropout=0.0, hidden_size=64)
    assert history["train_loss"].iloc[-1] < 0.8 * history["train_loss"].iloc[0]
    assert history["val_loss"].iloc[-1] < history["val_loss"].iloc[0]
    assert read_model(model, CPU).decoder.config.rnn_type == cell


def test_the_model_carries_all_that_captioning_needs(tiny: Artifacts) -> None:
    model = read_model(tiny.model, CPU)
    assert model.recipe.views[0].backbone == "shufflenet_v2_x0_5"
    assert len(model.vocabulary) == model.decoder.config.vocabulary_size
    assert not model.decoder.training


def test_grid_features_are_refused_by_a_decoder_of_vectors(
    tiny: Artifacts, grid: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"set extract\.layer: pooled"):
        train(
            *(grid, tiny.table, tiny.vocabulary),
            *(tmp_path / "m", tmp_path / "h"),
            load_params(tiny.params, TrainConfig),
        )


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_older_model(
    tiny: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """In an epoch's last step: no further loss would show what the gradient has done."""
    sane, step, last = trainer.caption_loss, 0, 13  # 200 captions in batches of 16

    def diverges(decoder: Decoder, *arguments: Any, **settings: Any) -> torch.Tensor:
        nonlocal step
        step += decoder.training
        loss = sane(decoder, *arguments, **settings)
        if decoder.training and step == last:
            if where == "loss":
                return loss * np.nan
            loss.register_hook(lambda gradient: gradient * np.inf)
        return loss

    monkeypatch.setattr(trainer, "caption_loss", diverges)
    model = tmp_path / "model.safetensors"
    model.write_text("older")
    said = r"is no longer finite in epoch 1, by step 13 of 13, .*learning_rate"
    with pytest.raises(InputError, match=said):
        train(
            *(tiny.features, tiny.table, tiny.vocabulary, model, tmp_path / "history.csv"),
            load_params(tiny.params, TrainConfig),
        )
    assert model.read_text() == "older"


@pytest.fixture(scope="module")
def grid(tiny: Artifacts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny world's grids, 2 x 2 cells."""
    folder = tmp_path_factory.mktemp("grid")
    changes: dict[str, dict[str, Any]] = {
        "extract": {"layer": "grid"},
        "train": {"decoder": "spatial_attention"},
    }
    config = load_params(write_params(folder / "p.yaml", **changes), ExtractConfig)
    extract(tiny.images, tiny.unreadable, tiny.backbone, folder / "grid.h5", config)
    return folder / "grid.h5"


# `showtell caption`, once a model, in one process that has trained none of them.
CAPTION_EACH = """
import sys
from pipeline.cli import main
backbone, photo, *models = sys.argv[1:]
for model in models:
    sys.argv[1:] = ["caption", "--model", model, "--backbone", backbone, photo]
    try:
        main()
    except SystemExit as end:
        assert not end.code
"""
ATTENTION = [name for name in DECODERS if name != "show_and_tell"]


def test_every_decoder_captions_in_a_fresh_process_and_attention_learns_from_grids(
    tiny: Artifacts, grid: Path, tmp_path: Path
) -> None:
    models = [tiny.trained]  # of vectors
    for name in ATTENTION:
        params = write_params(
            tmp_path / "params.yaml",
            extract={"layer": "grid"},
            train={
                "decoder": name,
                "epochs": 4,
                "dropout": 0.0,
                "word_dropout": 0.1,
                "ema_decay": 0.5,
            },
        )
        model, history = tmp_path / f"{name}.safetensors", tmp_path / "history.csv"
        arguments = (grid, tiny.table, tiny.vocabulary, model, history)
        train(*arguments, load_params(params, TrainConfig))
        rows = pd.read_csv(history)
        assert rows["train_loss"].iloc[-1] < 0.95 * rows["train_loss"].iloc[0], name
        before = model.read_bytes()
        train(*arguments, load_params(params, TrainConfig))
        assert model.read_bytes() == before, name
        models.append(model)
    photo = tmp_path / "photo.jpg"
    Image.new("RGB", (80, 60), "red").save(photo)
    paths = [str(path) for path in (tiny.backbone, photo, *models)]
    said = subprocess.run(
        [sys.executable, "-c", CAPTION_EACH, *paths],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    captions = [line.split("\t")[1].split() for line in said.stdout.splitlines()]
    assert len(captions) == len(models)
    assert all(captions)


def test_a_decoder_and_features_that_do_not_fit_are_said_before_any_work(tmp_path: Path) -> None:
    params = write_params(tmp_path / "p.yaml", train={"decoder": "transformer"})
    with pytest.raises(
        InputError, match=r"extract\.layer is 'pooled', but transformer takes 'grid' features"
    ):
        load_params(params, ExtractConfig)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"tie_embeddings": True, "embed_size": 8, "hidden_size": 16},
            "embed_size must equal hidden_size",
        ),
        (
            {"decoder": "transformer", "hidden_size": 12, "num_heads": 8},
            "hidden_size must be a multiple of num_heads",
        ),
        ({"decoder": "soft_attention", "num_layers": 2}, "soft_attention has one layer"),
    ],
)
def test_sizes_that_do_not_fit_each_other_are_said(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=f"train: .*{said}"):
        load_params(write_params(tmp_path / "p.yaml", train=changes), TrainConfig)


def test_scheduled_sampling_begins_with_the_references_and_ends_with_own_words(
    tiny: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = []

    def noted(*arguments: Any) -> torch.Tensor:
        shares.append(arguments[3])
        return scheduled_sampling(*arguments)

    monkeypatch.setattr(trainer, "scheduled_sampling", noted)
    run(tiny, tmp_path, epochs=2, scheduled_sampling=0.5)
    assert shares[0] == 0
    assert shares == sorted(shares)
    assert 0.4 < shares[-1] < 0.5


def test_noise_is_on_training_features_and_not_on_validation(
    tiny: Artifacts, tmp_path: Path
) -> None:
    same = {"epochs": 1, "dropout": 0.0, "learning_rate": 1e-12}  # it hardly trains
    histories = []
    for noise in (0.0, 3.0):
        folder = tmp_path / str(noise)
        folder.mkdir()
        histories.append(run(tiny, folder, feature_noise=noise, **same)[1])
    still, noisy = histories
    assert (noisy["train_loss"] != still["train_loss"]).all()
    assert (noisy["val_loss"] == still["val_loss"]).all()


@pytest.mark.parametrize("rot", ["truncate", "flip header", "html", "empty"])
def test_a_rotten_model_is_said(tiny: Artifacts, tmp_path: Path, rot: str) -> None:
    whole = tiny.model.read_bytes()
    path = tmp_path / "captioner.safetensors"
    path.write_bytes(
        {
            "truncate": whole[:-10],
            "flip header": whole.replace(b'"lstm', b'"lstn', 1).replace(b'\\"lstm', b'\\"lstn', 1),
            "html": b"<html>",
            "empty": b"",
        }[rot]
    )
    with pytest.raises(InputError, match=r"captioner\.safetensors"):
        read_model(path, CPU)
