"""An exported captioner: ONNX graphs and a module without torch say what torch says."""

import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from pipeline.backbones.backbone import build_backbone
from pipeline.backbones.weights import BackboneWeights, read_backbones, write_backbones
from pipeline.captioning.captioner import Captioner
from pipeline.captioning.files import BACKBONE, MODEL
from pipeline.captions.vocabulary import SPECIAL, Vocabulary
from pipeline.decoders.captioner_file import TrainedDecoder, read_model, write_model
from pipeline.decoders.decoder import Decoder, StepDecoder
from pipeline.decoders.registry import DECODERS
from pipeline.evaluation.ensemble import Ensemble
from pipeline.extraction.feature_extractor import FeatureExtractor
from pipeline.extraction.preprocess import preprocess
from pipeline.features.recipe import FeatureRecipe, Preprocessing, View
from pipeline.generation.beam_search import BeamSearch, BeamSearchConfig
from tests.conftest import ROOT
from tests.test_decoder import GRID, decoder

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from pipeline.export.onnx_captioner import OnnxCaptioner, decode, resize
from pipeline.export.onnx_graphs import export_decoder, export_encoder, export_onnx

CPU = torch.device("cpu")
SEARCHES = (
    BeamSearchConfig(beam_size=1, max_length=6),
    BeamSearchConfig(beam_size=4, length_penalty=0.7, max_length=9, no_repeat_ngram_size=2),
    BeamSearchConfig(beam_size=3, max_length=7, no_repeat_ngram_size=1, allow_unk=True),
)
SEARCH = ("beam_size", "length_penalty", "max_length", "no_repeat_ngram_size", "allow_unk")
# Each decoder is exported once, which takes seconds: both cells in both kinds of recurrence.
CELLS = {
    "show_and_tell": "lstm",
    "spatial_attention": "gru",
    "adaptive_attention": "lstm",
    "soft_attention": "gru",
    "top_down_attention": "lstm",
    "transformer": "lstm",  # has none
}


