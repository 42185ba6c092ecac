"""From an image file's bytes to what the CNN takes: decode, resize, crop.

On a CPU these share the cores with the CNN, and beside a GPU they must feed it. So torch resizes,
whose vector instructions take a quarter of Pillow's time; no value differs by more than 1 of 255.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.features.recipe import FeatureRecipe, Preprocessing
from pipeline.images.archive import decode_image

PreprocessedViews = tuple[
    Tensor, ...
]  # what each view's CNN is shown of one image, uint8 (S, S, 3)


def preprocess(content: bytes, name: str, recipe: FeatureRecipe) -> PreprocessedViews:
    """Decode once, then resize and crop for every view as the recipe says; RGB.

    Args:
        name: what to call the image where it cannot be used.

    Raises:
        InputError: it is empty, no image, truncated, or absurdly large.
    """
    image = decode(content, name)
    return tuple(
        _resize_and_crop(image, view.preprocessing, recipe.crop_mode) for view in recipe.views
    )


def collate(images: Sequence[PreprocessedViews]) -> list[Tensor]:
    """B prepared images as a batch: for each view uint8 (B, S, S, 3)."""
    return [torch.stack(parts) for parts in zip(*images, strict=True)]


def decode(content: bytes, name: str) -> Tensor:
    """An image file's content -> uint8 (H, W, 3): upright, RGB, transparency on white.

    Raises:
        InputError: it is empty, no image, truncated, or absurdly large.
    """
    return torch.from_numpy(np.array(decode_image(content, name)))


def frame(
    height: int, width: int, pre: Preprocessing, crop_mode: str
) -> tuple[tuple[int, int], int, int]:
    """To what height and width an image is resized, and where the CNN's square begins in that:
    from the top, from the left."""
    if crop_mode == "squash":
        return (pre.size, pre.size), 0, 0
    # As torchvision's Resize and CenterCrop: the longer side's fraction is cut off.
    shorter = min(height, width)
    height, width = (int(pre.resize * side / shorter) for side in (height, width))
    return (height, width), round((height - pre.size) / 2), round((width - pre.size) / 2)


def _resize_and_crop(image: Tensor, pre: Preprocessing, crop_mode: str) -> Tensor:
    """(H, W, 3) -> (S, S, 3)."""
    (height, width), top, left = frame(image.shape[0], image.shape[1], pre, crop_mode)
    image = _resized(image, height, width, pre.interpolation)
    return image[top : top + pre.size, left : left + pre.size]


def _resized(image: Tensor, height: int, width: int, interpolation: str) -> Tensor:
    """(H, W, 3) -> (height, width, 3)."""
    if image.shape[:2] == (height, width):
        return image
    planes = image.permute(2, 0, 1).unsqueeze(0)  # (1, 3, H, W), a view: channels last
    resized = F.interpolate(planes, size=(height, width), mode=interpolation, antialias=True)
    return resized.squeeze(0).permute(1, 2, 0)
