"""`showtell caption`: captions for one's own images, from the trained artifacts."""

import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from pipeline.backbones.weights import read_backbones
from pipeline.captions.vocabulary import END, PAD, START
from pipeline.decoders.decoder import Decoder
from pipeline.evaluation.ensemble import build_ensemble, read_models
from pipeline.extraction.feature_extractor import FeatureExtractor
from pipeline.extraction.preprocess import PreprocessedViews, collate, preprocess
from pipeline.generation.beam_search import BeamSearchConfig, diverse_beam_search
from pipeline.generation.sampling import SamplingConfig, sample
from pipeline.images.archive import read_image
from pipeline.images.names import EXTENSIONS, first_few, is_image_name
from pipeline.runtime.device import DeviceName, resolve_device, seed_everything
from pipeline.runtime.errors import InputError, counted, sanitize

log = logging.getLogger(__name__)

BATCH = 16


class Captioner:
    """The frozen CNN and the decoder come together as one: images in, captions out."""

    def __init__(self, backbone: Path, models: Sequence[Path], device: torch.device) -> None:
        """
        Args:
            models: one, or several that speak as one.

        Raises:
            InputError: a file cannot be used, or a model learned from another backbone.
        """
        trained = read_models(models, device)
        self.max_length = max(model.max_length for model in trained)  # words of a caption
        self._vocabulary, recipes = trained[0].vocabulary, [model.recipe for model in trained]
        # Members of an ensemble that take vectors take the means of the others' grids.
        self._recipe = next((one for one in recipes if one.layer == "grid"), recipes[0])
        self._decoder = build_ensemble(
            trained, self._recipe, where=str(models[recipes.index(self._recipe)])
        )
        self._cnn = FeatureExtractor(read_backbones(backbone), self._recipe, device)

    def preprocess(self, image: Path) -> PreprocessedViews:
        """Read one image file as the CNN takes it."""
        return preprocess(read_image(image), str(image), self._recipe)

    def caption(self, images: list[PreprocessedViews], search: BeamSearchConfig) -> list[list[str]]:
        """A caption of each group of beams, for each prepared image."""
        found = diverse_beam_search(self._decoder, self._cnn(collate(images)), search)
        return [[self._text(one.words) for one in groups] for groups in found]

    def draw(
        self,
        images: list[PreprocessedViews],
        count: int,
        sampling: SamplingConfig,
        rng: torch.Generator,
    ) -> list[list[str]]:
        """`count` captions drawn for each prepared image."""
        drawn = sample(self._decoder, self._cnn(collate(images)), count, sampling, rng)
        captions = [self._text([word for word in row if word != PAD]) for row in drawn.tolist()]
        return [captions[begin : begin + count] for begin in range(0, len(captions), count)]

    def _text(self, words: list[int]) -> str:
        return " ".join(self._vocabulary.decode([word for word in words if word != END]))

    @property
    def attends(self) -> bool:
        """Whether it is one decoder, and looks at a grid."""
        return isinstance(self._decoder, Decoder) and self._recipe.layer == "grid"

    def attention(self, image: PreprocessedViews, caption: Sequence[str]) -> Tensor:
        """Where the decoder looked for each word of its caption: (T, height, width).

        Raises:
            TypeError: it does not attend.
        """
        if not isinstance(self._decoder, Decoder):
            raise TypeError("an ensemble looks in many ways at once")
        features = self._cnn(collate([image]))  # (1, height, width, D)
        words = torch.tensor([[START, *self._vocabulary.encode(caption)[:-1]]])
        with torch.inference_mode():
            weights = self._decoder.attention(features, words.to(features.device))[0]  # (T, N)
        height, width = features.shape[1:3]
        return weights[:, : height * width].unflatten(1, (height, width)).cpu()


def parse_device(name: str) -> torch.device:
    """
    Raises:
        InputError: there is no device of that name, here or at all.
    """
    if name not in DeviceName.__args__:  # type: ignore[attr-defined]
        raise InputError(f"--device is '{name}', but must be auto, cpu or cuda")
    return resolve_device(name)  # type: ignore[arg-type]


