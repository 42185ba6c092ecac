"""Several views of an image in one cache: CNNs, sizes, and mirror images."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from pipeline.backbones.weights import read_backbones
from pipeline.config.load import load_params
from pipeline.config.schema import BackboneConfig, EvaluateConfig, ExtractConfig, TrainConfig
from pipeline.dataset.feature_cache import read_features
from pipeline.extraction.feature_extractor import default_batch_size
from pipeline.extraction.plan import make_recipe
from pipeline.images.archive import ImageArchive
from pipeline.images.unreadable import write_unreadable
from pipeline.stages.backbone import make_backbone
from pipeline.stages.extract import extract
from pipeline.stages.train import train
from tests.conftest import SHAPES, Artifacts, command, one_line, write_params

TWO = {"name": ["shufflenet_v2_x0_5", "squeezenet1_1"], "weights": [str(SHAPES), "random"]}
GRID = {"extract": {"layer": "grid"}, "train": {"decoder": "spatial_attention", "epochs": 1}}


def features(
    images: Path, backbone: Path, folder: Path, name: str = "some", **changes: Any
) -> np.ndarray:
    """Extract float32 features with these params."""
    groups: dict[str, dict[str, Any]] = {"train": GRID["train"]} if "layer" in changes else {}
    extraction = {"dtype": "float32", **changes}
    params = write_params(folder / f"{name}.yaml", extract=extraction, **groups)
    out = folder / f"{name}.h5"
    unreadable = folder / "unreadable.csv"
    write_unreadable(unreadable, {})
    extract(images, unreadable, backbone, out, load_params(params, ExtractConfig))
    return np.array(read_features(out).array)


@pytest.fixture(scope="module")
def mirror_zips(tiny: Artifacts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of the tiny data set and their mirror images; as PNG, which is lossless."""
    folder = tmp_path_factory.mktemp("mirror")
    with (
        ImageArchive(tiny.images) as images,
        zipfile.ZipFile(folder / "plain.zip", "w") as plain,
        zipfile.ZipFile(folder / "mirrored.zip", "w") as mirrored,
    ):
        for image_id in images.ids[:8]:
            image = Image.open(io.BytesIO(images.read(image_id)))
            for archive, version in ((plain, image), (mirrored, ImageOps.mirror(image))):
                file = io.BytesIO()
                version.save(file, "PNG")
                archive.writestr(f"{Path(image_id).stem}.png", file.getvalue())
    return folder


