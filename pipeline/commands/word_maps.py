"""Draw which parts of a photo each word of a caption comes from: as panels, and as an animation."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline.captioning.caption import Caption

NOTES = {
    "attention": "attention: bright where the decoder looked for each word",
    "occlusion": "occlusion: bright where covering the photo makes the word less likely",
}
PANEL, COLUMNS, GAP = 240, 6, 16  # pixels of a panel's longer side; panels a row; pixels between
WIDTHS = {"WEBP": 480, "GIF": 360}  # pixels of the animation; a GIF is the larger file
WORD_MS, LAST_MS = 700, 2000  # how long its frames stay
WARM = (255, 140, 20)
INK, GREY, PAPER = (20, 20, 20), (110, 110, 110), (255, 255, 255)
NIGHT_INK, NIGHT_GREY, NIGHT = (240, 240, 240), (150, 150, 150), (24, 24, 26)

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class WordMaps:
    """A captioned photo, and how much each part of it has to do with each word."""

    kind: Literal["attention", "occlusion"]
    photo: Image.Image  # what the CNN saw of it, in its own proportions
    caption: Caption
    strengths: NDArray[np.float32]  # (T, rows, columns), 0 to 1


def panels(maps: WordMaps) -> Image.Image:
    """The photo, then a panel a word with the word and its probability, then the caption."""
    photo, caption = _fit(maps.photo, PANEL), maps.caption
    column, head = max(photo.width, 150), 28
    count = 1 + len(caption.tokens)
    rows = -(-count // COLUMNS)
    columns = -(-count // rows)  # as even as can be
    width = max(columns * (column + GAP) + GAP, 480)
    lines = _wrap(caption.tokens, _font(22), width - 2 * GAP)
    height = rows * (head + photo.height + GAP) + GAP
    sheet = Image.new("RGB", (width, height + 30 * len(lines) + 40), PAPER)
    canvas = ImageDraw.Draw(sheet)
    titles = [("photo", ""), *zip(caption.tokens, map(_percent, caption.token_probs), strict=True)]
    tiles = [photo, *(light_up(photo, strength) for strength in maps.strengths)]
    for number, ((word, prob), tile) in enumerate(zip(titles, tiles, strict=True)):
        x = GAP + number % columns * (column + GAP)
        y = GAP + number // columns * (head + photo.height + GAP)
        room = column - _font(15).getlength(prob) - 8
        canvas.text((x, y + 20), _shorten(word, _font(18), room), INK, _font(18), "ls")
        canvas.text((x + column, y + 20), prob, GREY, _font(15), "rs")
        sheet.paste(tile, (x, y + head))
    for number, line in enumerate(lines):
        canvas.text((GAP, height + 22 + 30 * number), " ".join(line), INK, _font(22), "ls")
    canvas.text((GAP, height + 30 * len(lines) + 20), _note(maps), GREY, _font(15), "ls")
    return sheet


def frames(maps: WordMaps, width: int) -> list[Image.Image]:
    """A frame a word, in which it appears below the photo and its map lights up; then the photo as
    it is, with the whole caption."""
    photo, tokens = _fit(maps.photo, width), maps.caption.tokens
    images = [*(light_up(photo, strength) for strength in maps.strengths), photo]
    return [_frame(maps, width, image, tokens[: 1 + n], n) for n, image in enumerate(images)]


def save_animation(path: Path, maps: WordMaps, kind: Literal["WEBP", "GIF"]) -> None:
    """Save the frames, each for its time, over and over."""
    images = frames(maps, WIDTHS[kind])
    if kind == "GIF":  # an octree keeps the glow, and without dithering it compresses
        images = [
            image.quantize(128, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
            for image in images
        ]
    images[0].save(
        path,
        kind,
        save_all=True,
        append_images=images[1:],
        duration=[WORD_MS] * (len(images) - 1) + [LAST_MS],
        loop=0,
        quality=80,  # of a WebP
    )


def light_up(photo: Image.Image, strength: NDArray[np.float32]) -> Image.Image:
    """The photo, dim and almost grey, but in its colours and with a warm glow where it is strong.

    A spotlight alone would not show on a dark photo, nor a glow alone on a light one.

    Args:
        strength: (rows, columns), 0 to 1.
    """
    smooth = Image.fromarray(strength.astype(np.float32)).resize(
        photo.size, Image.Resampling.BICUBIC
    )
    light = np.asarray(smooth).clip(0, 1)[:, :, None]  # (H, W, 1)
    pixels = np.asarray(photo, np.float32)  # (H, W, 3)
    grey = pixels.mean(axis=2, keepdims=True)
    dim = 0.45 * (0.3 * pixels + 0.7 * grey)
    lit = dim + (pixels - dim) * light
    glow = 0.4 * light**2
    warm = lit + (np.array(WARM, np.float32) - lit) * glow
    return Image.fromarray(warm.round().astype(np.uint8))


def _frame(
    maps: WordMaps, width: int, image: Image.Image, words: Sequence[str], current: int
) -> Image.Image:
    """A frame with the words so far, the current one warm; the rest of the caption has its room."""
    font, line_height = _font(24 if width > 400 else 20), 32
    lines = _wrap(maps.caption.tokens, font, width - 2 * GAP)
    height = image.height + len(lines) * line_height + 48
    frame = Image.new("RGB", (width, height), NIGHT)
    frame.paste(image, ((width - image.width) // 2, 0))
    canvas, number = ImageDraw.Draw(frame), 0
    for row, line in enumerate(lines):
        x, y = float(GAP), image.height + 34 + row * line_height
        for word in line:
            if number < len(words):
                colour: Colour = WARM if number == current else NIGHT_INK
                canvas.text((x, y), word, colour, font, "ls")
            x += font.getlength(word + " ")
            number += 1
    canvas.text((GAP, height - 12), _note(maps), NIGHT_GREY, _font(13 if width > 400 else 10), "ls")
    return frame


def _note(maps: WordMaps) -> str:
    """What the drawing shows, and how sure the model is of the caption, if it was calibrated."""
    sure = maps.caption.confidence
    return NOTES[maps.kind] + ("" if sure is None else f"  ·  confidence {_percent(sure)}")


def _percent(probability: float) -> str:
    return f"{probability:.0%}"


def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # for a given size
    return font


def _fit(photo: Image.Image, side: int) -> Image.Image:
    """The photo with this longer side."""
    scale = side / max(photo.size)
    width, height = (max(1, round(length * scale)) for length in photo.size)
    return photo.resize((width, height), Image.Resampling.BICUBIC)


def _wrap(words: Sequence[str], font: ImageFont.FreeTypeFont, width: float) -> list[list[str]]:
    """Words in lines of this width, at least one a line."""
    lines: list[list[str]] = []
    for word in words:
        if lines and font.getlength(" ".join([*lines[-1], word])) <= width:
            lines[-1].append(word)
        else:
            lines.append([word])
    return lines


def _shorten(word: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """The word, or as much of its beginning as this width has room for."""
    if font.getlength(word) <= width:
        return word
    ends = range(len(word), 0, -1)
    return next((f"{word[:end]}…" for end in ends if font.getlength(f"{word[:end]}…") <= width), "")
