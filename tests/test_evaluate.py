"""Evaluation: captions, scores per image, and metrics with their context."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipeline.captions.table import read_info, write_info
from pipeline.config.load import load_params
from pipeline.config.schema import EvaluateConfig
from pipeline.dataset.feature_cache import read_features
from pipeline.evaluation.metrics_file import score_table
from pipeline.extraction.feature_writer import create_features
from pipeline.features.recipe import FeatureRecipe
from pipeline.metrics.bleu import add_ngram_totals, bleu_from_counts
from pipeline.runtime.errors import InputError
from tests.conftest import Artifacts, command, one_line, write_params


def evaluate_config(folder: Path, **changes: Any) -> EvaluateConfig:
    return load_params(write_params(folder / "params.yaml", evaluate=changes), EvaluateConfig)


def evaluate(tiny: Artifacts, folder: Path, **changes: Any) -> dict[str, Any]:
    tiny.evaluate(evaluate_config(folder, **changes), folder)
    return metrics_of(folder)


def metrics_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


def test_metrics_contain_how_they_were_computed(tiny: Artifacts) -> None:
    metrics = metrics_of(tiny.reports)
    assert {f"bleu_{n}" for n in range(1, 5)} | {"cider", "rouge_l", "length"} <= metrics.keys()
    assert {"unique_captions", "repeated", "bad_endings", "vocabulary_used"} <= metrics.keys()
    assert metrics["split"] == "test (lists)"
    (meta,) = metrics["meta"]
    assert (meta["scale"], meta["tokenizer"]) == (100.0, "ptb-lower-nopunct-3")
    assert (meta["images"], meta["references"]) == (12, 5.0)
    assert meta["features"] == "shufflenet_v2_x0_5 (shapes.safetensors), pooled, squash"
    assert 0 <= metrics["bleu_4"] <= metrics["bleu_1"] <= 100


def test_two_baselines_are_beside_the_scores(tiny: Artifacts) -> None:
    metrics = metrics_of(tiny.reports)
    constant, human = metrics["baselines"]
    assert (constant["name"], human["name"]) == ("constant", "human")
    assert constant["caption"]
    assert constant["bleu_4"] < human["bleu_1"]
    shown = score_table(metrics).splitlines()
    assert shown[0].split() == ["x100", "model", "constant", "human"]
    numbers = (metrics["bleu_1"], constant["bleu_1"], human["bleu_1"])
    assert shown[1].split() == ["bleu_1", *(f"{number:.2f}" for number in numbers)]


def test_evaluation_is_deterministic(tiny: Artifacts, tmp_path: Path) -> None:
    evaluate(tiny, tmp_path)
    for name in ("captions.json", "references.json", "scores.csv", "lengths.csv", "metrics.json"):
        assert (tmp_path / name).read_bytes() == (tiny.reports / name).read_bytes()


def test_captions_are_in_cocos_results_format(tiny: Artifacts) -> None:
    captions = json.loads((tiny.reports / "captions.json").read_text())
    assert len(captions) == 12
    assert all(row.keys() == {"image_id", "caption"} for row in captions)


def test_the_scores_per_image_average_to_the_metrics(tiny: Artifacts) -> None:
    scores = pd.read_csv(tiny.reports / "scores.csv")
    metrics = metrics_of(tiny.reports)
    assert scores["cider"].mean() == pytest.approx(metrics["cider"], abs=1e-3)
    assert scores["rouge_l"].mean() == pytest.approx(metrics["rouge_l"], abs=1e-3)
    assert scores["words"].mean() == pytest.approx(metrics["length"], abs=1e-3)


def test_the_counts_of_each_caption_add_up_to_bleu(tiny: Artifacts) -> None:
    scores = pd.read_csv(tiny.reports / "scores.csv")
    metrics = metrics_of(tiny.reports)
    columns = ["words", "closest_reference", *(f"matches_{n}" for n in range(1, 5))]
    sums = add_ngram_totals(scores[columns].to_numpy()).sum(axis=0)
    ours = [metrics[f"bleu_{n}"] for n in range(1, 5)]
    assert bleu_from_counts(sums).tolist() == pytest.approx(ours, abs=1e-3)


def test_the_references_are_those_of_the_captions(tiny: Artifacts) -> None:
    captions = json.loads((tiny.reports / "captions.json").read_text())
    references = json.loads((tiny.reports / "references.json").read_text())
    assert list(references) == [row["image_id"] for row in captions]
    assert {len(refs) for refs in references.values()} == {5}
    assert all(isinstance(ref, str) for refs in references.values() for ref in refs)


def test_the_percentages_of_lengths_add_up(tiny: Artifacts) -> None:
    lengths = pd.read_csv(tiny.reports / "lengths.csv")
    assert lengths["captions"].sum() == pytest.approx(100, abs=0.01)
    assert lengths["references"].sum() == pytest.approx(100, abs=0.01)


def test_a_param_chooses_the_split(tiny: Artifacts, tmp_path: Path) -> None:
    assert evaluate(tiny, tmp_path, split="val")["split"] == "val (lists)"


def test_max_length_is_kept(tiny: Artifacts, tmp_path: Path) -> None:
    evaluate(tiny, tmp_path, max_length=3)
    assert pd.read_csv(tmp_path / "scores.csv")["words"].max() <= 3


def change_view(recipe: FeatureRecipe, **changes: Any) -> FeatureRecipe:
    (view,) = recipe.views
    return replace(recipe, views=(replace(view, **changes),))


def other_features(tiny: Artifacts, path: Path, recipe: FeatureRecipe) -> Path:
    cache = read_features(tiny.features)
    with create_features(path, cache.ids, cache.array.shape[1:], "float16", recipe) as rows:
        rows.append(cache.array)
    return path


def test_features_of_another_backbone_are_refused(tiny: Artifacts, tmp_path: Path) -> None:
    recipe = read_features(tiny.features).recipe
    (view,) = recipe.views
    for other, message in (
        (
            change_view(recipe, backbone="resnet50"),
            "its backbone is resnet50, but the model was trained on shuffle",
        ),
        (change_view(recipe, weights_digest="0" * 16), "its weights_digest"),
        (
            change_view(recipe, preprocessing=replace(view.preprocessing, size=96)),
            "its preprocessing",
        ),
        (replace(recipe, crop_mode="center"), "its crop_mode is center"),
        (replace(recipe, hflip=True), "its hflip is True"),
        (replace(recipe, views=(view, view)), "its number of views is 2"),
    ):
        path = other_features(tiny, tmp_path / "f.h5", other)
        with pytest.raises(InputError, match=message):
            tiny.evaluate(evaluate_config(tmp_path), tmp_path, features=path)
    assert not (tmp_path / "metrics.json").exists()


def test_renamed_weights_are_the_same_weights(tiny: Artifacts, tmp_path: Path) -> None:
    recipe = change_view(read_features(tiny.features).recipe, weights="renamed.pth")
    path = other_features(tiny, tmp_path / "f.h5", recipe)
    tiny.evaluate(evaluate_config(tmp_path), tmp_path, features=path)
    assert metrics_of(tmp_path)["bleu_4"] == metrics_of(tiny.reports)["bleu_4"]


def test_untrained_weights_are_marked_wherever_numbers_appear(
    tiny: Artifacts, tmp_path: Path
) -> None:
    recipe = change_view(read_features(tiny.features).recipe, weights="random:0")
    path = other_features(tiny, tmp_path / "f.h5", recipe)
    tiny.evaluate(evaluate_config(tmp_path), tmp_path, features=path)
    metrics = metrics_of(tmp_path)
    assert metrics["backbone"] == "UNTRAINED"  # a column of DVC's tables
    assert "UNTRAINED" in metrics["meta"][0]["features"]
    assert "backbone" not in metrics_of(tiny.reports)


def test_a_truncated_model_is_one_line_and_older_reports_stay(
    tiny: Artifacts, tmp_path: Path
) -> None:
    model = tmp_path / "captioner.safetensors"
    model.write_bytes(tiny.model.read_bytes()[:5000])
    old = tmp_path / "metrics.json"
    old.write_text("old")
    result = command(
        *("evaluate", "--model", model, "--features", tiny.features, "--captions", tiny.table),
        *("--out-dir", tmp_path, "--params", tiny.params),
    )
    assert "captioner.safetensors is damaged" in one_line(result)
    assert old.read_text() == "old"


def test_a_table_of_another_tokeniser_is_refused(tiny: Artifacts, tmp_path: Path) -> None:
    table = tiny.with_table(tmp_path, tiny.table.read_text())
    write_info(table, replace(read_info(table), tokenizer="spaces-1"))
    with pytest.raises(InputError, match="made with the tokeniser spaces"):
        tiny.evaluate(evaluate_config(tmp_path), tmp_path, table=table)
