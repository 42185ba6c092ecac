"""A little world to describe: coloured shapes, drawn at random, and captions of them."""

import math
import random
from dataclasses import dataclass
from typing import Literal

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
_SMOOTH = 3  # drawn this much larger, then scaled down


@dataclass(frozen=True)
class Shape:
    """One shape; place and radius as fractions of the image's side."""

    colour: str
    shape: str
    x: float
    y: float
    radius: float

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


def random_things(rng: random.Random, count: int) -> list[Shape]:
    """Things of different kinds that do not touch each other."""
    kinds = rng.sample(KINDS, count)
    while True:
        things = []
        for colour, shape in kinds:
            radius = rng.uniform(0.11, 0.19)
            x, y = (rng.uniform(radius + 0.02, 0.98 - radius) for _ in range(2))
            things.append(Shape(colour, shape, x, y, radius))
        if all(
            math.hypot(a.x - b.x, a.y - b.y) > 1.15 * (a.radius + b.radius)
            for i, a in enumerate(things)
            for b in things[:i]
        ):
            return things


def draw(things: list[Shape], rng: random.Random) -> Image.Image:
    """An RGB image, SIDE x SIDE, on a plain, slightly uneven ground."""
    side = SIDE * _SMOOTH
    grey = rng.randint(60, 235)
    ground = tuple(max(0, min(255, grey + rng.randint(-15, 15))) for _ in range(3))
    image = Image.new("RGB", (side, side), ground)
    canvas = ImageDraw.Draw(image)
    for thing in things:
        colour = tuple(
            max(0, min(255, value + rng.randint(-20, 20))) for value in COLOURS[thing.colour]
        )
        _draw_shape(canvas, thing, side, colour, rng)
    image = image.resize((SIDE, SIDE), Image.Resampling.BOX)
    noise = Image.frombytes("L", (SIDE, SIDE), rng.randbytes(SIDE * SIDE))
    noise = noise.filter(ImageFilter.GaussianBlur(2)).convert("RGB")
    return Image.blend(image, noise, 0.06)


def _draw_shape(
    canvas: ImageDraw.ImageDraw,
    thing: Shape,
    side: int,
    colour: tuple[int, ...],
    rng: random.Random,
) -> None:
    x, y, radius = thing.x * side, thing.y * side, thing.radius * side
    if thing.shape == "circle":
        canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
        return
    tilt = rng.uniform(-0.2, 0.2)
    # (angle in turns, distance from the centre as a fraction of the radius) of each corner
    corners = {
        "square": [(0.125 + i / 4, 1.0) for i in range(4)],
        "triangle": [(i / 3, 1.1) for i in range(3)],
        "star": [(i / 10, 1.15 if i % 2 == 0 else 0.45) for i in range(10)],
        "cross": [
            (side_turn / 4 + offset, distance)
            for side_turn in range(4)
            for offset, distance in ((-0.05, 1.05), (0.05, 1.05), (0.125, 0.46))
        ],
    }[thing.shape]
    points = [
        (
            x + radius * distance * math.sin(2 * math.pi * turn + tilt),
            y - radius * distance * math.cos(2 * math.pi * turn + tilt),
        )
        for turn, distance in corners
    ]
    canvas.polygon(points, fill=colour)


Relation = Literal["left", "right", "above", "below"]

_PHRASES: dict[Relation, tuple[str, ...]] = {
    "left": ("left of", "beside"),
    "right": ("right of", "beside"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}


def relation(a: Shape, b: Shape) -> Relation:
    """Where `a` is, seen from `b`."""
    if abs(a.x - b.x) > abs(a.y - b.y):
        return "left" if a.x < b.x else "right"
    return "above" if a.y < b.y else "below"


def describe(things: list[Shape], rng: random.Random, count: int = 5) -> list[str]:
    """Different captions of a scene of two things."""
    first, second = things
    captions: list[str] = []
    while len(captions) < count:
        a, b = (first, second) if rng.random() < 0.5 else (second, first)
        phrase = rng.choice(_PHRASES[relation(a, b)])
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
