"""Several decoders that speak as one."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from pipeline.captions.table import read_info
from pipeline.captions.vocabulary import (
    START,
    Vocabulary,
    read_vocabulary,
    write_vocabulary,
)
from pipeline.config.load import load_params
from pipeline.config.schema import EvaluateConfig, ExtractConfig, TrainConfig
from pipeline.decoders.registry import DECODERS
from pipeline.evaluation.ensemble import Ensemble, features_for
from pipeline.generation.beam_search import BeamSearchConfig, beam_search
from pipeline.stages.evaluate import evaluate
from pipeline.stages.extract import extract
from pipeline.stages.train import train
from tests.conftest import Artifacts, command, one_line, write_params
from tests.test_decoder import GRID, decoder


@pytest.mark.parametrize("name", DECODERS)
def test_an_ensemble_of_one_is_that_model(name: str) -> None:
    model, features = decoder(name).eval(), torch.randn(6, *GRID)
    search = BeamSearchConfig(beam_size=3, length_penalty=0.7, max_length=8)
    alone = beam_search(model, features_for(model, features), search)
    together = beam_search(Ensemble([model]), features, search)
    assert [one.token_ids for one in together] == [one.token_ids for one in alone]
    assert [one.score for one in together] == pytest.approx([one.score for one in alone], abs=1e-4)


def test_all_kinds_together_say_the_mean_of_what_each_would() -> None:
    members, features = [decoder(name).eval() for name in DECODERS], torch.randn(3, *GRID)
    words = torch.randint(4, 30, (6, 4))
    words[:, 0] = START
    ensemble = Ensemble(members)
    state = ensemble.init_state(features).index_select(torch.arange(3).repeat_interleave(2))
    for position in range(4):
        logits, state = ensemble.step(words[:, position], state)
        shares = [
            one(features_for(one, features), words)[:, position].softmax(-1) for one in members
        ]
        torch.testing.assert_close(logits.exp(), torch.stack(shares).mean(dim=0))


@pytest.fixture(scope="module")
def several(tiny: Artifacts, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A grid cache, a model of it, one of vectors, and one of another vocabulary."""
    folder = tmp_path_factory.mktemp("several")
    changes: dict[str, dict[str, Any]] = {
        "extract": {"layer": "grid"},
        "train": {"decoder": "adaptive_attention", "epochs": 1},
    }
    params = write_params(folder / "params.yaml", **changes)
    made = {name: folder / name for name in ("grid.h5", "attention", "params.yaml")}
    extract(tiny.images, tiny.backbone, made["grid.h5"], load_params(params, ExtractConfig))
    train(
        *(made["grid.h5"], tiny.table, tiny.vocabulary),
        *(made["attention"], folder / "h.csv"),
        load_params(params, TrainConfig),
    )
    digest = read_info(tiny.table).table_digest
    words = read_vocabulary(tiny.vocabulary, digest).words
    turned = Vocabulary((*words[:4], *words[:3:-1]))
    write_vocabulary(folder / "vocabulary.json", turned, 1, digest)
    made["other"] = folder / "other"
    train(
        *(made["grid.h5"], tiny.table, folder / "vocabulary.json"),
        *(made["other"], folder / "h.csv"),
        load_params(params, TrainConfig),
    )
    return made


def test_models_of_vectors_and_of_grids_are_scored_and_caption_as_one(
    tiny: Artifacts, several: dict[str, Path], tmp_path: Path
) -> None:
    models = [several["attention"], tiny.model]
    config = load_params(several["params.yaml"], EvaluateConfig)
    evaluate(models, several["grid.h5"], tiny.table, tmp_path, config)
    (table_info,) = json.loads((tmp_path / "metrics.json").read_text())["meta"]
    assert table_info["models"] == 2
    photo = tmp_path / "photo.png"
    Image.new("RGB", (80, 60), "red").save(photo)
    said = command(
        *("caption", "--backbone", tiny.backbone, "--model", tiny.model),
        *("--model", several["attention"], photo),
    )
    assert said.returncode == 0, said.stderr
    assert len(said.stdout.split("\t")[1].split()) >= 1


def test_models_of_two_vocabularies_are_refused(
    tiny: Artifacts, several: dict[str, Path], tmp_path: Path
) -> None:
    said = command(
        *("caption", "--backbone", tiny.backbone, "--model", several["attention"]),
        *("--model", several["other"], tiny.images),
    )
    assert "has another vocabulary than" in one_line(said)


def test_what_attention_looked_at_is_drawn(
    tiny: Artifacts, several: dict[str, Path], tmp_path: Path
) -> None:
    photo, out = tmp_path / "photo.png", tmp_path / "attention"
    Image.new("RGB", (80, 60), "red").save(photo)
    common = ("attention", "--backbone", tiny.backbone, "--out-dir", out, photo)
    both = ("--model", several["attention"], "--model", tiny.model)
    assert "one model at a time can be drawn, not 2" in one_line(command(*common, *both))
    said = command(*common, "--model", several["attention"])
    assert said.returncode == 0, said.stderr
    path, caption = said.stdout.strip().split("\t")
    with Image.open(path) as sheet:  # the image and a tile a word
        assert sheet.width > 6 * 64
        assert sheet.height > 64 * -(-(1 + len(caption.split())) // 6)
    assert "has no attention; train one that has (train.decoder)" in one_line(
        command(*common, "--model", tiny.model)
    )
