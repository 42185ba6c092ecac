"""timm's models as backbones: weights, tags, preprocessing, and the whole graph with them."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save, save_file
from torch import Tensor

from pipeline.backbones.backbone import load_backbone
from pipeline.backbones.timm_models import build, default_preprocessing
from pipeline.backbones.weights import read_backbones
from pipeline.captioning.captioner import Captioner
from pipeline.config.load import load_params
from pipeline.config.schema import BackboneConfig, EvaluateConfig, ExtractConfig, TrainConfig
from pipeline.dataset.feature_cache import read_features
from pipeline.images.archive import ImageArchive
from pipeline.runtime.errors import InputError
from pipeline.stages.backbone import make_backbone
from pipeline.stages.extract import extract
from pipeline.stages.train import train
from tests.conftest import ROOT, Artifacts, one_line, write_params

SMALL = "mobilenetv3_small_050"


def config(name: str, weights: object = "random") -> BackboneConfig:
    return BackboneConfig(name=(f"timm/{name}",), weights=(str(weights),), seed=0)


def state_dict(name: str = SMALL) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return timm.create_model(name).state_dict()


@pytest.mark.parametrize(
    ("changes", "shape"),
    [
        ({"name": "timm/tf_efficientnet_lite0", "layer": "grid"}, (2, 2, 1280)),
        ({"name": "timm/vit_tiny_patch16_224", "layer": "grid"}, (4, 4, 192)),
        ({"name": "timm/vit_tiny_patch16_224", "pooling": "class_token"}, (192,)),
        ({"name": ["timm/vit_tiny_patch16_224", "shufflenet_v2_x0_5"]}, (192 + 1024,)),
    ],
)
def test_from_archive_to_captions_and_captioning_gives_the_same_features_to_the_byte(
    tiny: Artifacts, tmp_path: Path, changes: dict[str, Any], shape: tuple[int, ...]
) -> None:
    name = changes.pop("name")
    weights = "random" if isinstance(name, str) else ["random"] * len(name)
    attends = changes.get("layer") == "grid"
    decoder = "spatial_attention" if attends else "show_and_tell"
    params = write_params(
        tmp_path / "params.yaml",
        backbone={"name": name, "weights": weights},
        extract={"image_size": 64, "dtype": "float32", **changes},
        train={"decoder": decoder, "epochs": 1},
    )
    backbone, cache = tmp_path / "backbone.safetensors", tmp_path / "features.h5"
    make_backbone(backbone, load_params(params, BackboneConfig))
    extract(tiny.images, tiny.unreadable, backbone, cache, load_params(params, ExtractConfig))
    features = read_features(cache)
    assert features.array.shape == (62, *shape)
    model = tmp_path / "model.safetensors"
    train(
        *(cache, tiny.table, tiny.vocabulary, model, tmp_path / "history.csv"),
        load_params(params, TrainConfig),
    )
    tiny.evaluate(load_params(params, EvaluateConfig), tmp_path / "out", model, cache)
    captioner = Captioner(backbone, [model], torch.device("cpu"))
    with ImageArchive(tiny.images) as images:
        for row in (0, 7):
            photo = images.read(features.ids[row])
            alone = captioner.features([captioner.preprocess(photo)])
            assert np.array_equal(alone[0].numpy(), features.array[row])
            assert captioner.caption(photo)


def test_preprocessing_is_that_of_the_weights() -> None:
    lite = default_preprocessing("timm/tf_efficientnet_lite2", "own.safetensors")
    assert (lite.resize, lite.size, lite.interpolation) == (292, 260, "bicubic")
    assert lite.mean == lite.std == (0.5, 0.5, 0.5)
    # Two tags of one architecture differ in the crop; a tag may stand in the name.
    crops = [
        default_preprocessing(name, tag).resize
        for name, tag in [
            ("timm/resnet50", "a1_in1k"),
            ("timm/resnet50", "tv_in1k"),
            ("timm/resnet50.tv_in1k", "random:0"),
        ]
    ]
    assert crops == [235, 256, 256]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_local_state_dict_may_have_the_head(tmp_path: Path, suffix: str) -> None:
    weights, source = state_dict(), tmp_path / f"own{suffix}"
    if suffix == ".pth":
        torch.save(weights, source)
    else:
        save_file(weights, source)
    make_backbone(tmp_path / "backbone.safetensors", config(SMALL, source))
    (backbone,) = read_backbones(tmp_path / "backbone.safetensors")
    assert (backbone.name, backbone.weights) == (f"timm/{SMALL}", source.name)
    assert not any(name.startswith("classifier") for name in backbone.tensors)
    assert all(torch.equal(weights[name], tensor) for name, tensor in backbone.tensors.items())


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("mobilenetv3_smal_050", "random", "did you mean timm/mobilenetv3_small_050"),
        ("nothing_like_it", "random", "timm has no model 'nothing_like_it'; for example timm/"),
        ("resnet50", "IMAGENET1K_V1", "timm's tags are: a1_in1k, "),
        ("resnet50.no_such", "random", "timm/resnet50 has no weights 'no_such'"),
        ("resnet50.a1_in1k", "a2_in1k", "has the tag a1_in1k and backbone.weights is 'a2_in1k'"),
        ("crossvit_tiny_240", "random", "cannot be a backbone: for images of 240 px it gives list"),
    ],
)
def test_what_cannot_work_is_refused_by_what_it_lacks(
    tmp_path: Path, name: str, weights: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make_backbone(tmp_path / "backbone.safetensors", config(name, weights))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["timm/resnet10t", "timm/mixer_s32_224"])
def test_the_class_token_of_a_model_without_one_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"has no class token; set extract\.pooling: mean"):
        build(name, class_token=True)


def test_without_timm_its_names_are_refused_and_torchvisions_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match="timm/resnet10t needs the package timm; run: pip install"):
        make_backbone(tmp_path / "backbone.safetensors", config("resnet10t"))
    own = BackboneConfig(name=("shufflenet_v2_x0_5",), weights=("random",), seed=0)
    make_backbone(tmp_path / "backbone.safetensors", own)


@dataclass
class Hub:
    """A hub of models on loopback, and the paths that were asked of it."""

    url: str
    asked: list[str]


@contextmanager
def serving_hub(files: dict[str, bytes]) -> Iterator[Hub]:
    """Serve files as the Hugging Face Hub does: /REPOSITORY/resolve/main/NAME."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            content = files.get(self.path)
            self.send_response(200 if content is not None else 404)
            self.send_header("X-Repo-Commit", "0" * 40)
            if content is None:
                self.send_header("X-Error-Code", "EntryNotFound")
            else:
                self.send_header("ETag", '"0123"')
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content or b"")

        def do_HEAD(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield Hub(f"http://127.0.0.1:{server.server_port}", asked)
    finally:
        server.shutdown()
        server.server_close()


def backbone_from_hub(hub: Hub, tmp_path: Path, weights: str) -> subprocess.CompletedProcess[str]:
    params = write_params(
        tmp_path / "params.yaml", backbone={"name": f"timm/{SMALL}", "weights": weights}
    )
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "cache")}
    environment["HF_HUB_DISABLE_XET"] = "1"
    out = tmp_path / "backbone.safetensors"
    return subprocess.run(
        [sys.executable, "-m", "pipeline", "backbone", "--params", params, "--out", out],
        **{"cwd": ROOT, "env": environment, "capture_output": True, "text": True, "check": False},
    )


