"""Evaluation: captions, a score an image, and metrics that say what they are."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipeline.captions.table import read_info, write_info
from pipeline.config.load import load_params
from pipeline.config.schema import EvaluateConfig
from pipeline.evaluation.metrics_file import score_table
from pipeline.extraction.feature_writer import create_features
from pipeline.features.feature_cache import read_features
from pipeline.features.recipe import FeatureRecipe
from pipeline.metrics.bleu import add_ngram_totals, bleu_from_counts
from pipeline.runtime.errors import InputError
from tests.conftest import Artifacts, command, one_line, write_params


def config(folder: Path, **changes: Any) -> EvaluateConfig:
    return load_params(write_params(folder / "params.yaml", evaluate=changes), EvaluateConfig)


def metrics(tiny: Artifacts, folder: Path, **changes: Any) -> dict[str, Any]:
    tiny.evaluate(config(folder, **changes), folder)
    return json.loads((folder / "metrics.json").read_text())


def test_metrics_say_what_they_are(tiny: Artifacts) -> None:
    made = json.loads((tiny.reports / "metrics.json").read_text())
    assert {f"bleu_{n}" for n in range(1, 5)} | {"cider", "rouge_l", "length"} <= made.keys()
    assert {"unique_captions", "repeated", "bad_endings", "vocabulary_used"} <= made.keys()
    assert made["split"] == "test (lists)"
    (table_info,) = made["meta"]
    assert (table_info["scale"], table_info["tokenizer"]) == (100.0, "ptb-lower-nopunct-2")
    assert (table_info["images"], table_info["references"]) == (12, 5.0)
    assert table_info["features"] == "shufflenet_v2_x0_5 (shapes.safetensors), pooled, squash"
    assert 0 <= made["bleu_4"] <= made["bleu_1"] <= 100


def test_two_yardsticks_stand_beside_the_scores(tiny: Artifacts) -> None:
    made = json.loads((tiny.reports / "metrics.json").read_text())
    constant, human = made["baselines"]
    assert (constant["name"], human["name"]) == ("constant", "human")
    assert constant["caption"]
    assert constant["bleu_4"] < human["bleu_1"]
    shown = score_table(made).splitlines()
    assert shown[0].split() == ["x100", "model", "constant", "human"]
    numbers = (made["bleu_1"], constant["bleu_1"], human["bleu_1"])
    assert shown[1].split() == ["bleu_1", *(f"{number:.2f}" for number in numbers)]


def test_the_same_bytes_every_time(tiny: Artifacts, tmp_path: Path) -> None:
    metrics(tiny, tmp_path)
    for name in ("captions.json", "references.json", "scores.csv", "lengths.csv", "metrics.json"):
        assert (tmp_path / name).read_bytes() == (tiny.reports / name).read_bytes()


def test_captions_are_in_cocos_results_form(tiny: Artifacts) -> None:
    captions = json.loads((tiny.reports / "captions.json").read_text())
    assert len(captions) == 12
    assert all(one.keys() == {"image_id", "caption"} for one in captions)


def test_a_row_of_scores_an_image(tiny: Artifacts) -> None:
    scores = pd.read_csv(tiny.reports / "scores.csv")
    made = json.loads((tiny.reports / "metrics.json").read_text())
    assert scores["cider"].mean() == pytest.approx(made["cider"], abs=1e-3)
    assert scores["rouge_l"].mean() == pytest.approx(made["rouge_l"], abs=1e-3)
    assert scores["words"].mean() == pytest.approx(made["length"], abs=1e-3)


def test_the_counts_of_each_caption_add_up_to_bleu(tiny: Artifacts) -> None:
    scores = pd.read_csv(tiny.reports / "scores.csv")
    made = json.loads((tiny.reports / "metrics.json").read_text())
    columns = ["words", "closest_reference", *(f"matches_{n}" for n in range(1, 5))]
    sums = add_ngram_totals(scores[columns].to_numpy()).sum(axis=0)
    ours = [made[f"bleu_{n}"] for n in range(1, 5)]
    assert bleu_from_counts(sums).tolist() == pytest.approx(ours, abs=1e-3)


def test_the_references_stand_beside_the_captions(tiny: Artifacts) -> None:
    captions = json.loads((tiny.reports / "captions.json").read_text())
    references = json.loads((tiny.reports / "references.json").read_text())
    assert list(references) == [one["image_id"] for one in captions]
    assert {len(ones) for ones in references.values()} == {5}
    assert all(isinstance(one, str) for ones in references.values() for one in ones)


def test_the_lengths_add_up(tiny: Artifacts) -> None:
    lengths = pd.read_csv(tiny.reports / "lengths.csv")
    assert lengths["captions"].sum() == pytest.approx(100, abs=0.01)
    assert lengths["references"].sum() == pytest.approx(100, abs=0.01)


def test_another_split_by_param(tiny: Artifacts, tmp_path: Path) -> None:
    assert metrics(tiny, tmp_path, split="val")["split"] == "val (lists)"


def test_max_length_is_kept(tiny: Artifacts, tmp_path: Path) -> None:
    metrics(tiny, tmp_path, max_length=3)
    assert pd.read_csv(tmp_path / "scores.csv")["words"].max() <= 3


def of_view(recipe: FeatureRecipe, **changes: Any) -> FeatureRecipe:
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
    for other, said in (
        (
            of_view(recipe, backbone="resnet50"),
            "its backbone is resnet50, but the model was trained on shuffle",
        ),
        (of_view(recipe, weights_digest="0" * 16), "its weights_digest"),
        (
            of_view(recipe, preprocessing=replace(view.preprocessing, size=96)),
            "its preprocessing",
        ),
        (replace(recipe, crop_mode="center"), "its crop_mode is center"),
        (replace(recipe, hflip=True), "its hflip is True"),
        (replace(recipe, views=(view, view)), "its number of views is 2"),
    ):
        path = other_features(tiny, tmp_path / "f.h5", other)
        with pytest.raises(InputError, match=said):
            tiny.evaluate(config(tmp_path), tmp_path, features=path)
    assert not (tmp_path / "metrics.json").exists()


def test_the_same_weights_under_another_name_are_the_same(tiny: Artifacts, tmp_path: Path) -> None:
    recipe = of_view(read_features(tiny.features).recipe, weights="renamed.pth")
    path = other_features(tiny, tmp_path / "f.h5", recipe)
    tiny.evaluate(config(tmp_path), tmp_path, features=path)
    before = json.loads((tiny.reports / "metrics.json").read_text())
    assert json.loads((tmp_path / "metrics.json").read_text())["bleu_4"] == before["bleu_4"]


def test_untrained_weights_are_called_so_wherever_figures_appear(
    tiny: Artifacts, tmp_path: Path
) -> None:
    recipe = of_view(read_features(tiny.features).recipe, weights="random:0")
    path = other_features(tiny, tmp_path / "f.h5", recipe)
    tiny.evaluate(config(tmp_path), tmp_path, features=path)
    made = json.loads((tmp_path / "metrics.json").read_text())
    assert made["backbone"] == "UNTRAINED"  # a column of DVC's tables
    assert "UNTRAINED" in made["meta"][0]["features"]
    assert "backbone" not in json.loads((tiny.reports / "metrics.json").read_text())


def test_a_truncated_model_is_one_line_and_older_results_stay(
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


def test_a_summary_of_another_tokeniser_is_refused(tiny: Artifacts, tmp_path: Path) -> None:
    table = tiny.with_table(tmp_path, tiny.table.read_text())
    write_info(table, replace(read_info(table), tokenizer="spaces-1"))
    with pytest.raises(InputError, match="made with the tokeniser spaces"):
        tiny.evaluate(config(tmp_path), tmp_path, table=table)
