"""`showtell caption`: caption your own images with the trained model."""

import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer

from pipeline.captioner import BATCH_SIZE, Captioner
from pipeline.extraction.preprocess import PreprocessedViews
from pipeline.generation.beam_search import BeamSearchConfig
from pipeline.generation.sampling import SamplingConfig
from pipeline.images.names import EXTENSIONS, first_few, is_image_name
from pipeline.runtime import options
from pipeline.runtime.device import DeviceName, resolve_device, seed_everything
from pipeline.runtime.errors import InputError, pluralize, sanitize

log = logging.getLogger(__name__)


def parse_device(name: str) -> torch.device:
    """
    Raises:
        InputError: there is no device of that name, here or at all.
    """
    if name not in DeviceName.__args__:  # type: ignore[attr-defined]
        raise InputError(f"--device is '{name}', but must be auto, cpu or cuda")
    return resolve_device(name)  # type: ignore[arg-type]


def collect_images(photos: Sequence[str]) -> list[Path]:
    """The files, and the images in the folders, however deep, sorted; each once.

    Other files in a folder are skipped, and the log says so.

    Raises:
        InputError: a path does not exist or is an address, or a folder has no images.
    """
    found: list[Path] = []
    for photo in photos:
        path = Path(photo)
        if path.is_dir():
            found += _images_in(path)
        elif path.exists():
            found.append(path)
        elif "://" in photo:
            raise InputError(f"{photo} is an address; fetch the image and name the file")
        else:
            raise InputError(f"the image {photo} does not exist; check the path")
    return list(dict.fromkeys(found))


def _images_in(folder: Path) -> list[Path]:
    """Images in the folder and its subfolders, except hidden ones."""
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(p.startswith(".") for p in path.relative_to(folder).parts)
    ]
    images = [path for path in files if is_image_name(path.name)]
    if others := [str(path.relative_to(folder)) for path in files if not is_image_name(path.name)]:
        skipped = pluralize(len(others), "file")
        log.warning(
            "skipped in %s: %s of unsupported formats: %s", folder, skipped, first_few(others)
        )
    if not images:
        raise InputError(f"the folder {folder} has no images ({' '.join(sorted(EXTENSIONS))})")
    return images


def image_ids(images: Sequence[Path]) -> list[str]:
    """The file names, or the paths if two images have the same name."""
    names = [path.name for path in images]
    return names if len(set(names)) == len(names) else [path.as_posix() for path in images]


def caption_all(
    captioner: Captioner,
    images: Sequence[Path],
    generate: Callable[[list[PreprocessedViews]], list[list[str]]],
) -> Iterator[tuple[Path, list[str] | InputError]]:
    """The captions of every image, or why it cannot be read, in order."""
    for begin in range(0, len(images), BATCH_SIZE):
        outcomes: list[tuple[Path, PreprocessedViews | InputError]] = []
        for path in images[begin : begin + BATCH_SIZE]:
            try:
                outcomes.append((path, captioner.preprocess(path)))
            except InputError as error:
                outcomes.append((path, error))
        batch = [views for _, views in outcomes if not isinstance(views, InputError)]
        captions = iter(generate(batch) if batch else [])
        for path, outcome in outcomes:
            yield path, outcome if isinstance(outcome, InputError) else next(captions)


def main(
    photos: options.Photos,
    model: options.Models = [Path("models/captioner.safetensors")],  # noqa: B006
    backbone: options.Backbone = Path("models/backbone.safetensors"),
    beam_size: options.BeamSize = 5,
    length_penalty: options.LengthPenalty = 1.0,
    max_length: Annotated[
        int | None,
        typer.Option(min=1, max=1000, help="Maximum caption length; default: the model's."),
    ] = None,
    no_repeat_ngram_size: Annotated[
        int, typer.Option(min=0, max=10, help="No n-gram of this size twice; 0 allows all.")
    ] = 2,
    beam_groups: Annotated[
        int, typer.Option(min=1, max=100, help="Groups of beams, with one caption each.")
    ] = 1,
    diversity_penalty: Annotated[
        float, typer.Option(min=0, max=100, help="Diversity penalty between beam groups.")
    ] = 0.5,
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
    as_json: Annotated[bool, typer.Option("--json", help="Print COCO's results format.")] = False,
) -> None:
    """Caption your own images with the trained model."""
    seed_everything(seed=0)
    torch_device = parse_device(device)
    if beam_size % beam_groups:
        raise InputError(
            f"--beam-size {beam_size} is not a multiple of --beam-groups {beam_groups}"
        )
    images = collect_images(photos)
    captioner = Captioner(backbone, model, torch_device)
    limit = max_length or captioner.max_length
    search = BeamSearchConfig(
        beam_size=beam_size,
        length_penalty=length_penalty,
        max_length=limit,
        no_repeat_ngram_size=no_repeat_ngram_size,
        beam_groups=beam_groups,
        diversity_penalty=diversity_penalty,
    )
    sampling = SamplingConfig(temperature, top_k, top_p, limit)
    rng = torch.Generator(torch_device).manual_seed(seed)

    def generate(batch: list[PreprocessedViews]) -> list[list[str]]:
        if num_samples:
            return captioner.sample(batch, num_samples, sampling, rng)
        return captioner.generate(batch, search)

    results, failed = [], False
    outcomes = caption_all(captioner, images, generate)
    for image_id, (path, outcome) in zip(image_ids(images), outcomes, strict=True):
        if isinstance(outcome, InputError):
            print(f"error: {sanitize(str(outcome))}", file=sys.stderr)
            failed = True
        elif as_json:
            results += [{"image_id": image_id, "caption": caption} for caption in outcome]
        else:
            for caption in outcome:
                print(f"{sanitize(str(path))}\t{caption}", flush=True)
    if as_json:
        print(json.dumps(results, indent=2))  # ASCII, which any terminal and program reads
    if failed:
        raise SystemExit(1)
