"""The feature cache: every image once, the same bytes each time, and self-describing."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from pipeline.backbones.backbone import build_backbone
from pipeline.backbones.torchvision_models import default_preprocessing
from pipeline.backbones.weights import BackboneWeights, read_backbones, write_backbones
from pipeline.config.load import load_params
from pipeline.config.schema import ExtractConfig
from pipeline.dataset.feature_cache import read_features
from pipeline.dataset.feature_dataset import FeatureDataset
from pipeline.extraction.feature_extractor import FeatureExtractor
from pipeline.extraction.plan import make_recipe
from pipeline.extraction.precision import select_dtype
from pipeline.extraction.preprocess import preprocess
from pipeline.features.cache_file import row_checksums
from pipeline.images.archive import ImageArchive
from pipeline.runtime.errors import InputError
from pipeline.stages.extract import extract
from tests.conftest import Artifacts, command, make_zip, one_line, write_params
from tests.helpers.images import jpeg, scene

CPU = torch.device("cpu")


def config(folder: Path, **changes: Any) -> ExtractConfig:
    groups = {"extract": changes}
    if changes.get("layer") == "grid":
        groups["train"] = {"decoder": "spatial_attention"}
    return load_params(write_params(folder / "params.yaml", **groups), ExtractConfig)


def test_the_file_describes_itself(tiny: Artifacts) -> None:
    cache = read_features(tiny.features)
    (backbone,), (view,) = read_backbones(tiny.backbone), cache.recipe.views
    assert (view.backbone, view.weights) == ("shufflenet_v2_x0_5", "shapes.safetensors")
    assert view.weights_digest == backbone.digest
    assert (cache.recipe.crop_mode, view.preprocessing.size) == ("squash", 64)
    assert cache.array.shape == (62, 1024)
    assert cache.array.dtype == np.float16
    assert cache.ids == ImageArchive(tiny.images).ids


def test_a_grid_pools_to_the_pooled_vector(tiny: Artifacts, tmp_path: Path) -> None:
    out = tmp_path / "grid.h5"
    extract(
        tiny.images,
        tiny.unreadable,
        tiny.backbone,
        out,
        config(tmp_path, layer="grid", dtype="float32"),
    )
    grid = read_features(out).array
    assert grid.shape == (62, 2, 2, 1024)
    pooled = read_features(tiny.features).array
    np.testing.assert_allclose(grid.mean(axis=(1, 2)), pooled, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("changes", [{}, {"num_workers": 1}, {"num_workers": 7}])
def test_the_same_bytes_every_time(
    tiny: Artifacts, tmp_path: Path, changes: dict[str, Any]
) -> None:
    out = tmp_path / "again.h5"
    extract(tiny.images, tiny.unreadable, tiny.backbone, out, config(tmp_path, **changes))
    assert out.read_bytes() == tiny.features.read_bytes()


@pytest.mark.parametrize("batch_size", [1, 5, 1000])
def test_the_batch_size_does_not_matter(tiny: Artifacts, tmp_path: Path, batch_size: int) -> None:
    out = tmp_path / "again.h5"
    extract(
        tiny.images, tiny.unreadable, tiny.backbone, out, config(tmp_path, batch_size=batch_size)
    )
    again, before = read_features(out), read_features(tiny.features)
    assert again.ids == before.ids
    np.testing.assert_allclose(again.array, before.array, rtol=1e-2, atol=1e-3)


def test_bfloat16_keeps_the_direction(tiny: Artifacts, tmp_path: Path) -> None:
    out = tmp_path / "bf16.h5"
    extract(
        tiny.images, tiny.unreadable, tiny.backbone, out, config(tmp_path, precision="bfloat16")
    )
    a, b = (
        torch.from_numpy(read_features(p).array.astype(np.float32)) for p in (out, tiny.features)
    )
    assert torch.cosine_similarity(a, b).min() > 0.999


def with_large_weights(backbone: BackboneWeights) -> BackboneWeights:
    """Its features overflow float16."""
    name = "conv5.1.weight"
    tensors = {**backbone.tensors, name: backbone.tensors[name] * 1e6}
    return BackboneWeights(backbone.name, "large", backbone.preprocessing, tensors)


@pytest.mark.parametrize(
    ("candidates", "selected"),
    [
        ([], torch.float32),
        ([torch.float16, torch.bfloat16], torch.float16),
        (["overflow"], torch.float32),
    ],
)
def test_the_first_precision_that_keeps_the_features_is_selected(
    tiny: Artifacts, tmp_path: Path, candidates: list[Any], selected: torch.dtype
) -> None:
    (backbone,) = read_backbones(tiny.backbone)
    if "overflow" in candidates:  # of float16's range
        candidates = [torch.float16]
        backbone = with_large_weights(backbone)
    recipe = make_recipe([backbone], config(tmp_path))
    images = [torch.randint(0, 256, (9, 64, 64, 3), dtype=torch.uint8)]
    cnn = select_dtype(
        lambda precision: FeatureExtractor([backbone], recipe, CPU, precision),
        candidates,
        images,
        batch=4,
    )
    assert cnn.precision is selected


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("inception_v3", 64, "64 px, its weights are for 299; the minimum is 75 px"),
        ("vit_b_32", 320, "320 px, its weights are for 224; use that size"),
        ("maxvit_t", 320, "320 px, its weights are for 224; use that size"),
    ],
)
def test_for_an_unsupported_size_a_supported_one_is_suggested(
    tmp_path: Path, name: str, size: int, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    pre = default_preprocessing(name, "DEFAULT")
    backbone = BackboneWeights(name, "random:0", pre, build_backbone(name).state_dict())
    recipe = make_recipe([backbone], config(tmp_path, image_size=size))
    with pytest.raises(InputError) as error:
        FeatureExtractor([backbone], recipe, CPU)
    assert f"{name} does not support images of {message}" in str(error.value)
    assert f"(extract.image_size: {pre.size}, or null)" in str(error.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("crop_mode", ["center", "squash"])
@pytest.mark.parametrize("size", [(90, 60), (60, 90), (500, 375), (64, 64), (31, 400)])
def test_preprocessing_matches_torchvision(
    tiny: Artifacts, tmp_path: Path, crop_mode: str, size: tuple[int, int]
) -> None:
    recipe = make_recipe(read_backbones(tiny.backbone), config(tmp_path, crop_mode=crop_mode))
    image = scene(size=size).rotate(20)
    pre = recipe.views[0].preprocessing
    f = torchvision.transforms.functional
    if crop_mode == "squash":
        expected = f.resize(image, [pre.size, pre.size])
    else:
        expected = f.center_crop(f.resize(image, [pre.resize]), [pre.size])
    (prepared,) = preprocess(jpeg(image, format="PNG"), recipe)
    difference = prepared.permute(2, 0, 1).int() - f.pil_to_tensor(expected).int()
    assert difference.abs().max() <= 1  # Pillow's resizing rounds differently


def huge() -> bytes:
    """A PNG of 30,000 x 30,000 pixels in a few kilobytes."""
    return jpeg(Image.new("1", (30_000, 30_000)), format="PNG")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"b\.jpg in .* is empty"),
        (jpeg(scene())[:-200], r"b\.jpg in .* cannot be decoded"),
        (b"<html>gone</html>", r"b\.jpg in .* is not an image"),
        (huge(), r"b\.jpg in .* is 30000 x 30000, more than 200 megapixels"),
    ],
)
def test_a_bad_image_is_reported_and_leaves_nothing(
    tiny: Artifacts, tmp_path: Path, content: bytes, message: str
) -> None:
    images = make_zip(tmp_path / "i.zip", {"a.jpg": jpeg(scene()), "b.jpg": content})
    out = tmp_path / "features.h5"
    with pytest.raises(InputError, match=message):
        extract(images, tiny.unreadable, tiny.backbone, out, config(tmp_path))
    assert [path.name for path in tmp_path.iterdir() if path.suffix in (".h5", ".part")] == []


def test_an_overflow_of_the_dtype_is_reported(tiny: Artifacts, tmp_path: Path) -> None:
    (backbone,) = read_backbones(tiny.backbone)
    weights = tmp_path / "large.safetensors"
    write_backbones(weights, [with_large_weights(backbone)])
    with pytest.raises(InputError, match=r"not finite; set extract\.dtype: float32"):
        extract(tiny.images, tiny.unreadable, weights, tmp_path / "f.h5", config(tmp_path))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_reported(tiny: Artifacts, tmp_path: Path) -> None:
    params = write_params(tmp_path / "params.yaml", extract={"device": "cuda"})
    result = command(
        *("extract", "--images", tiny.images, "--backbone", tiny.backbone),
        *("--unreadable", tiny.unreadable),
        *("--out", tmp_path / "f.h5", "--params", params),
    )
    assert "no CUDA device is visible" in one_line(result)


def test_a_damaged_cache_is_reported(tiny: Artifacts, tmp_path: Path) -> None:
    whole = tiny.features.read_bytes()
    path = tmp_path / "features.h5"
    for damaged in (whole[:-1], whole[:1000], b"", b"\x89HDF\r\n\x1a\n" + bytes(5000)):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"features\.h5 is damaged"):
            read_features(path)


def test_missing_damaged_or_not_finite_rows_are_reported(tiny: Artifacts, tmp_path: Path) -> None:
    path = tmp_path / "features.h5"
    path.write_bytes(tiny.features.read_bytes())
    with h5py.File(path, "r+") as file:
        file["features"][3, 5] = np.nan
    cache = read_features(path)
    with pytest.raises(InputError, match=r"damaged: the features of '000003_.*' are not what was"):
        FeatureDataset(cache, cache.ids, CPU)
    FeatureDataset(cache, cache.ids[4:], CPU)
    with h5py.File(path, "r+") as file:  # a matching checksum
        file["checksums"][3] = row_checksums(file["features"][3:4])[0]
    cache = read_features(path)
    with pytest.raises(InputError, match="not finite"):
        FeatureDataset(cache, cache.ids, CPU)
    with pytest.raises(InputError, match=r"lacks 1 image, 'other\.jpg'"):
        FeatureDataset(cache, [cache.ids[0], "other.jpg"], CPU)


def test_damage_during_training_is_reported(tiny: Artifacts, tmp_path: Path) -> None:
    path = tmp_path / "grid.h5"
    extract(tiny.images, tiny.unreadable, tiny.backbone, path, config(tmp_path, layer="grid"))
    cache = read_features(path)
    features = FeatureDataset(cache, cache.ids, CPU)
    offset = path.read_bytes().index(cache.array[7].tobytes())
    with path.open("r+b") as file:
        file.seek(offset + 100)
        file.write(b"\x12\x34")
    features[torch.tensor([6, 8])]
    with pytest.raises(InputError, match=r"grid\.h5 is damaged: the features of"):
        features[torch.tensor([6, 7])]


@pytest.mark.parametrize("layer", ["pooled", "grid"])
def test_rows_come_in_the_order_of_the_ids(tiny: Artifacts, tmp_path: Path, layer: str) -> None:
    out = tmp_path / "f.h5"
    extract(tiny.images, tiny.unreadable, tiny.backbone, out, config(tmp_path, layer=layer))
    cache = read_features(out)
    ids = cache.ids[::-7]
    features = FeatureDataset(cache, ids, CPU)
    rows = [cache.array[cache.ids.index(image_id)] for image_id in ids]
    expected = torch.from_numpy(np.stack(rows).astype(np.float32))
    assert torch.equal(features[:], expected)
    assert torch.equal(features[torch.tensor([3, 1, 3])], expected[[3, 1, 3]])
    cells = expected.flatten(0, -2).double()
    torch.testing.assert_close(features.mean, cells.mean(dim=0).float())
    torch.testing.assert_close(features.std, cells.std(dim=0, correction=0).float())
