"""The frozen CNN's weights as an artifact, and the trunk that they belong to."""

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

from pipeline.backbones.backbone import build_trunk, cut, pool
from pipeline.backbones.weights import read_backbones
from pipeline.config.schema import BackboneConfig
from pipeline.extraction.fuse import fuse
from pipeline.runtime.errors import InputError
from pipeline.stages.backbone import make_backbone, preprocessing_of
from tests.conftest import SHARED
from tests.server import serving

SMALL = "shufflenet_v2_x0_5"

# One of each family; the grid's shape for 224 px.
FAMILIES = {
    "alexnet": (256, 6, 6),
    "convnext_tiny": (768, 7, 7),
    "densenet121": (1024, 7, 7),
    "efficientnet_b0": (1280, 7, 7),
    "efficientnet_v2_s": (1280, 7, 7),
    "googlenet": (1024, 7, 7),
    "inception_v3": (2048, 5, 5),
    "maxvit_t": (512, 7, 7),
    "mnasnet0_5": (1280, 7, 7),
    "mobilenet_v2": (1280, 7, 7),
    "mobilenet_v3_small": (576, 7, 7),
    "regnet_x_400mf": (400, 7, 7),
    "regnet_y_400mf": (440, 7, 7),
    "resnet18": (512, 7, 7),
    "resnet50": (2048, 7, 7),
    "resnext50_32x4d": (2048, 7, 7),
    "shufflenet_v2_x0_5": (1024, 7, 7),
    "squeezenet1_1": (512, 13, 13),
    "swin_t": (768, 7, 7),
    "swin_v2_t": (768, 7, 7),
    "vgg11": (512, 7, 7),
    "vgg16_bn": (512, 7, 7),
    "vit_b_32": (768, 7, 7),
    "wide_resnet50_2": (2048, 7, 7),
}


def config(name: str = SMALL, weights: object = "random", seed: int = 0) -> BackboneConfig:
    return BackboneConfig(name=(name,), weights=(str(weights),), seed=seed)


def state_dict(name: str = SMALL) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return torchvision.models.get_model(name, weights=None).state_dict()


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_a_trunk_that_gives_its_last_grid(name: str) -> None:
    trunk = build_trunk(name)
    with torch.inference_mode():
        images = torch.randn(1, 3, 224, 224)
        grid = trunk(images)
        fused = fuse(trunk, images)(images)
    assert tuple(grid.shape) == (1, *FAMILIES[name])
    torch.testing.assert_close(fused, grid, rtol=1e-3, atol=1e-4 * float(grid.abs().max()))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "convnext_tiny"])
def test_a_fused_trunk_in_bfloat16_gives_grids_of_the_same_direction(name: str) -> None:
    """By oneDNN's convolutions where the processor has it, by autocast's elsewhere."""
    trunk = build_trunk(name)
    images = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        wanted = trunk(images).mean(dim=(2, 3))
        fused = fuse(trunk, images.bfloat16())
        with torch.autocast("cpu", torch.bfloat16):
            seen = fused(images).float().mean(dim=(2, 3))
    assert torch.cosine_similarity(seen, wanted).min() > 0.999


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("resnet18", "fc"),
        ("regnet_x_400mf", "fc"),
        ("shufflenet_v2_x0_5", "fc"),
        ("densenet121", "classifier"),
        ("mobilenet_v2", "classifier"),
        ("mobilenet_v3_small", "classifier"),
        ("efficientnet_b0", "classifier"),
        ("swin_t", "head"),
    ],
)
def test_the_classifiers_own_head_on_the_pooled_vector_gives_its_answer(
    name: str, head: str
) -> None:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval()
    images = torch.randn(1, 3, 128, 128)
    with torch.inference_mode():
        expected = model(images)
        answer = getattr(model, head)(pool(cut(model, name)(images)))
    torch.testing.assert_close(answer, expected)


def test_random_weights_are_the_seeds_and_say_so(tmp_path: Path) -> None:
    paths = [tmp_path / f"{n}.safetensors" for n in range(3)]
    for path, seed in zip(paths, (3, 3, 4), strict=True):
        make_backbone(path, config(seed=seed))
    assert paths[0].read_bytes() == paths[1].read_bytes() != paths[2].read_bytes()
    assert read_backbones(paths[0])[0].weights == "random:3"


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_local_state_dict_may_lack_what_the_trunk_does_not_use(
    tmp_path: Path, suffix: str
) -> None:
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
    """What puts a tensor of another kind in the first one's place."""
    name = "conv1.0.weight"
    return lambda weights: weights.update({name: change(weights[name])})


def quantised(tensor: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings():  # torch is about to give them up
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop("conv1.0.weight"), "they lack conv1.0.weight"),
        (lambda w: w.update({"conv1.0.weight": torch.zeros(3)}), "has shape"),
        (lambda w: w.update({"stage4.9.x": torch.zeros(3)}), "they have stage4.9.x"),
        (
            lambda w: w["conv1.0.weight"].fill_(float("nan")),
            "conv1.0.weight holds numbers that are not finite",
        ),
        (lambda w: w.update(note="hello"), "no state dict"),
        (lambda w: w.update({3: torch.zeros(3)}), "no state dict"),
        (replaced(torch.Tensor.to_sparse), r"conv1\.0\.weight is no plain tensor .*sparse_coo"),
        (replaced(lambda t: t.to("meta")), r"conv1\.0\.weight is no plain tensor .* on meta"),
        (replaced(lambda t: t + 1j), r"conv1\.0\.weight is no plain tensor .*complex64"),
        (replaced(quantised), r"conv1\.0\.weight is no plain tensor .*qint8"),
    ],
)
def test_weights_of_another_model_are_refused(tmp_path: Path, change: object, said: str) -> None:
    weights = state_dict()
    change(weights)  # type: ignore[operator]
    source, out = tmp_path / "own.pth", tmp_path / "backbone.safetensors"
    torch.save(weights, source)
    with pytest.raises(InputError, match=said):
        make_backbone(out, config(weights=source))
    assert not out.exists()


