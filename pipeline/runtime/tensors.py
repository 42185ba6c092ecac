"""Tensors with a JSON header in one safetensors file, without pickle and with stable bytes."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pipeline.runtime.errors import ArtifactError, InputError
from pipeline.runtime.files import atomic_write, json_digest

# A single key: safetensors writes several in a random order.
HEADER = "showtell"


def write_tensors(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Write tensors, a header, and a digest of both."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {**header, "digest": _digest(tensors, header)}
    text = json.dumps(header, ensure_ascii=False, allow_nan=False)
    with atomic_write(path) as scratch:
        # save_file would make the file readable by its owner only.
        scratch.write_bytes(save(tensors, metadata={HEADER: text}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote.

    Raises:
        InputError: the file is missing, damaged, not of this project, or has values that are not
            finite.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(HEADER, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise ArtifactError(path, "does not exist") from None
    except OSError as error:
        if path.is_dir():
            raise InputError(f"{path} is a folder; name a file in it") from None
        raise InputError(f"{path} cannot be read ({error}); check the path") from None
    except (SafetensorError, ValueError, RecursionError) as error:
        raise ArtifactError(path, f"is damaged or not a safetensors file ({error})") from None
    if not isinstance(header, dict) or "digest" not in header:
        raise ArtifactError(path, "was not written by this version")
    if header.pop("digest") != _digest(tensors, header):
        raise ArtifactError(path, "is damaged: it is not what was written")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ArtifactError(path, f"has values in {name} that are not finite")
    return tensors, header


def _digest(tensors: dict[str, Tensor], header: dict[str, Any]) -> str:
    return json_digest([header, tensors_digest(tensors)])


def tensors_digest(tensors: dict[str, Tensor]) -> str:
    """Return a fingerprint of names, dtypes, shapes and values, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
