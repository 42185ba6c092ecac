"""Pictures with their captions, as a picture."""

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

COLUMNS = 4
WIDTH, TEXT_HEIGHT, GAP = 192, 40, 12  # pixels


def contact_sheet(pictures: Sequence[tuple[Image.Image, str]]) -> Image.Image:
    """A grid of pictures, each above its caption."""
    rows = -(-len(pictures) // COLUMNS)
    cell = (WIDTH + GAP, WIDTH + TEXT_HEIGHT + GAP)
    sheet = Image.new("RGB", (COLUMNS * cell[0] + GAP, rows * cell[1] + GAP), "white")
    canvas, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for number, (picture, caption) in enumerate(pictures):
        x = GAP + number % COLUMNS * cell[0]
        y = GAP + number // COLUMNS * cell[1]
        sheet.paste(picture.resize((WIDTH, WIDTH), Image.Resampling.BICUBIC), (x, y))
        lines = "\n".join(textwrap.wrap(caption, 28))
        canvas.multiline_text((x, y + WIDTH + 4), lines, fill="black", font=font)
    return sheet
