"""The provenance of a run: its params, digests and versions.

Without times and machine names: the same run gives the same page.
"""

import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline import __version__
from pipeline.config.types import Config
from pipeline.runtime.errors import ArtifactError
from pipeline.runtime.files import file_digest

# Packages that determine numbers. Only their metadata is read.
PACKAGES = "torch torchvision numpy h5py nltk pandas pillow pycocoevalcap safetensors".split()


def shown_params(groups: Sequence[Config]) -> dict[str, list[tuple[str, str]]]:
    """Return the keys and values of each group as params.yaml has them."""
    return {
        group.group(): [(key, as_yaml(value)) for key, value in group.model_dump().items()]
        for group in groups
    }


def as_yaml(value: Any) -> str:
    """Format a value as YAML; a list of one item as the item."""
    if isinstance(value, (tuple, list)):
        items = [as_yaml(item) for item in value]
        return items[0] if len(items) == 1 else f"[{', '.join(items)}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def versions() -> list[tuple[str, str]]:
    """Return the versions of Python and of the installed packages."""
    rows = [("python", platform.python_version()), ("showtell", __version__)]
    for name in PACKAGES:
        try:
            rows.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            rows.append((name, "not installed"))
    return rows


def digests(models: Sequence[Path]) -> list[tuple[str, str]]:
    """Return the name and the SHA-256 of each model's file.

    Raises:
        ArtifactError: a file is missing.
    """
    for model in models:
        if not model.is_file():
            raise ArtifactError(model, "does not exist")
    return [(model.name, file_digest(model, "sha256")) for model in models]
