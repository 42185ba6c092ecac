"""Augmented views of an image: its mirror image, and random crops of which half are mirrored.

Inception's random resized crop and flip (Szegedy et al., CVPR 2015), but with larger crops, for a
caption must stay true. Features are computed once, so the views are fixed: each depends on nothing
but the image's id and the view's number.
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

AREA = (0.55, 0.95)  # of a crop, as a fraction of the image's
MAX_STRETCH = 0.15  # of the crop's aspect ratio, as a logarithm


@dataclass(frozen=True)
class Augmentation:
    """A crop in pixels, and whether it is mirrored."""

    top: int
    left: int
    height: int
    width: int
    mirrored: bool

    def __call__(self, image: Tensor) -> Tensor:
        """uint8 (H, W, 3) -> (height, width, 3)."""
        rows = slice(self.top, self.top + self.height)
        columns = slice(self.left, self.left + self.width)
        cropped = image[rows, columns]
        return cropped.flip(1) if self.mirrored else cropped


def choose_augmentation(image_id: str, number: int, height: int, width: int) -> Augmentation:
    """Return an image's augmentation of this number: 0 is the image itself, 1 its mirror image, and
    all others are crops, the odd ones mirrored."""
    if number < 2:
        return Augmentation(0, 0, height, width, mirrored=number == 1)
    digest = hashlib.sha256(f"{image_id}\0{number}".encode("utf-8", "surrogatepass")).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    side, stretch = math.sqrt(rng.uniform(*AREA)), math.exp(rng.uniform(-MAX_STRETCH, MAX_STRETCH))
    cropped_height = max(1, min(height, round(height * side * stretch)))
    cropped_width = max(1, min(width, round(width * side / stretch)))
    return Augmentation(
        top=int(rng.integers(height - cropped_height + 1)),
        left=int(rng.integers(width - cropped_width + 1)),
        height=cropped_height,
        width=cropped_width,
        mirrored=number % 2 == 1,
    )
