"""Choose the fastest precision and JPEG decoder that leave the frozen CNN's features unchanged."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pipeline.backbones.weights import BackboneWeights
from pipeline.extraction import nvjpeg
from pipeline.extraction.feature_extractor import FeatureExtractor
from pipeline.extraction.preprocess import Sample, collate
from pipeline.extraction.stream import load
from pipeline.features.recipe import FeatureRecipe
from pipeline.images.archive import ImageArchive
from pipeline.runtime.device import fast_dtypes
from pipeline.runtime.errors import InputError

NUM_PROBE_IMAGES = 64

# The lowest allowed cosine similarity of an image's features to float32's. MobileNetV2 in bfloat16
# has 0.995 and loses 0.8 points of CIDEr; the sample is small, so the limit is stricter.
MIN_COSINE = 0.9995


def build_extractor(
    backbones: Sequence[BackboneWeights],
    recipe: FeatureRecipe,
    device: torch.device,
    precision: str,
    batch: int,
    archive: ImageArchive,
) -> FeatureExtractor:
    """Build the CNN in the precision of the params; for `auto`, choose it on some images."""

    def build(dtype: torch.dtype) -> FeatureExtractor:
        return FeatureExtractor(backbones, recipe, device, dtype, batch)

    if precision != "auto":
        return build(getattr(torch, precision))
    candidates = fast_dtypes(device)
    if not candidates:
        return build(torch.float32)
    sample = collate(load(archive, _probe(archive), recipe))
    return select_dtype(build, candidates, sample, batch)


def choose_jpeg_decoder(
    cnn: FeatureExtractor, choice: str, batch: int, archive: ImageArchive
) -> FeatureRecipe:
    """Return the recipe with the params' JPEG decoder; `auto` tries nvJPEG on some images."""
    if choice == "pillow" or (choice == "auto" and cnn.device.type == "cpu"):
        return cnn.recipe
    usable = nvjpeg.is_available(cnn.device)
    if choice == "nvjpeg" and not usable:
        raise InputError(
            "extract.jpeg_decoder is 'nvjpeg', which this machine's torchvision does not have; "
            "set it to auto"
        )
    if usable and choice == "auto":
        probe = _probe(archive)
        ids = [sample.image_id for sample in probe]
        contents = [archive.read(image_id) for image_id in ids]
        on_gpu = nvjpeg.preprocess_on_gpu(contents, ids, cnn.recipe, cnn.device)
        on_cpu = collate(load(archive, probe, cnn.recipe))
        features = [pooled_features(cnn, images, batch) for images in (on_gpu, on_cpu)]
        usable = same_direction(*features)
    return replace(cnn.recipe, jpeg_decoder="nvjpeg") if usable else cnn.recipe


def _probe(archive: ImageArchive) -> list[Sample]:
    return [Sample(image_id) for image_id in archive.ids[:NUM_PROBE_IMAGES]]


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
