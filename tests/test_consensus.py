"""Consensus reranking: the captions of similar training images choose among the beams'."""

import json
import operator
import shutil
import zipfile
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from pipeline.captioning.folder import load_folder
from pipeline.captions.vocabulary import SPECIAL, Vocabulary
from pipeline.dataset.feature_cache import read_features
from pipeline.decoders.captioner_file import TrainedDecoder, read_model
from pipeline.evaluation.confidence import parse_search
from pipeline.features.recipe import FeatureRecipe
from pipeline.generation.beam_search import BeamSearch, BeamSearchConfig
from pipeline.metrics.rewards import CiderReward, References
from pipeline.reranking import consensus
from pipeline.reranking.consensus import build_search
from pipeline.reranking.neighbors import (
    Neighbors,
    build_neighbors,
    read_neighbors,
    write_neighbors,
)
from pipeline.runtime.errors import ArtifactError, InputError
from tests.conftest import Artifacts, command, one_line, write_params
from tests.test_beam_search import SECOND, TABLE, A, B, C, D, TableDecoder

CPU = torch.device("cpu")
WORDS = Vocabulary((*SPECIAL, "a", "b", "c", "d"))
# What people say of four training images; two are like the first image, two like the second.
CAPTIONS = [[[A, A, B], [A, B]], [[A, B, C]], [[D, C], [D]], [[C, D], [C, C, D]]]


class TwoImages(TableDecoder):
    """The table decoder, for vectors whose first number is the image's."""

    def __init__(self) -> None:
        super().__init__(TABLE, SECOND)

    def init_state(self, features: Tensor) -> object:
        return super().init_state(features[:, 0])


def neighbors_of(recipe: FeatureRecipe, vectors: list[list[float]] | None = None) -> Neighbors:
    made = torch.tensor(vectors or [[0.0, 1.0], [0.1, 0.9], [1.0, 0.0], [0.9, 0.2]])
    return build_neighbors(made, CAPTIONS, WORDS, recipe, "split")


@pytest.fixture(scope="module")
def recipe(tiny: Artifacts) -> FeatureRecipe:
    return read_features(tiny.features).recipe


