"""Check a demo caption against the shapes in its image."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from pipeline.demo.shapes import COLOURS, SHAPES


def shapes_in(tokens: Sequence[str]) -> Counter[tuple[str, str]]:
    """Count the (colour, shape) pairs in a caption: a shape right after its colour."""
    return Counter(
        (colour, shape)
        for colour, shape in pairwise(tokens)
        if colour in COLOURS and shape in SHAPES
    )


def is_correct(caption: Sequence[str], reference: Sequence[str]) -> bool:
    """Whether a caption names exactly the shapes of the reference, each with its colour."""
    return shapes_in(caption) == shapes_in(reference)
