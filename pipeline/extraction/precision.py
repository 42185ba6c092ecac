"""Choose the fastest precision of the frozen CNN that leaves its features unchanged."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pipeline.extraction.feature_extractor import FeatureExtractor

# The lowest allowed cosine similarity of an image's features to float32's. MobileNetV2 in bfloat16
# has 0.995 and loses 0.8 points of CIDEr; the sample is small, so the limit is stricter.
MIN_COSINE = 0.9995


def select_dtype(
    build: Callable[[torch.dtype], FeatureExtractor],
    candidates: Sequence[torch.dtype],
    sample: Sequence[Tensor],
    batch: int,
) -> FeatureExtractor:
    """Return the CNN in the first candidate precision that keeps float32's direction, or float32.

    Args:
        build: builds the CNN in a precision.
        candidates: the device's fast precisions, the most precise first.
        sample: images of the data set, per view uint8 (N, S, S, 3).
    """
    reference = build(torch.float32)
    expected = pooled_features(reference, sample, batch)
    for precision in candidates:
        cnn = build(precision)
        if same_direction(pooled_features(cnn, sample, batch), expected):
            return cnn
    return reference


def same_direction(features: Tensor, expected: Tensor) -> bool:
    """Whether vectors (N, D) have the expected directions; not so for the NaN of an overflow."""
    return bool(torch.cosine_similarity(features, expected).min() >= MIN_COSINE)


def pooled_features(cnn: FeatureExtractor, images: Sequence[Tensor], batch: int) -> Tensor:
    """Per view uint8 (N, S, S, 3) -> (N, D), computed in batches of this size."""
    batches = zip(*(view.split(batch) for view in images), strict=True)
    features = torch.cat([cnn(batch).cpu() for batch in batches])  # (N, D) or (N, H, W, D)
    return features if features.dim() == 2 else features.mean(dim=(1, 2))