@pytest.mark.parametrize("weights", ["DEFAULT", "lamb_in1k"])
def test_weights_are_fetched_through_timm(tmp_path: Path, weights: str) -> None:
    path = f"/timm/{SMALL}.lamb_in1k/resolve/main/model.safetensors"
    with serving_hub({path: save(state_dict())}) as hub:
        result = backbone_from_hub(hub, tmp_path, weights)
    assert result.returncode == 0, result.stderr
    assert path in hub.asked
    (backbone,) = read_backbones(tmp_path / "backbone.safetensors")
    assert (backbone.name, backbone.weights) == (f"timm/{SMALL}", "lamb_in1k")
    name = "conv_stem.weight"
    assert torch.equal(backbone.tensors[name], state_dict()[name])


@pytest.mark.parametrize("content", [None, b"not weights"])
def test_a_hub_without_the_right_file_is_reported(tmp_path: Path, content: bytes | None) -> None:
    path = f"/timm/{SMALL}.lamb_in1k/resolve/main/model.safetensors"
    with serving_hub({} if content is None else {path: content}) as hub:
        result = backbone_from_hub(hub, tmp_path, "DEFAULT")
    assert "cannot fetch the weights lamb_in1k" in one_line(result)
    assert not (tmp_path / "backbone.safetensors").exists()


@pytest.mark.parametrize("size", [160, 224, 288])
def test_position_embeddings_are_interpolated_to_other_sizes(size: int, tmp_path: Path) -> None:
    make_backbone(tmp_path / "backbone.safetensors", config("vit_tiny_patch16_224"))
    (weights,) = read_backbones(tmp_path / "backbone.safetensors")
    with torch.inference_mode():
        grid = load_backbone(weights, size)(torch.zeros(1, 3, size, size))
    assert tuple(grid.shape) == (1, 192, size // 16, size // 16)
