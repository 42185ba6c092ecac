"""Stage 3: get the frozen CNN's weights."""

import logging
import warnings
import zipfile
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pipeline.backbones.backbone import build_backbone, library_of
from pipeline.backbones.weights import BackboneWeights, write_backbones
from pipeline.config.load import load_params
from pipeline.config.schema import BackboneConfig
from pipeline.runtime import options
from pipeline.runtime.errors import InputError
from pipeline.runtime.files import named_file

log = logging.getLogger(__name__)

SUFFIXES = (".pth", ".pt", ".safetensors")

HEADS = ("head", "fc", "classifier", "last_linear")  # of classifiers; their weights are not used

# Complex, quantised and packed types cannot be used.
PLAIN_DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)


def make_backbone(out: Path, config: BackboneConfig) -> None:
    """Write the backbones' weights to `out`.

    Raises:
        InputError: a model or its weights are unknown, unavailable, or do not fit together.
    """
    for name in config.name:  # before any download
        library_of(name).check_name(name)
    backbones = [
        _get_backbone(name, weights, config.seed)
        for name, weights in zip(config.name, config.weights, strict=True)
    ]
    write_backbones(out, backbones)
    for backbone in backbones:
        size = sum(tensor.numel() for tensor in backbone.tensors.values())
        log.info("%s (%s): %.1f M weights", backbone.name, backbone.weights, size / 1e6)


def _get_backbone(name: str, weights: str, seed: int) -> BackboneWeights:
    library = library_of(name)
    if weights == "random":
        torch.manual_seed(seed)
        label, given = f"random:{seed}", None
    elif weights.lower().endswith(SUFFIXES):
        label, given = Path(weights).name, _load_state_dict_file(weights)
    else:
        label, given = library.fetch(name, weights)
    preprocessing = library.default_preprocessing(name, label)
    expected = build_backbone(name, preprocessing.size).state_dict()
    mismatch = f"the weights {weights} are not of {name}"
    tensors = expected if given is None else _match_state_dict(given, expected, mismatch)
    return BackboneWeights(library.canonical_name(name), label, preprocessing, tensors)


def _load_state_dict_file(weights: str) -> dict[str, Tensor]:
    """Read a state dict of plain tensors; anything else is an InputError. No code is run."""
    path = named_file(weights, "backbone.weights")
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            _reject_zip_bomb(path)
            with warnings.catch_warnings():  # about kinds of tensors that are refused below
                warnings.simplefilter("ignore")
                content = torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except SafetensorError as error:
        raise InputError(f"{path} is damaged or not a safetensors file ({error})") from None
    except Exception:  # torch.load raises many types, and its messages advise to trust the file
        raise InputError(
            f"{path} cannot be read as a state dict of plain tensors; save model.state_dict() alone"
        ) from None
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    ):
        raise InputError(f"{path} is not a state dict; save model.state_dict() alone")
    for name, tensor in content.items():
        dense = tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not dense or tensor.dtype not in PLAIN_DTYPES:
            raise InputError(
                f"{path}: {name} is not a plain tensor ({tensor.dtype}, {tensor.layout}, on "
                f"{tensor.device}); save dense real numbers, on the CPU"
            )
    return content


def _reject_zip_bomb(path: Path) -> None:
    """Reject a file that unpacks to more than its own size: torch.save does not compress."""
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            return  # torch's older format is not a zip
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
    except Exception:  # zipfile and struct raise their own types
        raise InputError(f"{path} is truncated or damaged; fetch it again") from None
    if unpacked > path.stat().st_size:
        raise InputError(
            f"{path} unpacks to {unpacked} bytes, more than its size; is it a bomb? "
            "Save model.state_dict() with torch.save"
        )


def _match_state_dict(
    given: dict[str, Tensor], expected: dict[str, Tensor], mismatch: str
) -> dict[str, Tensor]:
    """Return the backbone's tensors of a classifier's state dict; errors begin with `mismatch`."""
    matched = {}
    for name, reference in expected.items():
        if name not in given and name.endswith("num_batches_tracked"):
            matched[name] = reference  # counts training steps; not used here
        elif name not in given:
            raise InputError(f"{mismatch}: they lack {name}")
        elif given[name].shape != reference.shape:
            shape, expected_shape = tuple(given[name].shape), tuple(reference.shape)
            raise InputError(f"{mismatch}: {name} has shape {shape}, not {expected_shape}")
        else:
            matched[name] = given[name].to(reference.dtype)
            if reference.is_floating_point() and not torch.isfinite(matched[name]).all():
                raise InputError(f"{mismatch}: {name} has values that are not finite")
    children = {name.split(".")[0] for name in expected} - set(HEADS)
    extra = [name for name in given if name not in expected and name.split(".")[0] in children]
    if extra:
        raise InputError(f"{mismatch}: they have {extra[0]}, which the model lacks")
    return matched


def main(
    out: Annotated[Path, typer.Option(help="The weights to write (safetensors).")] = Path(
        "models/backbone.safetensors"
    ),
    params: options.Params = Path("params.yaml"),
) -> None:
    """Get the frozen CNN's weights."""
    make_backbone(out, load_params(params, BackboneConfig))
