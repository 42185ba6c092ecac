"""`showtell caption`: caption your own images with the trained model."""

import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer

from pipeline.captioning.caption import Caption
from pipeline.captioning.captioner import Captioner
from pipeline.captioning.folder import (
    BACKBONE,
    CONFIDENCE,
    MODEL,
    MODELS,
    find_backbone,
    find_model,
    load_folder,
)
from pipeline.captioning.photos import Photo, find_photos
from pipeline.captioning.results import WRITERS
from pipeline.comparison.revisions import resolve_revision
from pipeline.generation.beam_search import BeamSearchConfig
from pipeline.generation.sampling import SamplingConfig
from pipeline.runtime import options
from pipeline.runtime.device import resolve_device, seed_everything
from pipeline.runtime.errors import InputError, sanitize
from pipeline.runtime.progress import progress_bar

log = logging.getLogger(__name__)


def fetch_revision(revision: str, folder: Path) -> None:
    """Write the captioner's files at a DVC revision to a folder.

    Raises:
        InputError: there is no such revision, or it lacks one of the files.
    """
    files = resolve_revision(revision)
    for name in (MODEL, BACKBONE, CONFIDENCE):
        (folder / name).write_bytes(files.read(f"models/{name}"))


def load_captioner(
    models: Sequence[Path],
    backbone: Path | None,
    device: torch.device,
    revision: str | None = None,
) -> Captioner:
    """Load a folder's captioner, or a model file with its backbone; several for an ensemble.

    Raises:
        InputError: a file cannot be used, or an option would have no effect.
    """
    if revision is not None:
        if backbone or list(models) != [MODELS]:
            raise InputError("--rev has its own model and backbone; leave out --model, --backbone")
        with TemporaryDirectory() as folder:
            fetch_revision(revision, Path(folder))
            return load_folder(Path(folder), device)
    if len(models) == 1 and not models[0].is_file():
        if backbone:
            raise InputError(f"{models[0]} is a folder with a backbone; leave out --backbone")
        return load_folder(models[0], device)
    files = [find_model(model) for model in models]
    confidence = files[0].with_name(CONFIDENCE)
    return Captioner(backbone or find_backbone(files[0]), files, device, confidence)


def override_search(search: BeamSearchConfig, **given: Any) -> BeamSearchConfig:
    """The search with the options that were given, those not None.

    Raises:
        InputError: they do not go together.
    """
    search = replace(search, **{name: value for name, value in given.items() if value is not None})
    require_whole_groups(search.beam_size, search.beam_groups)
    return search


def require_whole_groups(beam_size: int, beam_groups: int) -> None:
    if beam_size % beam_groups:
        raise InputError(
            f"--beam-size {beam_size} is not a multiple of --beam-groups {beam_groups}"
        )


class Failures:
    """Names each image that cannot be captioned, on stderr, and remembers that there was one."""

    any = False

    def skip(
        self, photos: Sequence[Photo], outcomes: Iterator[Caption | list[Caption] | InputError]
    ) -> Iterator[tuple[str, list[Caption]]]:
        """Yield the captions of the images that have some."""
        with progress_bar(label="caption", total=len(photos), unit="image") as progress:
            for photo, outcome in zip(photos, outcomes, strict=True):
                progress.update()
                if isinstance(outcome, InputError):
                    self.any = True
                    progress.write(f"error: {sanitize(str(outcome))}", file=sys.stderr)
                elif isinstance(outcome, Caption):
                    yield photo.name, [outcome, *outcome.alternatives]
                else:
                    yield photo.name, outcome


def main(
    photos: options.Photos,
    model: options.OwnModels = [MODELS],  # noqa: B006
    backbone: options.OwnBackbone = None,
    rev: Annotated[
        str | None, typer.Option(help="A commit, tag or experiment whose model is used.")
    ] = None,
    output: Annotated[
        str, typer.Option("--format", help=f"The output: {', '.join(WRITERS)}.")
    ] = "text",
    alternatives: Annotated[
        int, typer.Option(min=0, max=99, help="Other captions to print after the best.")
    ] = 0,
    beam_size: Annotated[
        int | None, typer.Option(min=1, max=100, help="Number of beams; default: the model's.")
    ] = None,
    length_penalty: Annotated[
        float | None,
        typer.Option(min=0, max=5, help="0: total log-probability; 1: mean per token."),
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Maximum caption length in tokens.")
    ] = None,
    no_repeat_ngram_size: Annotated[
        int | None, typer.Option(min=0, max=10, help="No n-gram of this size twice; 0 allows all.")
    ] = None,
    beam_groups: Annotated[
        int | None, typer.Option(min=1, max=100, help="Groups of beams, with one caption each.")
    ] = None,
    diversity_penalty: Annotated[
        float | None, typer.Option(min=0, max=100, help="Diversity penalty between beam groups.")
    ] = None,
    num_samples: Annotated[
        int, typer.Option(min=0, max=1000, help="Sample N captions instead of beam search.")
    ] = 0,
    temperature: Annotated[
        float, typer.Option(min=0.01, max=10, help="Sampling temperature.")
    ] = 1.0,
    top_k: Annotated[
        int, typer.Option(min=0, max=1_000_000, help="Sample from the k likeliest; 0: from all.")
    ] = 0,
    top_p: Annotated[
        float, typer.Option(min=0.01, max=1, help="Sample from the likeliest with this mass.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Sampling seed.")] = 0,
    device: options.Device = "auto",
) -> None:
    """Caption your own images with the trained model."""
    seed_everything(seed=0)
    torch_device = resolve_device(device)
    if output not in WRITERS:
        raise InputError(f"--format is '{output}', but must be one of {', '.join(WRITERS)}")
    if beam_size and beam_groups:  # before the model is loaded
        require_whole_groups(beam_size, beam_groups)
    found = find_photos(photos)
    captioner = load_captioner(model, backbone, torch_device, rev)
    search = override_search(
        captioner.search,
        beam_size=beam_size,
        length_penalty=length_penalty,
        max_length=max_length,
        no_repeat_ngram_size=no_repeat_ngram_size,
        beam_groups=beam_groups,
        diversity_penalty=diversity_penalty,
    )
    images = map(_read, found)
    outcomes: Iterator[Caption | list[Caption] | InputError]
    if num_samples:
        sampling = SamplingConfig(temperature, top_k, top_p, search.max_length)
        outcomes = iter(captioner.sample(images, num_samples, sampling, seed))
    else:
        count = max(alternatives, search.beam_groups - 1)
        outcomes = captioner.stream(images, search, alternatives=count, errors="return")
    failures = Failures()
    WRITERS[output](failures.skip(found, outcomes), sys.stdout)
    if failures.any:
        raise SystemExit(1)


def _read(photo: Photo) -> Path | bytes | InputError:
    try:
        return photo.read()
    except InputError as error:
        return error