def backbone(name: str, size: int) -> BackboneWeights:
    torch.manual_seed(0)
    pre = Preprocessing(size, size, "bicubic", (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    return BackboneWeights(name, "random:0", pre, build_backbone(name, size).state_dict())


def recipe_of(
    backbones: list[BackboneWeights], layer: str = "pooled", hflip: bool = False
) -> FeatureRecipe:
    views = (View(one.name, one.weights, one.digest, one.preprocessing) for one in backbones)
    return FeatureRecipe(layer, "mean", "squash", hflip, None, tuple(views))


def decided(model: Decoder) -> Decoder:
    """With larger weights, so that no two captions are equally good."""
    for weight in model.parameters():
        weight.data.mul_(3)
    return model.eval()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small CNN and a decoder, both untrained."""
    folder, cnn = tmp_path_factory.mktemp("models"), backbone("timm/test_efficientnet", 64)
    recipe = recipe_of([cnn])
    shape = FeatureExtractor([cnn], recipe, CPU).feature_shape
    model = decided(decoder("show_and_tell", feature_shape=shape))
    model.set_feature_stats(torch.zeros(shape), torch.full(shape, 0.1))
    words = Vocabulary((*SPECIAL, *(f"word{i}" for i in range(26))))
    write_backbones(folder / BACKBONE, [cnn])
    write_model(folder / MODEL, TrainedDecoder(model, words, recipe, "split", 9))
    return folder


@pytest.fixture(scope="module")
def exported(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(models, tmp_path_factory.mktemp("exported"))


def export(models: Path, out: Path) -> Path:
    model = read_model(models / MODEL, CPU)
    search = BeamSearchConfig(beam_size=5, length_penalty=1.0, max_length=model.max_length)
    parts = (model.recipe, model.decoder, model.vocabulary)
    export_onnx(out, read_backbones(models / BACKBONE), *parts, search)
    return out


def assert_same_captions(folder: Path, model: StepDecoder, *shape: int) -> None:
    captioner = OnnxCaptioner(folder)
    for images in (1, 7):
        features = torch.randn(images, *shape)
        for config in SEARCHES:
            expected = [best for (best,) in BeamSearch(model, config)(features)]
            settings = {name: getattr(config, name) for name in SEARCH}
            found = captioner.search(features.numpy(), **settings)
            assert [tokens for tokens, _ in found] == [best.token_ids for best in expected]
            scores = [best.score for best in expected]
            assert [score for _, score in found] == pytest.approx(scores, abs=1e-4)


@pytest.mark.parametrize("name", DECODERS)
def test_every_decoder_finds_the_captions_of_torch(
    exported: Path, tmp_path: Path, name: str
) -> None:
    layers = 1 if DECODERS[name].single_layer else 2
    model = decided(decoder(name, rnn_type=CELLS[name], num_layers=layers))
    shutil.copytree(exported, tmp_path, dirs_exist_ok=True)
    shape = model.config.feature_shape
    export_decoder(tmp_path, model, torch.randn(2, *shape))
    assert_same_captions(tmp_path, model, *shape)


def test_an_ensemble_is_exported_as_one_model(exported: Path, tmp_path: Path) -> None:
    model = Ensemble([decoder("show_and_tell").eval(), decoder("spatial_attention").eval()])
    shutil.copytree(exported, tmp_path, dirs_exist_ok=True)
    export_decoder(tmp_path, model, torch.randn(2, *GRID))
    assert_same_captions(tmp_path, model, *GRID)


def photos(folder: Path) -> list[Path]:
    """Files of several kinds and sizes."""
    rng = np.random.default_rng(0)
    images = {
        "small.png": (20, 31, 4),
        "wide.jpg": (60, 200, 3),
        "tall.webp": (300, 90, 4),
        "grey.gif": (64, 64),
    }
    for name, shape in images.items():
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(folder / name)
    turned = Image.fromarray(rng.integers(0, 256, (80, 50, 3), dtype=np.uint8))
    exif = turned.getexif()
    exif[0x0112] = 6  # the camera was held upright
    turned.save(folder / "turned.jpg", exif=exif)
    Image.fromarray(rng.integers(0, 65536, (50, 70), dtype=np.uint16)).save(folder / "deep.png")
    turned.convert("CMYK").save(folder / "print.jpg")
    return sorted(folder.iterdir())


def test_images_become_the_same_bytes_and_captions(
    models: Path, exported: Path, tmp_path: Path
) -> None:
    captioner = Captioner(models / BACKBONE, [models / MODEL], CPU)
    onnx = OnnxCaptioner(exported)
    paths = photos(tmp_path)
    for path in paths:
        for ours, theirs in zip(captioner.preprocess(path), onnx.preprocess(path), strict=True):
            assert np.array_equal(ours.numpy(), theirs), path
    search = BeamSearchConfig(5, 1.0, captioner.max_length)
    expected = [made.text for made in captioner.caption(paths, search)]
    assert len(set(expected)) > 1
    assert onnx.caption(list(paths), batch_size=3) == expected
    assert onnx.caption([paths[0].read_bytes()]) == expected[:1]


def test_a_centre_crop_is_the_same_bytes(exported: Path, tmp_path: Path) -> None:
    folder, sizes = tmp_path / "export", {"resize": 75, "size": 64, "interpolation": "bicubic"}
    shutil.copytree(exported, folder)
    config = json.loads((folder / "onnx.json").read_text(encoding="utf-8"))
    config |= {"crop_mode": "center", "views": [sizes]}
    (folder / "onnx.json").write_text(json.dumps(config), encoding="utf-8")
    view = View("", "", "", Preprocessing(**sizes, mean=(0, 0, 0), std=(1, 1, 1)))
    recipe = FeatureRecipe("pooled", "mean", "center", False, None, (view,))
    onnx = OnnxCaptioner(folder)
    (tmp_path / "photos").mkdir()
    for path in photos(tmp_path / "photos"):
        (ours,) = preprocess(path, recipe)
        assert np.array_equal(ours.numpy(), onnx.preprocess(path)[0]), path


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resizing_is_torchs_to_the_byte_up_and_down(interpolation: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        height, width, *size = (int(side) for side in rng.integers(1, 300, 4))
        image = rng.integers(0, 2, (height, width, 3), dtype=np.uint8) * 255  # overshoots
        planes = torch.from_numpy(image).permute(2, 0, 1).unsqueeze(0)
        planes = F.interpolate(planes, size=size, mode=interpolation, antialias=True)
        expected = planes[0].permute(1, 2, 0).numpy()
        assert np.array_equal(resize(image, (size[0], size[1]), interpolation), expected)


@pytest.mark.parametrize(
    ("names", "layer", "hflip"),
    [
        (["timm/test_vit"], "pooled", False),
        (["timm/test_efficientnet", "timm/test_convnext"], "grid", True),
    ],
)
def test_the_encoder_has_torchs_features(
    tmp_path: Path, names: list[str], layer: str, hflip: bool
) -> None:
    backbones = [backbone(name, size) for size, name in zip((64, 96), names, strict=False)]
    recipe = recipe_of(backbones, layer, hflip)
    export_encoder(tmp_path, backbones, recipe)
    import onnxruntime

    session = onnxruntime.InferenceSession(tmp_path / "encoder.onnx")
    for images in (1, 3):
        batch = [
            torch.randint(0, 256, (images, size, size, 3), dtype=torch.uint8)
            for size in (64, 96)[: len(names)]
        ]
        feed = {f"images_{i}": view.numpy() for i, view in enumerate(batch)}
        expected = FeatureExtractor(backbones, recipe, CPU)(batch).numpy()
        np.testing.assert_allclose(session.run(None, feed)[0], expected, atol=1e-4, rtol=1e-4)


def test_an_export_has_the_same_bytes_again_and_no_paths(
    models: Path, exported: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    again = export(models, tmp_path)
    assert capfd.readouterr() == ("", "")
    names = sorted(path.name for path in again.iterdir())
    graphs = ["encoder.onnx", "memory.onnx", "step.onnx"]
    assert names == sorted([*graphs, "onnx.json", "onnx_captioner.py"])
    for name in names:
        content = (again / name).read_bytes()
        assert content == (exported / name).read_bytes(), name
        if name in graphs:
            assert b"pipeline/" not in content
            assert b"site-packages" not in content


def test_the_module_runs_alone_and_without_torch(exported: Path, tmp_path: Path) -> None:
    module, photo = exported / "onnx_captioner.py", tmp_path / "photo.png"
    assert len(module.read_text(encoding="utf-8").splitlines()) < 200
    Image.new("RGB", (80, 60), "red").save(photo)
    (tmp_path / "bad.png").write_bytes(b"no image")
    code = (
        "import runpy, sys; sys.modules.update(torch=None, torchvision=None, pipeline=None);"
        "sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    run = [sys.executable, "-c", code, module, "none.png", "bad.png", photo]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    errors = done.stderr.splitlines()
    assert [line.split(" (")[0] for line in errors] == [
        "error: none.png cannot be read",
        "error: bad.png cannot be read",
    ]
    assert done.stdout == f"{photo}\t{OnnxCaptioner(exported).caption(photo)}\n"
    usage = subprocess.run([*run[:4]], capture_output=True, text=True, check=False)
    assert usage.stderr == "usage: python onnx_captioner.py PHOTO…\n"


@pytest.mark.parametrize("text", ["docs/captioning.md", "pipeline/export/model_card.md"])
def test_the_examples_of_the_docs_and_the_card_run_as_written(
    exported: Path, tmp_path: Path, text: str
) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / text).read_text("utf-8"), re.S | re.M)
    (code,) = (block for block in blocks if "OnnxCaptioner" in block)
    (tmp_path / "onnx").symlink_to(exported)
    Image.new("RGB", (80, 60), "red").save(tmp_path / "photo.jpg")
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False)
    caption = OnnxCaptioner(exported).caption(tmp_path / "photo.jpg")
    assert (done.stdout, done.stderr) == (f"{caption}\n", "")


def test_what_is_no_image_is_refused_in_one_line() -> None:
    for content in (b"", b"no image", png()[:200]):
        with pytest.raises(ValueError, match="the image cannot be read"):
            decode(content)


def png() -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()
