"""Images with their captions, as an image."""

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

COLUMNS = 4
WIDTH, TEXT_HEIGHT, GAP = 192, 40, 12  # pixels


def contact_sheet(images: Sequence[tuple[Image.Image, str]]) -> Image.Image:
    """A grid of images, each above its caption."""
    rows = -(-len(images) // COLUMNS)
    cell = (WIDTH + GAP, WIDTH + TEXT_HEIGHT + GAP)
    sheet = Image.new("RGB", (COLUMNS * cell[0] + GAP, rows * cell[1] + GAP), "white")
    canvas, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for number, (image, caption) in enumerate(images):
        x = GAP + number % COLUMNS * cell[0]
        y = GAP + number // COLUMNS * cell[1]
        sheet.paste(image.resize((WIDTH, WIDTH), Image.Resampling.BICUBIC), (x, y))
        lines = "\n".join(textwrap.wrap(caption, 28))
        canvas.multiline_text((x, y + WIDTH + 4), lines, fill="black", font=font)
    return sheet
