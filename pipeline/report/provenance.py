"""How a run was made: its params, digests and versions.

No times and no names of machines: the same run gives the same page.
"""

import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline import __version__
from pipeline.config.schema import Config
from pipeline.runtime.errors import ArtifactError
from pipeline.runtime.files import file_digest

# What decides numbers. Their metadata is read; none of them is imported for it.
PACKAGES = "torch torchvision numpy h5py nltk pandas pillow pycocoevalcap safetensors".split()


def shown_params(groups: Sequence[Config]) -> dict[str, list[tuple[str, str]]]:
    """Every group's keys and values as params.yaml would say them, in the order of the models."""
    return {
        one.group(): [(key, as_yaml(value)) for key, value in one.model_dump().items()]
        for one in groups
    }


def as_yaml(value: Any) -> str:
    """One value in the words of YAML; a list of one is the one."""
    if isinstance(value, (tuple, list)):
        items = [as_yaml(one) for one in value]
        return items[0] if len(items) == 1 else f"[{', '.join(items)}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def versions() -> list[tuple[str, str]]:
    """Of Python and the packages that are installed here."""
    found = [("python", platform.python_version()), ("showtell", __version__)]
    for name in PACKAGES:
        try:
            found.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            found.append((name, "not installed"))
    return found


def digests(models: Sequence[Path]) -> list[tuple[str, str]]:
    """The SHA-256 of each model's file, by its name.

    Raises:
        InputError: a file is absent.
    """
    for model in models:
        if not model.is_file():
            raise ArtifactError(model, "does not exist")
    return [(model.name, file_digest(model, "sha256")) for model in models]
