"""Training: from the cache alone, the same bytes each time, the best epoch by its own captions."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.config import read
from pipeline.config.extract import ExtractConfig
from pipeline.config.train import TrainConfig
from pipeline.errors import InputError
from pipeline.extract import extract
from pipeline.model.batches import batches, encode
from pipeline.store.features import create_features, read_features
from pipeline.store.model import read_model
from pipeline.store.vocabulary import END, PAD, START, UNK, build_vocabulary
from pipeline.train import learning_rate_factor, train
from tests.conftest import Artifacts, write_params

CPU = torch.device("cpu")


def run(tiny: Artifacts, folder: Path, **changes: Any) -> tuple[Path, pd.DataFrame]:
    config = read(write_params(folder / "params.yaml", train=changes), TrainConfig)
    model, history = folder / "model.safetensors", folder / "history.csv"
    train(tiny.features, tiny.table, tiny.vocabulary, model, history, config)
    return model, pd.read_csv(history)


def test_the_same_bytes_every_time(tiny: Artifacts, tmp_path: Path) -> None:
    model, _ = run(tiny, tmp_path)
    assert model.read_bytes() == tiny.model.read_bytes()
    assert (tmp_path / "history.csv").read_bytes() == tiny.history.read_bytes()


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
    model, history = run(tiny, tmp_path, cell=cell, epochs=8, dropout=0.0, hidden_size=64)
    assert history["train_loss"].iloc[-1] < 0.8 * history["train_loss"].iloc[0]
    assert history["val_loss"].iloc[-1] < history["val_loss"].iloc[0]
    assert read_model(model, CPU).decoder.config.cell == cell


def test_it_stops_early_and_keeps_the_best_epoch(tiny: Artifacts, tmp_path: Path) -> None:
    """With hardly any learning no epoch is better than the first."""
    model, history = run(tiny, tmp_path, epochs=30, patience=3, learning_rate=1e-9)
    assert len(history) == 1 + 3
    (tmp_path / "one").mkdir()
    first, _ = run(tiny, tmp_path / "one", epochs=1, learning_rate=1e-9)
    for a, b in zip(
        read_model(model, CPU).decoder.state_dict().values(),
        read_model(first, CPU).decoder.state_dict().values(),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_the_model_carries_all_that_captioning_needs(tiny: Artifacts) -> None:
    model = read_model(tiny.model, CPU)
    assert model.recipe.backbone == "shufflenet_v2_x0_5"
    assert len(model.vocabulary) == model.decoder.config.vocabulary_size
    assert not model.decoder.training


def test_grid_features_are_refused(tiny: Artifacts, tmp_path: Path) -> None:
    config = read(write_params(tmp_path / "p.yaml", extract={"layer": "grid"}), ExtractConfig)
    extract(tiny.images, tiny.backbone, tmp_path / "grid.h5", config)
    with pytest.raises(InputError, match=r"set extract\.layer: pooled"):
        train(
            *(tmp_path / "grid.h5", tiny.table, tiny.vocabulary),
            *(tmp_path / "m", tmp_path / "h"),
            read(tiny.params, TrainConfig),
        )


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_older_model(
    tiny: Artifacts, tmp_path: Path
) -> None:
    """Features so large that their mean overflows, though each is finite."""
    cache = read_features(tiny.features)
    huge = tmp_path / "huge.h5"
    with create_features(huge, cache.ids, (1024,), "float32", cache.recipe) as rows:
        rows.write(0, np.full((len(cache.ids), 1024), 3e38))
    model = tmp_path / "model.safetensors"
    model.write_text("older")
    with pytest.raises(InputError, match=r"stopped being a number in epoch 1, .*learning_rate"):
        train(
            *(huge, tiny.table, tiny.vocabulary, model, tmp_path / "history.csv"),
            read(tiny.params, TrainConfig),
        )
    assert model.read_text() == "older"


def test_batches_are_every_caption_once_and_nearly_unpadded() -> None:
    references = [
        [["w"] * (1 + (picture + turn) % 9) for turn in range(5)] for picture in range(40)
    ]
    captions = encode(references, build_vocabulary([["w"]], 1))
    cut = list(batches(captions, 16, CPU, torch.Generator().manual_seed(0)))
    assert sum(len(batch.inputs) for batch in cut) == 200
    tokens = sum(batch.tokens for batch in cut)
    assert tokens == sum(len(caption) + 1 for refs in references for caption in refs)
    assert sum(batch.targets.numel() for batch in cut) < 1.1 * tokens
    for batch in cut:
        assert (batch.inputs[:, 0] == START).all()
        assert ((batch.targets == END).sum(dim=1) == 1).all()
        assert int((batch.targets != PAD).sum()) == batch.tokens
    again = list(batches(captions, 16, CPU, torch.Generator().manual_seed(0)))
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(cut, again, strict=True))


def test_words_out_of_the_vocabulary_are_unk() -> None:
    captions = encode([[["w", "x"]]], build_vocabulary([["w"]], 1))
    assert captions.words.tolist() == [[START, 4, UNK, END]]


def test_the_learning_rate_rises_then_falls() -> None:
    rates = [learning_rate_factor(step, 100, warmup=0.2) for step in range(100)]
    assert rates.index(max(rates)) == 20
    assert rates[:21] == sorted(rates[:21])
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert 0 < rates[0] < 0.06
    assert rates[-1] < 0.01


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
