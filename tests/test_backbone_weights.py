"""The frozen CNN's weights: from torchvision, from a local file, or random."""

import hashlib
import http.client
import ssl
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from pipeline.backbones.weights import read_backbones
from pipeline.config.schema import BackboneConfig
from pipeline.runtime.errors import InputError
from pipeline.stages.backbone import make_backbone
from tests.conftest import SHARED
from tests.helpers.server import serving

SMALL = "shufflenet_v2_x0_5"


def config(name: str = SMALL, weights: object = "random", seed: int = 0) -> BackboneConfig:
    return BackboneConfig(name=(name,), weights=(str(weights),), seed=seed)


def state_dict(name: str = SMALL) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return torchvision.models.get_model(name, weights=None).state_dict()


@pytest.mark.parametrize("name", [SMALL, "timm/mobilenetv3_small_050", "timm/cait_xxs24_224"])
def test_random_weights_depend_on_the_seed_and_are_labelled(tmp_path: Path, name: str) -> None:
    paths = [tmp_path / f"{n}.safetensors" for n in range(3)]
    for path, seed in zip(paths, (3, 3, 4), strict=True):
        make_backbone(path, config(name, seed=seed))
    assert paths[0].read_bytes() == paths[1].read_bytes() != paths[2].read_bytes()
    assert read_backbones(paths[0])[0].weights == "random:3"


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_local_state_dict_may_lack_the_head(tmp_path: Path, suffix: str) -> None:
    weights = {name: t for name, t in state_dict().items() if not name.startswith("fc")}
    source, out = tmp_path / f"own{suffix}", tmp_path / "backbone.safetensors"
    if suffix == ".pth":
        torch.save({"state_dict": weights}, source)
    else:
        save_file(weights, source)
    make_backbone(out, config(weights=source))
    (backbone,) = read_backbones(out)
    assert backbone.weights == source.name
    assert all(torch.equal(weights[name], tensor) for name, tensor in backbone.tensors.items())


def replaced(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict], None]:
    """A function that replaces the first tensor by one of another kind."""
    name = "conv1.0.weight"
    return lambda weights: weights.update({name: change(weights[name])})


def quantised(tensor: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings():  # torch deprecates quantised tensors
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("conv1.0.weight"), "they lack conv1.0.weight"),
        (lambda w: w.update({"conv1.0.weight": torch.zeros(3)}), "has shape"),
        (lambda w: w.update({"stage4.9.x": torch.zeros(3)}), "they have stage4.9.x"),
        (
            lambda w: w["conv1.0.weight"].fill_(float("nan")),
            "conv1.0.weight has values that are not finite",
        ),
        (lambda w: w.update(note="hello"), "not a state dict"),
        (lambda w: w.update({3: torch.zeros(3)}), "not a state dict"),
        (replaced(torch.Tensor.to_sparse), r"conv1\.0\.weight is not a plain tensor .*sparse_coo"),
        (replaced(lambda t: t.to("meta")), r"conv1\.0\.weight is not a plain tensor .* on meta"),
        (replaced(lambda t: t + 1j), r"conv1\.0\.weight is not a plain tensor .*complex64"),
        (replaced(quantised), r"conv1\.0\.weight is not a plain tensor .*qint8"),
    ],
)
def test_weights_of_another_model_are_rejected(
    tmp_path: Path, change: object, message: str
) -> None:
    weights = state_dict()
    change(weights)  # type: ignore[operator]
    source, out = tmp_path / "own.pth", tmp_path / "backbone.safetensors"
    torch.save(weights, source)
    with pytest.raises(InputError, match=message):
        make_backbone(out, config(weights=source))
    assert not out.exists()


def test_weights_of_a_deeper_model_are_rejected(tmp_path: Path) -> None:
    """ResNet-34 has all layers of ResNet-18, in the same shapes, and more."""
    source = tmp_path / "resnet34.pth"
    torch.save(state_dict("resnet34"), source)
    with pytest.raises(InputError, match=r"not of resnet18: they have layer1\.2"):
        make_backbone(tmp_path / "out.safetensors", config("resnet18", source))


def test_a_pickle_that_would_run_code_is_rejected(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "ran",))  # type: ignore[return-value]

    source = tmp_path / "own.pth"
    torch.save(Evil(), source)
    with pytest.raises(InputError, match="cannot be read as a state dict"):
        make_backbone(tmp_path / "out.safetensors", config(weights=source))
    assert not (tmp_path / "ran").exists()


