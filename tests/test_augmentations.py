"""Augmented views: cached beside each image's own features, and drawn in training only."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.captions.table import read_table
from pipeline.captions.vocabulary import read_vocabulary
from pipeline.config.load import load_params
from pipeline.config.schema import ExtractConfig, ScstConfig, TrainConfig
from pipeline.dataset.feature_cache import FeatureCache, read_features
from pipeline.dataset.feature_dataset import ORIGINAL, FeatureDataset
from pipeline.dataset.split import load_split
from pipeline.extraction.augment import AREA, choose_augmentation
from pipeline.runtime.errors import ArtifactError
from pipeline.stages.extract import extract
from pipeline.stages.scst import scst
from pipeline.stages.train import train
from tests.conftest import Artifacts, write_params

CPU = torch.device("cpu")


def extract_with(tiny: Artifacts, folder: Path, **changes: Any) -> Path:
    groups: dict[str, Any] = (
        {"train": {"decoder": "spatial_attention"}} if "layer" in changes else {}
    )
    extraction = {"augmentations": 3, **changes}
    params = write_params(folder / "params.yaml", extract=extraction, **groups)
    out = folder / "features.h5"
    config = load_params(params, ExtractConfig)
    extract(tiny.images, tiny.unreadable, tiny.backbone, out, config)
    return out


@pytest.fixture(scope="module")
def cache(tiny: Artifacts, tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    return read_features(extract_with(tiny, tmp_path_factory.mktemp("augmented")))


def test_number_0_is_the_image_1_its_mirror_image_and_others_are_crops() -> None:
    image = torch.arange(60 * 80 * 3, dtype=torch.int32).view(60, 80, 3)
    whole, mirrored, *crops = (choose_augmentation("a.jpg", k, 60, 80)(image) for k in range(40))
    assert torch.equal(whole, image)
    assert torch.equal(mirrored, image.flip(1))
    for crop in crops:
        area = crop.shape[0] * crop.shape[1] / (60 * 80)
        assert AREA[0] - 0.05 < area < AREA[1] + 0.05
    assert len({(crop.shape, int(crop[0, 0, 0])) for crop in crops}) > 30
    left_to_right = [bool(crop[0, 0, 0] < crop[0, -1, 0]) for crop in crops]
    assert left_to_right == [True, False] * 19


def test_the_smallest_images_can_be_cropped() -> None:
    for number in range(20):
        assert choose_augmentation("a.jpg", number, 1, 2)(torch.zeros(1, 2, 3)).numel() > 0


def test_the_images_own_rows_are_as_without_augmentations(
    tiny: Artifacts, cache: FeatureCache
) -> None:
    plain = read_features(tiny.features)
    assert cache.ids == plain.ids
    assert (plain.augmentations, cache.augmentations) == (0, 3)
    own, *others = np.split(np.array(cache.array, np.float32), 4)
    np.testing.assert_allclose(own, np.array(plain.array, np.float32), atol=2e-2)
    for other in others:
        assert np.abs(other - own).mean() > 1e-3


def test_extraction_is_repeatable(tiny: Artifacts, cache: FeatureCache, tmp_path: Path) -> None:
    again = extract_with(tiny, tmp_path, batch_size=3, num_workers=1)
    assert again.read_bytes() == cache.path.read_bytes()


def test_training_draws_the_image_or_one_of_its_augmentations(cache: FeatureCache) -> None:
    features = FeatureDataset(cache, cache.ids[5:25], CPU, augmented=True)
    views = [torch.from_numpy(cache.array[k * 62 + 5 : k * 62 + 25]).float() for k in range(4)]
    assert torch.equal(features[torch.arange(20)], views[0])
    counts = torch.zeros(4)
    torch.manual_seed(0)
    for _ in range(100):
        drawn = features.draw(torch.arange(20))
        found = torch.stack([(drawn == view).all(dim=1) for view in views])  # (4, 20)
        assert (found.sum(dim=0) == 1).all()
        counts += found.sum(dim=1)
    expected = torch.tensor([ORIGINAL, *[(1 - ORIGINAL) / 3] * 3])
    assert torch.allclose(counts / counts.sum(), expected, atol=0.04)
    plain = FeatureDataset(cache, cache.ids[5:25], CPU)
    assert torch.equal(plain.draw(torch.arange(20)), views[0])
    assert torch.equal(plain.mean, features.mean)


def test_only_the_training_split_draws(tiny: Artifacts, cache: FeatureCache) -> None:
    table = read_table(tiny.table)
    vocabulary = read_vocabulary(tiny.vocabulary, table.info.table_digest)
    torch.manual_seed(0)
    for name in ("train", "val"):
        split = load_split(cache, table, name, vocabulary, CPU)
        images = torch.arange(len(split.features))
        same = torch.equal(split.features.draw(images), split.features[images])
        assert same == (name == "val")


def test_grids_are_drawn_from_the_file(tiny: Artifacts, tmp_path: Path) -> None:
    grids = read_features(extract_with(tiny, tmp_path, layer="grid"))
    features = FeatureDataset(grids, grids.ids[:4], CPU, augmented=True)
    torch.manual_seed(0)
    drawn = features.draw(torch.zeros(50, dtype=torch.int64))
    own = [torch.from_numpy(grids.array[k * 62]).float() for k in range(4)]
    found = {next(k for k, one in enumerate(own) if torch.equal(row, one)) for row in drawn}
    assert found == {0, 1, 2, 3}


def test_a_damaged_augmentation_is_named_by_its_image(
    tiny: Artifacts, cache: FeatureCache, tmp_path: Path
) -> None:
    content = bytearray(cache.path.read_bytes())
    row = bytes(cache.array[2 * 62 + 7].tobytes())
    content[content.find(row)] ^= 1
    (tmp_path / "rotten.h5").write_bytes(content)
    rotten = read_features(tmp_path / "rotten.h5")
    FeatureDataset(rotten, rotten.ids, CPU)  # its own rows are whole
    with pytest.raises(ArtifactError, match=f"the features of '{rotten.ids[7]}' are not what"):
        FeatureDataset(rotten, rotten.ids, CPU, augmented=True)


def test_training_and_self_critical_training_are_repeatable(
    tiny: Artifacts, cache: FeatureCache, tmp_path: Path
) -> None:
    params = write_params(tmp_path / "params.yaml", scst={"epochs": 1}, train={"epochs": 1})
    made = []
    for name in ("a", "b"):
        trained, final = tmp_path / f"{name}.trained", tmp_path / f"{name}.final"
        inputs = (cache.path, tiny.table)
        config = load_params(params, TrainConfig)
        train(*inputs, tiny.vocabulary, trained, tmp_path / "history.csv", config)
        scst(trained, *inputs, final, tmp_path / "scst.csv", load_params(params, ScstConfig))
        made.append((trained.read_bytes(), final.read_bytes()))
    assert made[0] == made[1]