@pytest.fixture(scope="module")
def two_cnns(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    params = write_params(folder / "params.yaml", backbone=TWO)
    make_backbone(folder / "two.safetensors", load_params(params, BackboneConfig))
    return folder / "two.safetensors"


def test_vectors_of_all_sizes_are_concatenated(tiny: Artifacts, tmp_path: Path) -> None:
    both = features(tiny.images, tiny.backbone, tmp_path, "both", image_size=[64, 96])
    for part, size in ((both[:, :1024], 64), (both[:, 1024:], 96)):
        alone = features(tiny.images, tiny.backbone, tmp_path, "alone", image_size=size)
        np.testing.assert_allclose(part, alone, rtol=1e-4, atol=1e-5)


def test_null_stands_for_the_size_of_the_weights(tiny: Artifacts, tmp_path: Path) -> None:
    params = write_params(tmp_path / "params.yaml", extract={"image_size": [None, 96]})
    recipe = make_recipe(read_backbones(tiny.backbone), load_params(params, ExtractConfig))
    assert [view.preprocessing.size for view in recipe.views] == [224, 96]


def test_vectors_of_all_cnns_are_concatenated(
    tiny: Artifacts, two_cnns: Path, tmp_path: Path
) -> None:
    both = features(tiny.images, two_cnns, tmp_path)
    assert both.shape == (62, 1024 + 512)
    alone = features(tiny.images, tiny.backbone, tmp_path, "alone")
    np.testing.assert_allclose(both[:, :1024], alone, rtol=1e-4, atol=1e-5)


def test_with_hflip_vectors_are_the_mean_of_both_orientations(
    tiny: Artifacts, mirror_zips: Path, tmp_path: Path
) -> None:
    plain, mirrored = (
        features(mirror_zips / f"{name}.zip", tiny.backbone, tmp_path, name)
        for name in ("plain", "mirrored")
    )
    assert np.abs(plain - mirrored).max() > 0.05
    mean = features(mirror_zips / "plain.zip", tiny.backbone, tmp_path, hflip=True)
    np.testing.assert_allclose(mean, (plain + mirrored) / 2, rtol=1e-4, atol=1e-5)


def test_with_hflip_mirrored_cells_are_unmirrored(
    tiny: Artifacts, mirror_zips: Path, tmp_path: Path
) -> None:
    plain, mirrored = (
        features(mirror_zips / f"{name}.zip", tiny.backbone, tmp_path, name, layer="grid")
        for name in ("plain", "mirrored")
    )
    mean = features(mirror_zips / "plain.zip", tiny.backbone, tmp_path, layer="grid", hflip=True)
    np.testing.assert_allclose(mean, (plain + mirrored[:, :, ::-1]) / 2, rtol=1e-4, atol=1e-5)


def test_grids_of_other_sizes_are_pooled_to_the_size_of_the_first(
    tiny: Artifacts, tmp_path: Path
) -> None:
    both = features(
        tiny.images, tiny.backbone, tmp_path, "both", layer="grid", image_size=[64, 128]
    )
    assert both.shape == (62, 2, 2, 2048)
    large = features(
        tiny.images, tiny.backbone, tmp_path, "large", layer="grid", image_size=128
    )  # 4 x 4
    means = large.reshape(62, 2, 2, 2, 2, 1024).mean(axis=(2, 4))
    np.testing.assert_allclose(both[..., 1024:], means, rtol=1e-4, atol=1e-5)


def test_grid_size_is_the_number_of_cells_per_side(tiny: Artifacts, tmp_path: Path) -> None:
    grid = features(tiny.images, tiny.backbone, tmp_path, layer="grid", image_size=128, grid_size=3)
    assert grid.shape == (62, 3, 3, 1024)


def test_on_a_cpu_larger_images_come_in_smaller_batches(tiny: Artifacts, tmp_path: Path) -> None:
    batches = {}
    for size in (64, 224, 320, 448, 1000):
        params = write_params(tmp_path / "params.yaml", extract={"image_size": [64, size]})
        recipe = make_recipe(read_backbones(tiny.backbone), load_params(params, ExtractConfig))
        batches[size] = default_batch_size(recipe, torch.device("cpu"))
    assert batches == {64: 4, 224: 4, 320: 2, 448: 1, 1000: 1}


@pytest.mark.parametrize("layer", ["pooled", "grid"])
def test_captioning_photos_uses_the_recipe_of_the_cache(
    tiny: Artifacts, two_cnns: Path, tmp_path: Path, layer: str
) -> None:
    """With two CNNs, two sizes and hflip, `showtell caption` agrees with `evaluate`."""
    groups = {"train": {"epochs": 1}} if layer == "pooled" else GRID
    views = {"layer": layer, "image_size": [64, 96], "hflip": True}
    params = write_params(tmp_path / "params.yaml", **{**groups, "extract": views})
    cache, model = tmp_path / "f.h5", tmp_path / "model.safetensors"
    extract(tiny.images, tiny.unreadable, two_cnns, cache, load_params(params, ExtractConfig))
    assert read_features(cache).array.shape[-1] == 2 * (1024 + 512)
    train(
        *(cache, tiny.table, tiny.vocabulary, model, tmp_path / "h.csv"),
        load_params(params, TrainConfig),
    )
    out = tmp_path / "reports"
    tiny.evaluate(load_params(params, EvaluateConfig), out, model=model, features=cache)
    table_info = json.loads((out / "metrics.json").read_text())["meta"][0]["features"]
    assert "squeezenet1_1 (random:0, UNTRAINED) at 96 px" in table_info
    assert "mirrored" in table_info
    expected = captions_by_id((out / "captions.json").read_text())
    photos = tmp_path / "photos"
    photos.mkdir()
    with zipfile.ZipFile(tiny.images) as archive:
        for member in archive.namelist():
            if Path(member).name in expected:
                (photos / Path(member).name).write_bytes(archive.read(member))
    options = ("--beam-size", 2, "--max-length", 12, "--format", "coco", "--device", "cpu")
    result = command("caption", photos, "--model", model, "--backbone", two_cnns, *options)
    captions = captions_by_id(result.stdout)
    assert sum(captions[key] == expected[key] for key in expected) >= len(expected) - 1


def captions_by_id(text: str) -> dict[str, str]:
    return {entry["image_id"]: entry["caption"] for entry in json.loads(text)}


def test_a_missing_cnn_is_reported(tiny: Artifacts, two_cnns: Path, tmp_path: Path) -> None:
    params = write_params(tmp_path / "params.yaml", train={"epochs": 1})
    cache, model = tmp_path / "f.h5", tmp_path / "model.safetensors"
    extract(tiny.images, tiny.unreadable, two_cnns, cache, load_params(params, ExtractConfig))
    train(
        *(cache, tiny.table, tiny.vocabulary, model, tmp_path / "h.csv"),
        load_params(params, TrainConfig),
    )
    photo = tmp_path / "photo.png"
    Image.new("RGB", (80, 80), "red").save(photo)
    result = command("caption", photo, "--model", model, "--backbone", tiny.backbone)
    assert "is not the one that the features came from: squeezenet1_1" in one_line(result)