def test_a_zip_bomb_of_weights_is_rejected(tmp_path: Path) -> None:
    """torch.load would unpack compressed members, which torch.save never writes."""
    plain, packed = tmp_path / "plain.pth", tmp_path / "own.pth"
    torch.save({"x": torch.zeros(1_000_000)}, plain)
    with (
        zipfile.ZipFile(plain) as source,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for member in source.infolist():
            target.writestr(member.filename, source.read(member))
    with pytest.raises(InputError, match=r"own\.pth unpacks to 40\d+ bytes, more than its size"):
        make_backbone(tmp_path / "out.safetensors", config(weights=packed))


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("resnet5", "random", "did you mean resnet50"),
        ("fasterrcnn_resnet50_fpn", "random", "no image classifier"),
        (SMALL, "IMAGENET1K_V9", "allowed are DEFAULT, IMAGENET1K_V1, random, or a file"),
        (SMALL, "nowhere/own.pth", "does not exist; check the path"),
        (SMALL, "~nosuchuser/own.pth", "does not exist; check the path"),
    ],
)
def test_for_unknown_names_known_ones_are_suggested(
    tmp_path: Path, name: str, weights: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make_backbone(tmp_path / "out.safetensors", config(name, weights))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as a state dict"),
        (b"PK\x03\x04 not really", "is truncated or damaged; fetch it again"),
        (b"<html>", "cannot be read as a state dict"),
    ],
)
def test_a_damaged_weights_file_is_reported(tmp_path: Path, content: bytes, message: str) -> None:
    source = tmp_path / "own.pth"
    source.write_bytes(content)
    with pytest.raises(InputError, match=rf"own\.pth {message}"):
        make_backbone(tmp_path / "out.safetensors", config(weights=source))


class TestTorchvisionWeights:
    """Weights fetched through torchvision, here from a server on loopback."""

    @pytest.fixture(autouse=True)
    def _own_hub(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))

    def fetch(self, tmp_path: Path, name: str, content: bytes, digest: str) -> Path:
        weights = torchvision.models.get_model_weights(name).DEFAULT
        own = weights.value.url
        out = tmp_path / "backbone.safetensors"
        with serving(content) as server:
            try:
                url = server.url.replace("archive.zip", f"{name}-{digest}.pth")
                object.__setattr__(weights.value, "url", url)
                make_backbone(out, config(name, "DEFAULT"))
            finally:
                object.__setattr__(weights.value, "url", own)
        return out

    def content(self, tmp_path: Path) -> bytes:
        torch.save(state_dict(), tmp_path / "weights.pth")
        return (tmp_path / "weights.pth").read_bytes()

    def test_the_right_file_is_used(self, tmp_path: Path) -> None:
        content = self.content(tmp_path)
        digest = hashlib.sha256(content).hexdigest()[:8]
        (backbone,) = read_backbones(self.fetch(tmp_path, SMALL, content, digest))
        assert backbone.weights == "IMAGENET1K_V1"
        assert torch.equal(backbone.tensors["conv1.0.weight"], state_dict()["conv1.0.weight"])

    def test_another_file_is_rejected(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="not the file that torchvision expects"):
            self.fetch(tmp_path, SMALL, self.content(tmp_path), "01234567")

    def test_without_network_a_local_file_is_suggested(self, tmp_path: Path) -> None:
        weights = torchvision.models.get_model_weights(SMALL).DEFAULT
        own = weights.value.url
        try:
            object.__setattr__(weights.value, "url", "http://127.0.0.1:9/x-01234567.pth")
            with pytest.raises(InputError, match="set backbone"):
                make_backbone(tmp_path / "out.safetensors", config(SMALL, "DEFAULT"))
        finally:
            object.__setattr__(weights.value, "url", own)


@pytest.mark.parametrize(
    "error", [ssl.SSLError("bad record"), http.client.IncompleteRead(b""), ConnectionResetError()]
)
def test_a_connection_that_breaks_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def breaks(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", breaks)
    with pytest.raises(InputError, match=r"cannot fetch https://.*; set backbone\.weights"):
        make_backbone(tmp_path / "out.safetensors", config(SMALL, "DEFAULT"))


def test_a_damaged_backbone_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "backbone.safetensors"
    make_backbone(path, config())
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-5] ^= 0x40
    for damaged in (whole[:-100], whole[:20], b"", bytes(flipped)):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"backbone\.safetensors"):
            read_backbones(path)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the weights in ../shared")
@pytest.mark.parametrize("name", ["mobilenet_v2", "squeezenet1_1"])
def test_real_weights_fit(tmp_path: Path, name: str) -> None:
    make_backbone(tmp_path / "out.safetensors", config(name, SHARED / f"weights/{name}.pth"))
    assert read_backbones(tmp_path / "out.safetensors")[0].name == name
