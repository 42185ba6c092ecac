"""Whether a caption of the little world names what is there."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from pipeline.demo.shapes import COLOURS, SHAPES


def named_kinds(tokens: Sequence[str]) -> Counter[tuple[str, str]]:
    """The (colour, shape) pairs of a caption: a shape and the colour right before it."""
    return Counter(
        (colour, shape)
        for colour, shape in pairwise(tokens)
        if colour in COLOURS and shape in SHAPES
    )


def named_right(caption: Sequence[str], reference: Sequence[str]) -> bool:
    """Exactly the things of the reference, each in its own colour."""
    return named_kinds(caption) == named_kinds(reference)