def collect_images(photos: Sequence[str]) -> list[Path]:
    """The files themselves, and the images in the folders and theirs, sorted; each once.

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
    """In it and in the folders in it, but for what is hidden."""
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(p.startswith(".") for p in path.relative_to(folder).parts)
    ]
    images = [path for path in files if is_image_name(path.name)]
    if others := [str(path.relative_to(folder)) for path in files if not is_image_name(path.name)]:
        log.warning(
            "skipped in %s: %s of kinds that are not read: %s",
            *(folder, counted(len(others), "file"), first_few(others)),
        )
    if not images:
        raise InputError(f"the folder {folder} holds no images ({' '.join(sorted(EXTENSIONS))})")
    return images


def ids_of(images: Sequence[Path]) -> list[str]:
    """By which results tell images apart: their names, or their paths where two have one name."""
    names = [path.name for path in images]
    return names if len(set(names)) == len(names) else [path.as_posix() for path in images]


def caption_all(
    captioner: Captioner,
    images: list[Path],
    say: Callable[[list[PreprocessedViews]], list[list[str]]],
) -> Iterator[tuple[Path, list[str] | InputError]]:
    """What is to be said of every image, or why there is nothing, in order."""
    for begin in range(0, len(images), BATCH):
        prepared: list[tuple[Path, PreprocessedViews | InputError]] = []
        for path in images[begin : begin + BATCH]:
            try:
                prepared.append((path, captioner.preprocess(path)))
            except InputError as error:
                prepared.append((path, error))
        good = [views for _, views in prepared if not isinstance(views, InputError)]
        captions = iter(say(good) if good else [])
        for path, outcome in prepared:
            yield path, outcome if isinstance(outcome, InputError) else next(captions)


def main(
    photos: Annotated[
        list[str], typer.Argument(metavar="PHOTO", help="Images, or folders of images.")
    ],
    model: Annotated[
        list[Path], typer.Option(help="The trained model; several speak as an ensemble.")
    ] = [Path("models/captioner.safetensors")],  # noqa: B006
    backbone: Annotated[Path, typer.Option(help="The frozen CNN's weights.")] = Path(
        "models/backbone.safetensors"
    ),
    beam: Annotated[int, typer.Option(min=1, max=100, help="Beams of the search.")] = 5,
    length_penalty: Annotated[
        float, typer.Option(min=0, max=5, help="0 favours short captions, 1 long ones.")
    ] = 1.0,
    max_length: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Words at the most; else the model's.")
    ] = None,
    no_repeat_ngram_size: Annotated[
        int, typer.Option(min=0, max=10, help="No n-gram of this size twice; 0 allows all.")
    ] = 2,
    groups: Annotated[
        int, typer.Option(min=1, max=100, help="Groups of beams: a caption of each.")
    ] = 1,
    diversity: Annotated[
        float, typer.Option(min=0, max=100, help="What a group pays for an earlier one's words.")
    ] = 0.5,
    samples: Annotated[
        int,
        typer.Option(min=0, max=1000, help="Draw so many captions; nothing is searched for."),
    ] = 0,
    temperature: Annotated[
        float, typer.Option(min=0.01, max=10, help="Below 1 draws likely words more often.")
    ] = 1.0,
    top_k: Annotated[
        int, typer.Option(min=0, max=1_000_000, help="Draw of so many likeliest words; 0: all.")
    ] = 0,
    top_p: Annotated[
        float, typer.Option(min=0.01, max=1, help="Draw of the likeliest words of this share.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of what is drawn.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="COCO's results form.")] = False,
) -> None:
    """Caption your own images with the trained model."""
    seed_everything(seed=0)
    chosen = parse_device(device)
    if beam % groups:
        raise InputError(f"--beam-size {beam} is no multiple of --beam-groups {groups}")
    images = collect_images(photos)
    captioner = Captioner(backbone, model, chosen)
    longest = max_length or captioner.max_length
    search = BeamSearchConfig(
        beam, length_penalty, longest, no_repeat_ngram_size, False, groups, diversity
    )
    sampling = SamplingConfig(temperature, top_k, top_p, longest)
    rng = torch.Generator(chosen).manual_seed(seed)

    def say(prepared: list[PreprocessedViews]) -> list[list[str]]:
        if samples:
            return captioner.draw(prepared, samples, sampling, rng)
        return captioner.caption(prepared, search)

    results, failed = [], 0
    outcomes = caption_all(captioner, images, say)
    for image_id, (path, outcome) in zip(ids_of(images), outcomes, strict=True):
        if isinstance(outcome, InputError):
            print(f"error: {sanitize(str(outcome))}", file=sys.stderr)
            failed += 1
        elif as_json:
            results += [{"image_id": image_id, "caption": caption} for caption in outcome]
        else:
            for caption in outcome:
                print(f"{sanitize(str(path))}\t{caption}", flush=True)
    if as_json:
        print(json.dumps(results, indent=2))  # in ASCII, which any terminal and program takes
    if failed:
        raise SystemExit(1)
