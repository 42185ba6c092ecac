"""Where a captioner's files are: in a project's models, or in a folder of `showtell export`."""

from pathlib import Path

from pipeline.runtime.errors import InputError

MODELS = Path("models")  # of a project
# What `dvc repro` makes.
MODEL, BACKBONE, CONFIDENCE = "captioner.safetensors", "backbone.safetensors", "confidence.json"
NEIGHBORS = "neighbors.safetensors"  # always beside the model; only consensus reranking needs it
# What `showtell export` writes; the backbone and the neighbours have the same names.
CONFIG, EXPORTED_MODEL = "config.json", "model.safetensors"


def find_model(path: Path) -> Path:
    """Return the model file that a path means: itself, or the one in that folder.

    Raises:
        InputError: it does not exist, or is a folder of something else.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise InputError(
            f"{path} does not exist; name a folder that 'dvc repro' or 'showtell export' wrote"
        )
    if (path / CONFIG).exists():
        return path / EXPORTED_MODEL
    if not (path / MODEL).exists():
        raise InputError(
            f"{path} is neither a folder of 'showtell export' nor the models of a project: it has "
            f"no {CONFIG} and no {MODEL}"
        )
    return path / MODEL


def find_backbone(model: Path) -> Path:
    """Return the backbone's file beside a model file or, if there is none, the project's."""
    beside = model.with_name(BACKBONE)
    return beside if beside.is_file() else MODELS / BACKBONE
