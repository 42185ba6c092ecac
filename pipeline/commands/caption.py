"""`showtell caption`: caption your own images with the trained model."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.captioning.files import MODELS
from pipeline.captioning.photos import Photo, find_photos
from pipeline.captioning.results import WRITERS
from pipeline.runtime import options
from pipeline.runtime.errors import InputError, sanitize
from pipeline.runtime.progress import progress_bar

if TYPE_CHECKING:
    from pipeline.captioning.caption import Caption
    from pipeline.generation.beam_search import BeamSearchConfig


def override_search(search: "BeamSearchConfig", **given: Any) -> "BeamSearchConfig":
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
            f"--beam-size {beam_size} is not a multiple of --beam-groups {beam_groups}; set both"
        )


class Failures:
    """Names each image that cannot be captioned, on stderr, and remembers that there was one."""

    any = False

    def skip(
        self, photos: Sequence[Photo], outcomes: "Iterator[Caption | list[Caption] | InputError]"
    ) -> "Iterator[tuple[str, list[Caption]]]":
        """Yield the captions of the images that have some."""
        with progress_bar(label="caption", total=len(photos), unit="image") as progress:
            for photo, outcome in zip(photos, outcomes, strict=True):
                progress.update()
                if isinstance(outcome, InputError):
                    self.any = True
                    progress.write(f"error: {sanitize(str(outcome))}", file=sys.stderr)
                elif isinstance(outcome, list):
                    yield photo.name, outcome
                else:
                    yield photo.name, [outcome, *outcome.alternatives]


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
    consensus_weight: Annotated[
        float | None,
        typer.Option(min=0, max=100, help="Weight of similar training images' captions; 0: none."),
    ] = None,
    num_neighbors: Annotated[
        int | None, typer.Option(min=1, max=1000, help="How many, with --consensus-weight.")
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
    if output not in WRITERS:
        raise InputError(f"--format is '{output}', but must be one of {', '.join(WRITERS)}")
    if beam_size and beam_groups:  # before the model is loaded
        require_whole_groups(beam_size, beam_groups)
    found = find_photos(photos)

    # These import torch, which takes seconds: an error above need not wait for it.
    from pipeline.commands.load import load_captioner
    from pipeline.generation.sampling import SamplingConfig
    from pipeline.runtime.device import resolve_device, seed_everything

    seed_everything(seed=0)
    captioner = load_captioner(model, backbone, resolve_device(device), rev)
    search = override_search(
        captioner.search,
        beam_size=beam_size,
        length_penalty=length_penalty,
        max_length=max_length,
        no_repeat_ngram_size=no_repeat_ngram_size,
        beam_groups=beam_groups,
        diversity_penalty=diversity_penalty,
        consensus_weight=consensus_weight,
        num_neighbors=num_neighbors,
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
