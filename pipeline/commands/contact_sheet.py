"""Arrange labelled images in a grid."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont


def contact_sheet(
    tiles: Sequence[tuple[Image.Image, str]],
    columns: int,
    text_height: int,
    gap: int,
    font_size: int,
) -> Image.Image:
    """Draw square images of one size, each with its label below it; sizes in pixels."""
    side = tiles[0][0].width
    width, height = side + gap, side + text_height + gap
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * width + gap, rows * height + gap), "white")
    canvas, font = ImageDraw.Draw(sheet), ImageFont.load_default(font_size)
    for number, (tile, label) in enumerate(tiles):
        x, y = gap + number % columns * width, gap + number // columns * height
        sheet.paste(tile, (x, y))
        canvas.multiline_text((x, y + side + 4), label, "black", font)
    return sheet
