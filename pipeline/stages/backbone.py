"""Stage 3: the frozen CNN's weights, as an artifact of their own."""

import http.client
import logging
import ssl
import sys
import urllib.error
import warnings
import zipfile
from pathlib import Path
from typing import Annotated, Any

import torch
import torchvision
import typer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pipeline.backbones.backbone import build_trunk, check_name
from pipeline.backbones.weights import BackboneWeights, write_backbones
from pipeline.config.load import load_params
from pipeline.config.schema import BackboneConfig
from pipeline.features.recipe import Preprocessing
from pipeline.runtime.errors import InputError
from pipeline.runtime.files import named_file

log = logging.getLogger(__name__)

WEIGHT_SUFFIXES = (".pth", ".pt", ".safetensors")

# What can become a trunk's numbers: no complex, quantised or packed type can.
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)

# With their own weights these renormalise their input from ImageNet's mean and deviation to
# (x - 0.5) / 0.5 (torchvision's `transform_input`); said here as preprocessing instead.
TRANSFORM_INPUT_MODELS = ("googlenet", "inception_v3")


def make_backbone(out: Path, config: BackboneConfig) -> None:
    """Write the trunks' weights to `out`.

    Raises:
        InputError: a model or its weights are unknown, cannot be had, or do not fit together.
    """
    for name in config.name:  # before anything is fetched
        check_name(name)
    backbones = [
        _backbone(name, weights, config.seed)
        for name, weights in zip(config.name, config.weights, strict=True)
    ]
    write_backbones(out, backbones)
    for backbone in backbones:
        size = sum(tensor.numel() for tensor in backbone.tensors.values())
        log.info("%s (%s): %.1f M weights", backbone.name, backbone.weights, size / 1e6)


def _backbone(name: str, weights: str, seed: int) -> BackboneWeights:
    if weights == "random":
        torch.manual_seed(seed)
        label, given = f"random:{seed}", None
    elif weights.lower().endswith(WEIGHT_SUFFIXES):
        label, given = Path(weights).name, _load_state_dict_file(weights)
    else:
        label, given = _from_torchvision(name, weights)
    expected = build_trunk(name).state_dict()
    what = f"the weights {weights} are not of {name}"
    tensors = expected if given is None else _match_state_dict(given, expected, what)
    return BackboneWeights(name, label, preprocessing_of(name, label), tensors)


def preprocessing_of(name: str, weights: str) -> Preprocessing:
    """What the named weights expect; for others, what the model's default weights do."""
    known = torchvision.models.get_model_weights(name)
    named = known[weights] if weights in known.__members__ else known.DEFAULT
    transforms: Any = named.transforms()
    half = name in TRANSFORM_INPUT_MODELS
    return Preprocessing(
        resize=transforms.resize_size[0],
        size=transforms.crop_size[0],
        interpolation=transforms.interpolation.value,
        mean=(0.5,) * 3 if half else tuple(transforms.mean),
        std=(0.5,) * 3 if half else tuple(transforms.std),
    )


def _from_torchvision(name: str, weights: str) -> tuple[str, dict[str, Tensor]]:
    known = torchvision.models.get_model_weights(name)
    allowed = ["DEFAULT", *known.__members__]
    if weights not in allowed:
        raise InputError(
            f"{name} has no weights '{weights}'; allowed are {', '.join(dict.fromkeys(allowed))}, "
            f"random, or a file ({' '.join(WEIGHT_SUFFIXES)}) (backbone.weights)"
        )
    chosen = known.DEFAULT if weights == "DEFAULT" else known[weights]
    try:
        # check_hash: the address carries the beginning of the file's SHA-256.
        return chosen.name, chosen.get_state_dict(
            progress=sys.stderr.isatty(), check_hash=True, map_location="cpu", weights_only=True
        )
    except (
        *(urllib.error.URLError, TimeoutError, ConnectionError),
        *(ssl.SSLError, http.client.HTTPException),
    ) as error:
        raise InputError(
            f"cannot fetch {chosen.url} ({getattr(error, 'reason', error)}); "
            "give backbone.weights the path of a state dict instead"
        ) from None
    except RuntimeError as error:
        raise InputError(
            f"{chosen.url} is not the file that torchvision expects ({error})"
        ) from None


def _load_state_dict_file(weights: str) -> dict[str, Tensor]:
    path = named_file(weights, "backbone.weights")
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            _reject_zip_bomb(path)
            with warnings.catch_warnings():  # of kinds of tensors that are refused below
                warnings.simplefilter("ignore")
                content = torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except SafetensorError as error:
        raise InputError(f"{path} is damaged or no safetensors file ({error})") from None
    except Exception:  # torch.load raises its readers' own kinds, and advises to trust the file
        raise InputError(
            f"{path} cannot be read as a state dict of plain tensors; save model.state_dict() alone"
        ) from None
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    ):
        raise InputError(f"{path} is no state dict; save model.state_dict() alone")
    for name, tensor in content.items():
        if not _is_plain(tensor):
            raise InputError(
                f"{path}: {name} is no plain tensor ({tensor.dtype}, {tensor.layout}, on "
                f"{tensor.device}); save dense real numbers, on the CPU"
            )
    return content


def _reject_zip_bomb(path: Path) -> None:
    """torch.save compresses nothing: no file of its own unpacks to more than it has itself."""
    with path.open("rb") as content:
        if content.read(2) != b"PK":
            return  # torch's older format, no zip
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
    except Exception:  # zipfile and struct raise their own kinds
        raise InputError(f"{path} is truncated or damaged; fetch it again") from None
    if unpacked > path.stat().st_size:
        raise InputError(
            f"{path} unpacks to {unpacked} bytes, more than it has itself; is it a bomb? "
            "Save model.state_dict() with torch.save"
        )


def _is_plain(tensor: Tensor) -> bool:
    dense = tensor.layout == torch.strided and tensor.device.type == "cpu"
    return dense and tensor.dtype in FLOATS + INTEGERS


def _match_state_dict(
    given: dict[str, Tensor], expected: dict[str, Tensor], what: str
) -> dict[str, Tensor]:
    """The trunk's tensors out of a state dict; only what the trunk does not use may differ.

    Args:
        what: how a complaint begins.
    """
    fitted = {}
    for name, like in expected.items():
        if name not in given and name.endswith("num_batches_tracked"):
            fitted[name] = like  # counts training steps; nothing reads it here
        elif name not in given:
            raise InputError(f"{what}: they lack {name}")
        elif given[name].shape != like.shape:
            raise InputError(
                f"{what}: {name} has shape {tuple(given[name].shape)}, not {tuple(like.shape)}"
            )
        else:
            fitted[name] = given[name].to(like.dtype)
            if like.is_floating_point() and not torch.isfinite(fitted[name]).all():
                raise InputError(f"{what}: {name} holds numbers that are not finite")
    children = {name.split(".")[0] for name in expected}
    extra = [name for name in given if name not in expected and name.split(".")[0] in children]
    if extra:
        raise InputError(f"{what}: they have {extra[0]}, which it has not")
    return fitted


def main(
    out: Annotated[Path, typer.Option(help="The weights to write (safetensors).")] = Path(
        "models/backbone.safetensors"
    ),
    params: Annotated[Path, typer.Option(help="The params file.")] = Path("params.yaml"),
) -> None:
    """Get the frozen CNN's weights."""
    make_backbone(out, load_params(params, BackboneConfig))
