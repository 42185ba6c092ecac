"""Choose the fastest precision of the frozen CNN that leaves its features unchanged."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pipeline.extraction.feature_extractor import FeatureExtractor
from pipeline.extraction.preprocess import PreprocessedViews, collate

# The lowest allowed cosine similarity of an image's features to float32's. MobileNetV2 in bfloat16
# has 0.995 and loses 0.8 points of CIDEr; the sample is small, so the limit is stricter.
MIN_COSINE = 0.9995


def select_dtype(
    build: Callable[[torch.dtype], FeatureExtractor],
    candidates: Sequence[torch.dtype],
    sample: Callable[[], Sequence[PreprocessedViews]],
    batch: int,
) -> FeatureExtractor:
    """Return the CNN in the first candidate precision that keeps float32's direction, or float32.

    Args:
        build: builds the CNN in a precision.
        candidates: the device's fast precisions, the most precise first.
        sample: returns preprocessed images of the data set; not called without candidates.
        batch: the batch size.
    """
    reference = build(torch.float32)
    if not candidates:
        return reference
    images = sample()
    batches = [collate(images[begin : begin + batch]) for begin in range(0, len(images), batch)]
    expected = _pooled_features(reference, batches)
    for precision in candidates:
        cnn = build(precision)
        if _features_match(_pooled_features(cnn, batches), expected):
            return cnn
    return reference


def features_match(
    cnn: FeatureExtractor, images: Sequence[Tensor], reference: Sequence[Tensor], batch: int
) -> bool:
    """Whether two ways to preprocess the same images give features of the same direction.

    Args:
        images, reference: per view uint8 (B, S, S, 3).
        batch: the batch size.
    """
    features, expected = (
        _pooled_features(cnn, list(zip(*(view.split(batch) for view in views), strict=True)))
        for views in (images, reference)
    )
    return _features_match(features, expected)


def _features_match(features: Tensor, expected: Tensor) -> bool:
    # False for the NaN of an overflow.
    return bool(torch.cosine_similarity(features, expected).min() >= MIN_COSINE)


def _pooled_features(cnn: FeatureExtractor, batches: Sequence[Sequence[Tensor]]) -> Tensor:
    features = torch.cat([cnn(batch).cpu() for batch in batches])  # (N, D) or (N, H, W, D)
    return features if features.dim() == 2 else features.mean(dim=(1, 2))