@pytest.mark.parametrize("groups", [1, 2])
def test_the_score_is_that_of_the_search_and_the_neighbours_mean_cider(
    groups: int, recipe: FeatureRecipe
) -> None:
    features = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    config = BeamSearchConfig(4, 1.0, 4, beam_groups=groups, consensus_weight=0.3, num_neighbors=2)
    made = build_search(TwoImages(), config, partial(neighbors_of, recipe))(features)
    found = BeamSearch(TwoImages(), replace(config, num_return_sequences=4 // groups))(features)
    score = CiderReward(References(CAPTIONS, len(WORDS)))
    near = [part.tolist() for part in neighbors_of(recipe).nearest(features, 2)]
    assert [set(images) for images in near[1]] == [{0, 1}, {2, 3}]
    for captions, plain, weights, images in zip(made, found, *near, strict=True):
        expected = {}
        for caption in plain:
            ids = torch.tensor([caption.token_ids])
            ciders = [float(score(torch.tensor([image]), ids)) for image in images]
            cider = sum(map(operator.mul, weights, ciders))
            expected[tuple(caption.token_ids)] = caption.score + 0.3 * cider
        assert {tuple(one.token_ids): one.score for one in captions} == pytest.approx(expected)
        scores = [one.score for one in captions]
        assert len(scores) == len(plain)
        assert scores == sorted(scores, reverse=True)


def test_images_scored_one_by_one_have_the_scores_of_a_batch(
    recipe: FeatureRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    config = BeamSearchConfig(4, 1.0, 4, consensus_weight=0.3)
    search = build_search(TwoImages(), config, partial(neighbors_of, recipe))
    together = search(features)
    monkeypatch.setattr(consensus, "MAX_ELEMENTS", 1)
    assert search(features) == together


def test_neighbours_choose_another_caption_than_the_likeliest(recipe: FeatureRecipe) -> None:
    features = torch.tensor([[0.0, 1.0]])
    others = replace(neighbors_of(recipe), captions=[[[B, C]], [[B, C]], [[D]], [[D]]])
    config = BeamSearchConfig(16, 1.0, 4, num_neighbors=2)
    ((likeliest, *_),) = BeamSearch(TwoImages(), config)(features)
    weighted = replace(config, consensus_weight=10.0)
    ((chosen, *_),) = build_search(TwoImages(), weighted, lambda: others)(features)
    assert likeliest.token_ids[:2] != chosen.token_ids[:2] == [B, C]


def test_near_is_a_large_cosine_of_standardised_means(recipe: FeatureRecipe) -> None:
    # The second number varies a hundred times as much and must not decide alone.
    vectors = [[0.0, 100.0], [0.2, -100.0], [1.0, 90.0], [0.9, -90.0]]
    features = torch.tensor([[0.1, 5.0], [0.9, -5.0]])  # nearly the mean in the second
    _, near = neighbors_of(recipe, vectors).nearest(features, 2)
    assert [set(row) for row in near.tolist()] == [{0, 1}, {2, 3}]


def test_a_grid_has_the_neighbours_of_its_mean(recipe: FeatureRecipe) -> None:
    neighbors, grid = neighbors_of(recipe), torch.rand(5, 3, 3, 2)
    expected = neighbors.nearest(grid.mean(dim=(1, 2)), 4)
    for count in (4, 99):  # there are no more
        assert all(map(torch.equal, neighbors.nearest(grid, count), expected))


def test_the_more_similar_a_neighbour_the_more_it_weighs(recipe: FeatureRecipe) -> None:
    vectors = [[0.0, 1.0], [0.0, 1.0], [0.3, 0.9], [1.0, 0.0]]  # the first two are the same
    ((first, second, third, fourth),), ((*_, last),) = (
        part.tolist() for part in neighbors_of(recipe, vectors).nearest(torch.tensor([[0, 1.0]]), 4)
    )
    assert first == second > third > fourth
    assert first + second + third + fourth == pytest.approx(1)
    assert last == 3


@pytest.fixture(scope="module")
def model(tiny: Artifacts, recipe: FeatureRecipe) -> TrainedDecoder:
    """A model that the neighbours fit."""
    trained = read_model(tiny.model, CPU)
    return replace(trained, vocabulary=WORDS, recipe=recipe, split_digest="split")


def test_a_file_of_neighbours_gives_back_what_was_written(
    model: TrainedDecoder, tmp_path: Path
) -> None:
    neighbors, path = neighbors_of(model.recipe), tmp_path / "neighbors.safetensors"
    write_neighbors(path, neighbors)
    read = read_neighbors(path, model, CPU)
    assert read.captions == CAPTIONS
    assert torch.allclose(read.vectors, neighbors.vectors, atol=1e-3)
    first = path.read_bytes()
    write_neighbors(path, neighbors)
    assert path.read_bytes() == first
    # Vectors have the neighbours of grids' means, as in an ensemble of both.
    read_neighbors(path, replace(model, recipe=replace(model.recipe, layer="grid")), CPU)


def test_neighbours_of_something_else_are_refused(
    tiny: Artifacts, model: TrainedDecoder, tmp_path: Path
) -> None:
    path = tmp_path / "neighbors.safetensors"
    write_neighbors(path, neighbors_of(model.recipe))
    others = {
        "another vocabulary": replace(model, vocabulary=Vocabulary((*SPECIAL, "a", "b"))),
        "crop_mode": replace(model, recipe=replace(model.recipe, crop_mode="center")),
        "another split": replace(model, split_digest="other"),  # its test images may be in it
    }
    for reason, other in others.items():
        with pytest.raises(InputError, match=reason):
            read_neighbors(path, other, CPU)
    with pytest.raises(InputError, match="not a file of neighbours"):
        read_neighbors(tiny.model, model, CPU)


@pytest.mark.parametrize("captions", [[], [[[A]], [[B]], [[C]]], [[[A]], [[B]], [[C]], [[99]]]])
def test_neighbours_whose_parts_do_not_fit_are_refused(
    captions: list[list[list[int]]], model: TrainedDecoder, tmp_path: Path
) -> None:
    path = tmp_path / "neighbors.safetensors"
    write_neighbors(path, replace(neighbors_of(model.recipe), captions=captions))
    with pytest.raises(InputError, match="do not fit together"):
        read_neighbors(path, model, CPU)


@pytest.fixture(scope="module")
def weighted(tiny: Artifacts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose evaluation reranks."""
    folder = tmp_path_factory.mktemp("weighted")
    write_params(folder / "params.yaml", evaluate={"beam_size": 4, "consensus_weight": 1.0})
    for part in ("data", "features", "models"):
        shutil.copytree(tiny.folder / part, folder / part)
    for stage in ("neighbors", "calibrate", "evaluate"):
        done = command(stage, cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


def test_photos_are_captioned_as_the_evaluation_does(weighted: Path, tiny: Artifacts) -> None:
    """`showtell caption` has the search of the calibration, and finds the neighbours beside it."""
    captions = json.loads((weighted / "reports/captions.json").read_text())
    with zipfile.ZipFile(tiny.images) as archive:
        names = {Path(name).name: name for name in archive.namelist()}
        for row in captions[:4]:
            (weighted / row["image_id"]).write_bytes(archive.read(names[row["image_id"]]))
    photos = [row["image_id"] for row in captions[:4]]
    made, plain = (
        [json.loads(line) for line in command(*words, *photos, cwd=weighted).stdout.splitlines()]
        for words in (
            ("caption", "--format", "jsonl"),
            ("caption", "--format", "jsonl", "--consensus-weight", "0"),
        )
    )
    assert [row["caption"] for row in made] == [row["caption"] for row in captions[:4]]
    assert all(row["score"] > other["score"] for row, other in zip(made, plain, strict=True))


def test_without_the_file_a_weight_is_one_clear_line(weighted: Path, tmp_path: Path) -> None:
    project = tmp_path / "project"
    shutil.copytree(weighted, project)
    Image.new("RGB", (64, 64)).save(project / "photo.jpg")
    (project / "models/neighbors.safetensors").unlink()
    for stage in ("calibrate", "evaluate", "caption"):
        photos = [next(project.glob("*.jpg"))] if stage == "caption" else []
        line = one_line(command(stage, *photos, cwd=project))
        assert "models/neighbors.safetensors does not exist" in line


def test_an_exported_captioner_has_training_captions_only_if_it_needs_them(
    weighted: Path, tiny: Artifacts, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    assert command("export", shared, cwd=weighted).returncode == 0
    assert load_folder(shared, CPU).search.consensus_weight == 1.0
    assert "holds the training captions" in (shared / "README.md").read_text()
    # The ONNX captioner cannot rerank; the folder stays as it was.
    assert "consensus" in one_line(command("export", shared, "--onnx", cwd=weighted))
    neighbors = shared / "neighbors.safetensors"
    load_folder(shared, CPU)
    neighbors.write_bytes(b"other")
    with pytest.raises(InputError, match="not the file that was exported"):
        load_folder(shared, CPU)
    options = ("--model", tiny.model, "--reports-dir", tiny.reports)
    assert command("export", shared, *options).returncode == 0
    assert load_folder(shared, CPU).search.consensus_weight == 0.0
    assert not neighbors.exists()
    assert "holds the training captions" not in (shared / "README.md").read_text()


def test_damaged_neighbours_are_reported(weighted: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "neighbors.safetensors"
    content = bytearray((weighted / "models/neighbors.safetensors").read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    done = command("evaluate", "--neighbors", damaged, "--out-dir", tmp_path / "out", cwd=weighted)
    assert "damaged" in one_line(done)
    assert not (tmp_path / "out").exists()


def test_a_search_of_before_consensus_reranking_has_no_weight() -> None:
    search = asdict(BeamSearchConfig(5, 1.0))
    del search["consensus_weight"], search["num_neighbors"]
    assert parse_search(search, where="config.json") == BeamSearchConfig(5, 1.0)
    for other in ({}, {**search, "of_a_later_version": 3}):
        with pytest.raises(ArtifactError):
            parse_search(other, where="config.json")


def test_a_number_that_never_varies_counts_for_nothing(recipe: FeatureRecipe) -> None:
    neighbors = neighbors_of(recipe, [[0.0, 7.0], [0.1, 7.0], [1.0, 7.0], [0.9, 7.0]])
    _, near = neighbors.nearest(torch.tensor([[0.0, 9.0]]), 2)
    assert set(near[0].tolist()) == {0, 1}