def test_weights_of_a_deeper_sister_are_refused(tmp_path: Path) -> None:
    """ResNet-34 has every layer of ResNet-18 in the same shape, and more of them."""
    source = tmp_path / "resnet34.pth"
    torch.save(state_dict("resnet34"), source)
    with pytest.raises(InputError, match=r"not of resnet18: they have layer1\.2"):
        make_backbone(tmp_path / "out.safetensors", config("resnet18", source))


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "ran",))  # type: ignore[return-value]

    source = tmp_path / "own.pth"
    torch.save(Evil(), source)
    with pytest.raises(InputError, match="cannot be read as a state dict"):
        make_backbone(tmp_path / "out.safetensors", config(weights=source))
    assert not (tmp_path / "ran").exists()


def test_weights_that_unpack_to_more_than_the_file_are_refused(tmp_path: Path) -> None:
    """torch.load would unpack what torch.save never packs."""
    plain, packed = tmp_path / "plain.pth", tmp_path / "own.pth"
    torch.save({"x": torch.zeros(1_000_000)}, plain)
    with (
        zipfile.ZipFile(plain) as source,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for member in source.infolist():
            target.writestr(member.filename, source.read(member))
    with pytest.raises(InputError, match=r"own\.pth unpacks to 40\d+ bytes, more than it has"):
        make_backbone(tmp_path / "out.safetensors", config(weights=packed))


@pytest.mark.parametrize(
    ("name", "weights", "said"),
    [
        ("resnet5", "random", "did you mean resnet50"),
        ("fasterrcnn_resnet50_fpn", "random", "no image classifier"),
        (SMALL, "IMAGENET1K_V9", "allowed are DEFAULT, IMAGENET1K_V1, random, or a file"),
        (SMALL, "nowhere/own.pth", "not a file; check the path"),
        (SMALL, "~nosuchuser/own.pth", "not a file; check the path"),
    ],
)
def test_unknown_names_are_answered_with_known_ones(
    tmp_path: Path, name: str, weights: str, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        make_backbone(tmp_path / "out.safetensors", config(name, weights))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cannot be read as a state dict"),
        (b"PK\x03\x04 not really", "is truncated or damaged; fetch it again"),
        (b"<html>", "cannot be read as a state dict"),
    ],
)
def test_a_damaged_weights_file_is_said(tmp_path: Path, content: bytes, said: str) -> None:
    source = tmp_path / "own.pth"
    source.write_bytes(content)
    with pytest.raises(InputError, match=rf"own\.pth {said}"):
        make_backbone(tmp_path / "out.safetensors", config(weights=source))


class TestTorchvisionWeights:
    """Fetched through torchvision, here from a server on loopback."""

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

    def test_the_right_file_is_taken(self, tmp_path: Path) -> None:
        content = self.content(tmp_path)
        digest = hashlib.sha256(content).hexdigest()[:8]
        (backbone,) = read_backbones(self.fetch(tmp_path, SMALL, content, digest))
        assert backbone.weights == "IMAGENET1K_V1"
        assert torch.equal(backbone.tensors["conv1.0.weight"], state_dict()["conv1.0.weight"])

    def test_another_file_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="not the file that torchvision expects"):
            self.fetch(tmp_path, SMALL, self.content(tmp_path), "01234567")

    def test_without_network_a_local_file_is_advised(self, tmp_path: Path) -> None:
        weights = torchvision.models.get_model_weights(SMALL).DEFAULT
        own = weights.value.url
        try:
            object.__setattr__(weights.value, "url", "http://127.0.0.1:9/x-01234567.pth")
            with pytest.raises(InputError, match="give backbone"):
                make_backbone(tmp_path / "out.safetensors", config(SMALL, "DEFAULT"))
        finally:
            object.__setattr__(weights.value, "url", own)


@pytest.mark.parametrize(
    "error", [ssl.SSLError("bad record"), http.client.IncompleteRead(b""), ConnectionResetError()]
)
def test_a_connection_that_breaks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def breaks(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", breaks)
    with pytest.raises(InputError, match=r"cannot fetch https://.*; give backbone\.weights"):
        make_backbone(tmp_path / "out.safetensors", config(SMALL, "DEFAULT"))


def test_preprocessing_is_the_weights_own() -> None:
    default = preprocessing_of("resnet50", "DEFAULT")
    assert (default.resize, default.size, default.interpolation) == (232, 224, "bilinear")
    assert preprocessing_of("resnet50", "IMAGENET1K_V1").resize == 256
    assert preprocessing_of("inception_v3", "DEFAULT").mean == (0.5, 0.5, 0.5)


def test_a_rotten_backbone_is_said(tmp_path: Path) -> None:
    path = tmp_path / "backbone.safetensors"
    make_backbone(path, config())
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-5] ^= 0x40
    for rotten in (whole[:-100], whole[:20], b"", bytes(flipped)):
        path.write_bytes(rotten)
        with pytest.raises(InputError, match=r"backbone\.safetensors"):
            read_backbones(path)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the weights in ../shared")
@pytest.mark.parametrize("name", ["mobilenet_v2", "squeezenet1_1"])
def test_real_weights_fit(tmp_path: Path, name: str) -> None:
    make_backbone(tmp_path / "out.safetensors", config(name, SHARED / f"weights/{name}.pth"))
    assert read_backbones(tmp_path / "out.safetensors")[0].name == name
