"""JPEGs decoded on the GPU by nvJPEG, through torchvision, and made into what the CNN takes there.

nvJPEG's pixels differ from libjpeg's by rounding, and the GPU resizes in floats. So features made
in this way say so in their recipe, and `extract` tries on the set whether they keep their
direction. What nvJPEG would decode otherwise than Pillow does (an orientation in EXIF, CMYK, a file
that breaks off) is left to Pillow.
"""

from collections import defaultdict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.extraction.preprocess import decode, frame
from pipeline.features.recipe import FeatureRecipe, Preprocessing
from pipeline.images.archive import MAX_ASPECT, MAX_PIXELS

_BASELINE, _PROGRESSIVE = 0xC0, 0xC2
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15
_APP1, _APP14, _SCAN = 0xE1, 0xEE, 0xDA


def is_plain_jpeg(content: bytes) -> bool:
    """Whether both decoders see the same in it: three components of 8 bits in YCbCr, upright,
    whole, of a size that is allowed."""
    if not content.startswith(b"\xff\xd8") or not content.rstrip(b"\0").endswith(b"\xff\xd9"):
        return False
    at, fits = 2, False
    while at + 4 <= len(content) and content[at] == 0xFF:
        marker, length = content[at + 1], int.from_bytes(content[at + 2 : at + 4])
        if marker == _SCAN:
            return fits
        if at + 2 + length > len(content):
            return False
        if marker == _APP14 or (marker == _APP1 and content[at + 4 : at + 8] == b"Exif"):
            return False
        if marker in _FRAMES:
            if marker not in (_BASELINE, _PROGRESSIVE) or length < 17:
                return False
            bits, parts = content[at + 4], content[at + 9]
            height, width = (
                int.from_bytes(content[at + 5 + 2 * side : at + 7 + 2 * side]) for side in (0, 1)
            )
            thin = max(height, width) > MAX_ASPECT * min(height, width)
            fits = bits == 8 and parts == 3 and not thin and 0 < height * width <= MAX_PIXELS
        at += 2 + length
    return False


def works_on(device: torch.device) -> bool:
    """Whether this torchvision has nvJPEG, and it runs here."""
    if device.type != "cuda":
        return False
    import torchvision.io  # noqa: F401 - registers the operators; slow

    try:
        image = torch.zeros(3, 16, 16, dtype=torch.uint8)
        content = torch.ops.image.encode_jpeg(image, 90)
        return torch.ops.image.decode_jpegs_cuda([content], 3, device)[0].shape == image.shape
    except (RuntimeError, AttributeError, NotImplementedError):
        return False


def prepare_on_gpu(
    contents: Sequence[bytes], names: Sequence[str], recipe: FeatureRecipe, device: torch.device
) -> list[Tensor]:
    """For each view uint8 (B, S, S, 3) on the device, as `preprocess` and `stack` give them.

    Args:
        names: what to call each image where it cannot be used.

    Raises:
        InputError: an image is empty, no image, truncated, or absurdly large.
    """
    current = torch.cuda.current_stream(device)
    own = torch.cuda.Stream(device)
    with torch.inference_mode(), torch.cuda.stream(own):
        images = _decoded(contents, names, device)
        views = [
            _resize_and_crop(images, view.preprocessing, recipe.crop_mode) for view in recipe.views
        ]
        own.synchronize()  # in a thread of its own, which has nothing else to do
    for view in views:
        view.record_stream(current)
    return views


def _decoded(contents: Sequence[bytes], names: Sequence[str], device: torch.device) -> list[Tensor]:
    """uint8 (3, H, W) each, on the device."""
    plain = [place for place, content in enumerate(contents) if is_plain_jpeg(content)]
    decoded: Sequence[Tensor] = []
    if plain:
        whole = bytearray(b"".join(contents[place] for place in plain))  # one piece: fewer calls
        sizes = [len(contents[place]) for place in plain]
        encoded = list(torch.frombuffer(whole, dtype=torch.uint8).split(sizes))
        try:
            decoded = torch.ops.image.decode_jpegs_cuda(encoded, 3, device)  # 3: RGB
        except RuntimeError:  # Pillow says which one is broken, if it thinks so too
            plain = []
    found = dict(zip(plain, decoded, strict=True))
    return [
        found[place] if place in found else decode(content, name).permute(2, 0, 1).to(device)
        for place, (content, name) in enumerate(zip(contents, names, strict=True))
    ]


def _resize_and_crop(images: Sequence[Tensor], pre: Preprocessing, crop_mode: str) -> Tensor:
    """uint8 (3, H, W) each -> (B, S, S, 3), those of one size resized together."""
    alike: dict[torch.Size, list[int]] = defaultdict(list)
    for place, image in enumerate(images):
        alike[image.shape].append(place)
    shown = images[0].new_empty(len(images), pre.size, pre.size, 3)
    for (_, height, width), places in alike.items():
        size, top, left = frame(height, width, pre, crop_mode)
        planes = torch.stack([images[place] for place in places]).float()  # (n, 3, H, W)
        if size != (height, width):
            planes = F.interpolate(planes, size=size, mode=pre.interpolation, antialias=True)
        planes = planes[..., top : top + pre.size, left : left + pre.size]
        rounded = planes.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
        shown[torch.tensor(places, device=shown.device)] = rounded
    return shown
