"""Scenes of random coloured shapes, and captions of them."""

import math
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFilter

COLOURS = {
    "red": (214, 40, 40),
    "green": (46, 160, 67),
    "blue": (38, 84, 214),
    "yellow": (246, 209, 30),
    "purple": (138, 50, 184),
    "orange": (244, 125, 28),
}
SHAPES = ("circle", "square", "triangle", "star", "cross")
KINDS = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)

SIDE = 128  # pixels of an image
_SUPERSAMPLING = 3  # scenes are drawn this much larger, then scaled down


@dataclass(frozen=True)
class Shape:
    """One shape; position and radius as fractions of the image's side."""

    colour: str
    shape: str
    x: float
    y: float
    radius: float

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


def random_shapes(rng: random.Random, count: int) -> list[Shape]:
    """Return shapes of different kinds that do not touch each other."""
    kinds = rng.sample(KINDS, count)
    while True:
        scene = []
        for colour, shape in kinds:
            radius = rng.uniform(0.11, 0.19)
            x, y = (rng.uniform(radius + 0.02, 0.98 - radius) for _ in range(2))
            scene.append(Shape(colour, shape, x, y, radius))
        if all(
            math.hypot(a.x - b.x, a.y - b.y) > 1.15 * (a.radius + b.radius)
            for i, a in enumerate(scene)
            for b in scene[:i]
        ):
            return scene


def render(scene: list[Shape], rng: random.Random) -> Image.Image:
    """Draw an RGB image, SIDE x SIDE, on a plain background with some noise."""
    side = SIDE * _SUPERSAMPLING
    grey = rng.randint(60, 235)
    background = tuple(max(0, min(255, grey + rng.randint(-15, 15))) for _ in range(3))
    image = Image.new("RGB", (side, side), background)
    canvas = ImageDraw.Draw(image)
    for shape in scene:
        colour = tuple(
            max(0, min(255, value + rng.randint(-20, 20))) for value in COLOURS[shape.colour]
        )
        _draw_shape(canvas, shape, colour, rng)
    image = image.resize((SIDE, SIDE), Image.Resampling.BOX)
    noise = Image.frombytes("L", (SIDE, SIDE), rng.randbytes(SIDE * SIDE))
    noise = noise.filter(ImageFilter.GaussianBlur(2)).convert("RGB")
    return Image.blend(image, noise, 0.06)


def _draw_shape(
    canvas: ImageDraw.ImageDraw, shape: Shape, colour: tuple[int, ...], rng: random.Random
) -> None:
    side = SIDE * _SUPERSAMPLING
    x, y, radius = shape.x * side, shape.y * side, shape.radius * side
    if shape.shape == "circle":
        canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
        return
    tilt = rng.uniform(-0.2, 0.2)
    # Corners as (angle in turns, distance from the centre in radii).
    corners = {
        "square": [(0.125 + i / 4, 1.0) for i in range(4)],
        "triangle": [(i / 3, 1.1) for i in range(3)],
        "star": [(i / 10, 1.15 if i % 2 == 0 else 0.45) for i in range(10)],
        "cross": [
            (arm / 4 + offset, distance)
            for arm in range(4)
            for offset, distance in ((-0.05, 1.05), (0.05, 1.05), (0.125, 0.46))
        ],
    }[shape.shape]
    points = [
        (
            x + radius * distance * math.sin(2 * math.pi * turn + tilt),
            y - radius * distance * math.cos(2 * math.pi * turn + tilt),
        )
        for turn, distance in corners
    ]
    canvas.polygon(points, fill=colour)


def _relations(a: Shape, b: Shape) -> tuple[str, str]:
    """Return two phrases for the position of `a` relative to `b`."""
    if abs(a.x - b.x) > abs(a.y - b.y):
        return ("left of" if a.x < b.x else "right of"), "beside"
    return ("above", "over") if a.y < b.y else ("below", "under")


def describe(scene: list[Shape], rng: random.Random) -> list[str]:
    """Return five different captions of a scene of two shapes."""
    first, second = scene
    captions: list[str] = []
    while len(captions) < 5:
        a, b = (first, second) if rng.random() < 0.5 else (second, first)
        phrase = rng.choice(_relations(a, b))
        caption = (
            rng.choice(
                [
                    f"A {a.name} {phrase} a {b.name} .",
                    f"A {a.name} and a {b.name} .",
                    f"The {a.name} is {phrase} the {b.name} .",
                    f"One {a.name} , one {b.name} .",
                    f"There , {phrase} a {b.name} : a {a.name} .",
                ]
            )
            .replace("A orange", "An orange")
            .replace(" a orange", " an orange")
        )
        if caption not in captions:
            captions.append(caption)
    return captions
