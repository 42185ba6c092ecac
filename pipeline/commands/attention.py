"""`showtell attention`: draw the attention weights of each token over the image."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from PIL import Image
from torch import Tensor

from pipeline.captioning.captioner import Captioner
from pipeline.captioning.photos import find_photos
from pipeline.commands.caption import parse_device
from pipeline.commands.contact_sheet import contact_sheet
from pipeline.images.decode import load_image
from pipeline.runtime import options
from pipeline.runtime.device import seed_everything
from pipeline.runtime.errors import InputError, sanitize
from pipeline.runtime.files import atomic_write


def attention_sheet(image: Tensor, tokens: Sequence[str], weights: Tensor) -> Image.Image:
    """The image as the CNN sees it, then once per token, bright where that token attends.

    Args:
        image: uint8 (S, S, 3).
        tokens: T of them.
        weights: (T, height, width); each token's sum to one, less the weight of a sentinel.
    """
    whole = Image.fromarray(image.numpy())
    dark = Image.new("RGB", whole.size)
    tiles = [(whole, "")]
    for token, grid in zip(tokens, weights, strict=True):
        bright = (grid / grid.max().clamp_min(1e-9) * 255).round().to(torch.uint8)
        mask = Image.fromarray(bright.numpy()).resize(whole.size, Image.Resampling.BICUBIC)
        mask = mask.point(lambda value: 50 + value * 205 // 255)
        label = token if float(grid.sum()) > 0.995 else f"{token} ({grid.sum():.0%} on the grid)"
        tiles.append((Image.composite(whole, dark, mask), label))
    return contact_sheet(tiles, columns=6, text_height=24, gap=8, font_size=16, text_above=True)


def main(
    photos: options.Photos,
    out_dir: Annotated[Path, typer.Option(help="The folder for one PNG per image.")] = Path(
        "attention"
    ),
    model: Annotated[list[Path], typer.Option(help="The trained model.")] = [  # noqa: B006
        Path("models/captioner.safetensors")
    ],
    backbone: options.Backbone = Path("models/backbone.safetensors"),
    device: options.Device = "auto",
    beam_size: options.BeamSize = 5,
    length_penalty: options.LengthPenalty = 1.0,
) -> None:
    """Draw where an attention decoder attends, token by token."""
    seed_everything(seed=0)
    torch_device = parse_device(device)
    found = find_photos(photos)
    names = [Path(photo.name).name for photo in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"two images are named {twice[0]}; draw them to two folders")
    if len(model) > 1:  # an ensemble has no attention weights of its own
        raise InputError(f"one model at a time can be drawn, not {len(model)}; name one --model")
    captioner = Captioner(backbone, model, torch_device)
    if not captioner.has_attention:
        raise InputError(
            f"the decoder of {model[0]} has no attention; train one that has (train.decoder)"
        )
    search = replace(captioner.search, beam_size=beam_size, length_penalty=length_penalty)
    failed = False
    for photo, name in zip(found, names, strict=True):
        try:
            image = load_image(photo.read())
        except InputError as error:
            print(f"error: {sanitize(str(error))}", file=sys.stderr)
            failed = True
            continue
        caption = captioner.caption(image, search, attention=True)
        assert caption.attention is not None
        seen, weights = captioner.preprocess(image)[0], torch.from_numpy(caption.attention)
        target = out_dir / f"{name}.attention.png"
        with atomic_write(target) as scratch:
            attention_sheet(seen, caption.tokens, weights).save(scratch, "PNG")
        print(f"{sanitize(str(target))}\t{caption}", flush=True)
    if failed:
        raise SystemExit(1)
