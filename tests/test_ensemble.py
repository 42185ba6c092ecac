"""Ensembles of decoders."""

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
from pipeline.generation.beam_search import BeamSearch, BeamSearchConfig
from pipeline.stages.evaluate import evaluate
from pipeline.stages.extract import extract
from pipeline.stages.train import train
from tests.conftest import Artifacts, command, one_line, write_params
from tests.test_decoder import GRID, decoder


@pytest.mark.parametrize("name", DECODERS)
def test_an_ensemble_of_one_is_that_model(name: str) -> None:
    model, features = decoder(name).eval(), torch.randn(6, *GRID)
    search = BeamSearchConfig(beam_size=3, length_penalty=0.7, max_length=8)
    alone = [best for (best,) in BeamSearch(model, search)(features_for(model, features))]
    together = [best for (best,) in BeamSearch(Ensemble([model]), search)(features)]
    assert [caption.token_ids for caption in together] == [caption.token_ids for caption in alone]
    scores = [caption.score for caption in alone]
    assert [caption.score for caption in together] == pytest.approx(scores, abs=1e-4)


def test_an_ensemble_of_all_kinds_has_the_mean_of_their_probabilities() -> None:
    members, features = [decoder(name).eval() for name in DECODERS], torch.randn(3, *GRID)
    token_ids = torch.randint(4, 30, (6, 4))
    token_ids[:, 0] = START
    ensemble = Ensemble(members)
    state = ensemble.init_state(features).index_select(torch.arange(3).repeat_interleave(2))
    for position in range(4):
        logits, state = ensemble.step(token_ids[:, position], state)
        probs = [
            member(features_for(member, features), token_ids)[:, position].softmax(-1)
            for member in members
        ]
        torch.testing.assert_close(logits.exp(), torch.stack(probs).mean(dim=0))


@pytest.fixture(scope="module")
def paths(tiny: Artifacts, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A grid cache, a model trained on it, and one with another vocabulary."""
    folder = tmp_path_factory.mktemp("ensemble")
    changes: dict[str, dict[str, Any]] = {
        "extract": {"layer": "grid"},
        "train": {"decoder": "adaptive_attention", "epochs": 1},
    }
    params = write_params(folder / "params.yaml", **changes)
    paths = {name: folder / name for name in ("grid.h5", "attention", "other", "params.yaml")}
    extract(
        tiny.images,
        tiny.unreadable,
        tiny.backbone,
        paths["grid.h5"],
        load_params(params, ExtractConfig),
    )
    train(
        *(paths["grid.h5"], tiny.table, tiny.vocabulary),
        *(paths["attention"], folder / "h.csv"),
        load_params(params, TrainConfig),
    )
    digest = read_info(tiny.table).table_digest
    words = read_vocabulary(tiny.vocabulary, digest).words
    reordered = Vocabulary((*words[:4], *words[:3:-1]))
    write_vocabulary(folder / "vocabulary.json", reordered, 1, digest)
    train(
        *(paths["grid.h5"], tiny.table, folder / "vocabulary.json"),
        *(paths["other"], folder / "h.csv"),
        load_params(params, TrainConfig),
    )
    return paths


def test_models_of_vectors_and_of_grids_evaluate_and_caption_as_an_ensemble(
    tiny: Artifacts, paths: dict[str, Path], tmp_path: Path
) -> None:
    models = [paths["attention"], tiny.model]
    config = load_params(paths["params.yaml"], EvaluateConfig)
    inputs = (tiny.confidence, paths["grid.h5"], tiny.table, tiny.neighbors)
    evaluate(models, *inputs, tmp_path, config)
    (meta,) = json.loads((tmp_path / "metrics.json").read_text())["meta"]
    assert meta["models"] == 2
    photo = tmp_path / "photo.png"
    Image.new("RGB", (80, 60), "red").save(photo)
    done = command(
        *("caption", "--backbone", tiny.backbone, "--model", tiny.model),
        *("--model", paths["attention"], photo),
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split("\t")[1].split()) >= 1


def test_models_of_two_vocabularies_are_refused(
    tiny: Artifacts, paths: dict[str, Path], tmp_path: Path
) -> None:
    done = command(
        *("caption", "--backbone", tiny.backbone, "--model", paths["attention"]),
        *("--model", paths["other"], tiny.images),
    )
    assert "has another vocabulary than" in one_line(done)
