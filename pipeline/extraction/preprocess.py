"""From an image file's bytes to the CNN's input: decode, resize, crop.

These steps share the CPU's cores with the CNN, or must keep up with a GPU. So torch resizes, in a
quarter of Pillow's time; values differ from Pillow's by at most 1 of 255.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.extraction.augment import choose_augmentation
from pipeline.features.recipe import FeatureRecipe, Preprocessing
from pipeline.images.decode import ImageSource, load_image

PreprocessedViews = tuple[Tensor, ...]  # one image, per view uint8 (S, S, 3)


class Sample(NamedTuple):
    """An image of an archive, or one of its augmentations."""

    image_id: str
    augmentation: int = 0

    def augment(self, image: Tensor) -> Tensor:
        """uint8 (H, W, 3) -> the augmentation, of another size unless it is 0 or 1."""
        return choose_augmentation(*self, *image.shape[:2])(image)


def preprocess(
    source: ImageSource,
    recipe: FeatureRecipe,
    name: str | None = None,
    sample: Sample | None = None,
) -> PreprocessedViews:
    """Decode an image once, then resize and crop it for every view of the recipe.

    Args:
        name: the image's name in error messages; by default its path.
        sample: which augmentation to apply first; None: none.

    Raises:
        InputError: the file is empty, not an image, truncated, or absurdly large.
    """
    image = decode(source, name)
    if sample:
        image = sample.augment(image)
    return tuple(
        _resize_and_crop(image, view.preprocessing, recipe.crop_mode) for view in recipe.views
    )


def collate(images: Sequence[PreprocessedViews]) -> list[Tensor]:
    """Stack B preprocessed images to a batch: per view uint8 (B, S, S, 3)."""
    return [torch.stack(views) for views in zip(*images, strict=True)]


def decode(source: ImageSource, name: str | None = None) -> Tensor:
    """Decode an image -> uint8 (H, W, 3): upright, RGB, transparency on white."""
    return torch.from_numpy(np.array(load_image(source, name)))


def resize_and_crop_box(
    height: int, width: int, pre: Preprocessing, crop_mode: str
) -> tuple[tuple[int, int], int, int]:
    """Return the (height, width) to resize an image to, and the crop's top and left edges."""
    if crop_mode == "squash":
        return (pre.size, pre.size), 0, 0
    # As torchvision's Resize and CenterCrop: the longer side is rounded down.
    shorter = min(height, width)
    height, width = (int(pre.resize * side / shorter) for side in (height, width))
    return (height, width), round((height - pre.size) / 2), round((width - pre.size) / 2)


def _resize_and_crop(image: Tensor, pre: Preprocessing, crop_mode: str) -> Tensor:
    """(H, W, 3) -> (S, S, 3)."""
    size, top, left = resize_and_crop_box(image.shape[0], image.shape[1], pre, crop_mode)
    if image.shape[:2] != size:
        planes = image.permute(2, 0, 1).unsqueeze(0)  # (1, 3, H, W), a view: channels last
        planes = F.interpolate(planes, size=size, mode=pre.interpolation, antialias=True)
        image = planes.squeeze(0).permute(1, 2, 0)
    return image[top : top + pre.size, left : left + pre.size]
