"""How few bits the frozen CNN may compute with: as few as leave its features what they are."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pipeline.extraction.feature_extractor import FeatureExtractor
from pipeline.extraction.preprocess import PreprocessedViews, collate

# Of the features with float32's, the worst image's. MobileNetV2 in bfloat16 has 0.995, and costs
# 0.8 points of CIDEr; the sample is small, so it must do better than all images need to.
MIN_COSINE = 0.9995


def select_dtype(
    build: Callable[[torch.dtype], FeatureExtractor],
    candidates: Sequence[torch.dtype],
    sample: Callable[[], Sequence[PreprocessedViews]],
    batch: int,
) -> FeatureExtractor:
    """The CNN in the first of the candidate precisions whose features keep float32's direction.

    Args:
        build: the CNN in a precision.
        candidates: of this device, the one that loses least first; float32 when none is faithful.
        sample: prepared images of the set; not called without candidates.
        batch: how many of them at a time.
    """
    exact = build(torch.float32)
    if not candidates:
        return exact
    images = sample()
    parts = [collate(images[begin : begin + batch]) for begin in range(0, len(images), batch)]
    wanted = _vectors(exact, parts)
    for precision in candidates:
        cnn = build(precision)
        # Overflow gives NaN, which is no larger than anything.
        if torch.cosine_similarity(_vectors(cnn, parts), wanted).min() >= MIN_COSINE:
            return cnn
    return exact


def keeps_direction(
    cnn: FeatureExtractor, images: Sequence[Tensor], usual: Sequence[Tensor], batch: int
) -> bool:
    """Whether the CNN says of images what it says of the same ones prepared as usual.

    Args:
        images, usual: for each view uint8 (B, S, S, 3).
        batch: how many of them at a time.
    """
    parts = [
        [list(part) for part in zip(*(view.split(batch) for view in one), strict=True)]
        for one in (images, usual)
    ]
    made, wanted = (_vectors(cnn, one) for one in parts)
    return bool(torch.cosine_similarity(made, wanted).min() >= MIN_COSINE)


def _vectors(cnn: FeatureExtractor, parts: Sequence[Sequence[Tensor]]) -> Tensor:
    features = torch.cat([cnn(part).cpu() for part in parts])  # (N, D) or (N, H, W, D)
    return features if features.dim() == 2 else features.mean(dim=(1, 2))
