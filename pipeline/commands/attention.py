"""`showtell attention`: draw which parts of a photo each word of its caption comes from.

These are the attention weights or, for a model without attention over a grid and for an ensemble,
an occlusion map, labelled as such.
"""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image

from pipeline.captioning.captioner import Captioner
from pipeline.captioning.files import MODELS
from pipeline.captioning.occlusion import occlusion_map
from pipeline.captioning.photos import find_photos
from pipeline.commands.caption import override_search
from pipeline.commands.load import load_captioner
from pipeline.commands.word_maps import WordMaps, panels, save_animation
from pipeline.extraction.preprocess import resize_and_crop_box
from pipeline.features.recipe import FeatureRecipe
from pipeline.generation.beam_search import BeamSearchConfig
from pipeline.images.decode import load_image
from pipeline.runtime import options
from pipeline.runtime.device import resolve_device, seed_everything
from pipeline.runtime.errors import InputError, sanitize
from pipeline.runtime.files import atomic_write

SAVERS: dict[str, Callable[[Path, WordMaps], None]] = {
    "png": lambda path, maps: panels(maps).save(path, "PNG"),
    "webp": lambda path, maps: save_animation(path, maps, "WEBP"),
    "gif": lambda path, maps: save_animation(path, maps, "GIF"),
}


def main(
    photos: options.Photos,
    out_dir: Annotated[
        Path | None,
        typer.Option(help="The folder to draw to; default: attention, or occlusion."),
    ] = None,
    output: Annotated[
        str,
        typer.Option("--format", help="png: a panel a word; webp or gif: animated; or all."),
    ] = "png",
    occlusion: Annotated[
        bool,
        typer.Option(
            "--occlusion",
            help="Draw what each word depends on, found by covering parts of the photo, even if "
            "the model has attention.",
        ),
    ] = False,
    model: options.OwnModels = [MODELS],  # noqa: B006
    backbone: options.OwnBackbone = None,
    device: options.Device = "auto",
    beam_size: Annotated[
        int | None, typer.Option(min=1, max=100, help="Number of beams; default: the model's.")
    ] = None,
    length_penalty: Annotated[
        float | None,
        typer.Option(min=0, max=5, help="0: total log-probability; 1: mean per token."),
    ] = None,
) -> None:
    """Draw what each word of a caption looked at."""
    seed_everything(seed=0)
    torch_device = resolve_device(device)
    if output not in (*SAVERS, "all"):
        raise InputError(f"--format is '{output}', but must be one of {', '.join(SAVERS)}, all")
    found = find_photos(photos)
    names = [Path(photo.name).name for photo in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"two images are named {twice[0]}; draw them to two folders")
    captioner = load_captioner(model, backbone, torch_device)
    search = override_search(captioner.search, beam_size=beam_size, length_penalty=length_penalty)
    attention = captioner.has_attention and not occlusion
    failed = False
    for photo, name in zip(found, names, strict=True):
        try:
            image = load_image(photo.read(), photo.name)
        except InputError as error:
            print(f"error: {sanitize(str(error))}", file=sys.stderr)
            failed = True
            continue
        maps = map_words(captioner, image, search, attention)
        for suffix in SAVERS if output == "all" else [output]:
            target = (out_dir or Path(maps.kind)) / f"{name}.{maps.kind}.{suffix}"
            with atomic_write(target) as scratch:
                SAVERS[suffix](scratch, maps)
            print(f"{sanitize(str(target))}\t{maps.caption}\t{maps.kind}", flush=True)
    if failed:
        raise SystemExit(1)


def map_words(
    captioner: Captioner, image: Image.Image, search: BeamSearchConfig, attention: bool
) -> WordMaps:
    """Caption an image, and map its words by the attention weights or by occlusion."""
    caption, seen = (
        captioner.caption(image, search, attention=attention),
        crop(image, captioner.recipe),
    )
    if caption.attention is not None:  # (T, height, width)
        # Brightest where it looked most; less so, the more weight a sentinel has.
        most = caption.attention.max(axis=(1, 2), keepdims=True)
        on_grid = caption.attention.sum(axis=(1, 2), keepdims=True)
        strengths = caption.attention / np.maximum(most, 1e-9) * np.minimum(on_grid, 1)
        return WordMaps("attention", seen, caption, strengths)
    falls = occlusion_map(captioner, captioner.preprocess(image), caption.tokens)  # (T, 8, 8)
    # Brightest where it falls most. A word that nothing makes a fifth less likely depends little on
    # the photo, and its panel stays darker.
    most = np.maximum(falls.max(axis=(1, 2), keepdims=True), -math.log(0.8))
    return WordMaps("occlusion", seen, caption, np.maximum(falls, 0) / most)


def crop(image: Image.Image, recipe: FeatureRecipe) -> Image.Image:
    """What the CNN sees of an image (its first view does), in the image's own proportions."""
    pre = recipe.views[0].preprocessing
    (height, width), top, left = resize_and_crop_box(
        image.height, image.width, pre, recipe.crop_mode
    )
    across, down = image.width / width, image.height / height
    box = (left * across, top * down, (left + pre.size) * across, (top + pre.size) * down)
    x0, y0, x1, y1 = map(round, box)
    return image.crop((x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)))
