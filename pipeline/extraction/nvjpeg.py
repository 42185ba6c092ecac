"""Decode JPEGs on the GPU with nvJPEG (through torchvision), and preprocess them there.

nvJPEG's pixels differ from libjpeg's by rounding, and the GPU resizes in floats. So the recipe of
such features records it, and `extract` checks on the data set that they keep their direction.
Pillow decodes the files that nvJPEG would decode differently (an EXIF orientation, CMYK, truncated
files).
"""

from collections import defaultdict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.extraction.preprocess import Sample, decode, resize_and_crop_box
from pipeline.features.recipe import FeatureRecipe, Preprocessing
from pipeline.images.decode import MAX_ASPECT, MAX_PIXELS

_BASELINE, _PROGRESSIVE = 0xC0, 0xC2
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15
_APP1, _APP14, _SCAN = 0xE1, 0xEE, 0xDA


def is_plain_jpeg(content: bytes) -> bool:
    """Whether nvJPEG and Pillow decode the file alike.

    That is, it has three 8-bit components in YCbCr, no EXIF data, a valid size, and is complete.
    """
    if not content.startswith(b"\xff\xd8") or not content.rstrip(b"\0").endswith(b"\xff\xd9"):
        return False
    offset, plain = 2, False
    while offset + 4 <= len(content) and content[offset] == 0xFF:
        marker, length = content[offset + 1], int.from_bytes(content[offset + 2 : offset + 4])
        segment = content[offset + 4 : offset + 2 + length]
        if marker == _SCAN:
            return plain
        if offset + 2 + length > len(content):
            return False
        if marker == _APP14 or (marker == _APP1 and segment.startswith(b"Exif")):
            return False
        if marker in _FRAMES:
            if marker not in (_BASELINE, _PROGRESSIVE) or length < 17:
                return False
            bits, components = segment[0], segment[5]
            height, width = int.from_bytes(segment[1:3]), int.from_bytes(segment[3:5])
            thin = max(height, width) > MAX_ASPECT * min(height, width)
            plain = bits == 8 and components == 3 and not thin and 0 < height * width <= MAX_PIXELS
        offset += 2 + length
    return False


def is_available(device: torch.device) -> bool:
    """Whether torchvision has nvJPEG, and it works on the device."""
    if device.type != "cuda":
        return False
    import torchvision.io  # noqa: F401 - registers the operators; slow

    try:
        image = torch.zeros(3, 16, 16, dtype=torch.uint8)
        content = torch.ops.image.encode_jpeg(image, 90)
        return torch.ops.image.decode_jpegs_cuda([content], 3, device)[0].shape == image.shape
    except (RuntimeError, AttributeError, NotImplementedError):
        return False


def preprocess_on_gpu(
    contents: Sequence[bytes],
    names: Sequence[str],
    recipe: FeatureRecipe,
    device: torch.device,
    samples: Sequence[Sample] = (),
) -> list[Tensor]:
    """Do what `preprocess` and `collate` do, on the GPU: return per view uint8 (B, S, S, 3).

    Args:
        names: the images' names in error messages.
        samples: which augmentations to apply first; () for none.

    Raises:
        InputError: a file is empty, not an image, truncated, or absurdly large.
    """
    current = torch.cuda.current_stream(device)
    stream = torch.cuda.Stream(device)
    with torch.inference_mode(), torch.cuda.stream(stream):
        images = _decode(contents, names, device)
        if samples:
            images = [
                sample.augment(image.permute(1, 2, 0)).permute(2, 0, 1)
                for sample, image in zip(samples, images, strict=True)
            ]
        views = [
            _resize_and_crop(images, view.preprocessing, recipe.crop_mode) for view in recipe.views
        ]
        stream.synchronize()  # blocks a worker thread only
    for view in views:
        view.record_stream(current)
    return views


def _decode(contents: Sequence[bytes], names: Sequence[str], device: torch.device) -> list[Tensor]:
    """Decode each image to uint8 (3, H, W) on the device."""
    plain = [index for index, content in enumerate(contents) if is_plain_jpeg(content)]
    decoded: Sequence[Tensor] = []
    if plain:
        joined = bytearray(b"".join(contents[index] for index in plain))  # for one call
        sizes = [len(contents[index]) for index in plain]
        encoded = list(torch.frombuffer(joined, dtype=torch.uint8).split(sizes))
        try:
            decoded = torch.ops.image.decode_jpegs_cuda(encoded, 3, device)  # 3: RGB
        except RuntimeError:  # let Pillow decode all, and name the damaged one
            plain = []
    by_index = dict(zip(plain, decoded, strict=True))
    return [
        by_index[index] if index in by_index else decode(content, name).permute(2, 0, 1).to(device)
        for index, (content, name) in enumerate(zip(contents, names, strict=True))
    ]


def _resize_and_crop(images: Sequence[Tensor], pre: Preprocessing, crop_mode: str) -> Tensor:
    """uint8 (3, H, W) each -> (B, S, S, 3); images of the same size are resized together."""
    by_shape: dict[torch.Size, list[int]] = defaultdict(list)
    for index, image in enumerate(images):
        by_shape[image.shape].append(index)
    batch = images[0].new_empty(len(images), pre.size, pre.size, 3)
    for (_, height, width), indices in by_shape.items():
        size, top, left = resize_and_crop_box(height, width, pre, crop_mode)
        planes = torch.stack([images[index] for index in indices]).float()  # (n, 3, H, W)
        if size != (height, width):
            planes = F.interpolate(planes, size=size, mode=pre.interpolation, antialias=True)
        planes = planes[..., top : top + pre.size, left : left + pre.size]
        rounded = planes.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
        batch[torch.tensor(indices, device=batch.device)] = rounded
    return batch
