"""The training images nearest to an image, and the captions that people wrote for them.

Near is a large cosine of the features' means over the grid, each number standardised over the
training images. Shapes: N training images, D numbers per vector, P images, k neighbours of each.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.captions.vocabulary import Vocabulary, parse_words
from pipeline.decoders.captioner_file import TrainedDecoder
from pipeline.features.recipe import FeatureRecipe, require_same_recipe
from pipeline.metrics.rewards import CiderReward, References
from pipeline.runtime.errors import ArtifactError, InputError
from pipeline.runtime.tensors import read_tensors, write_tensors

FORMAT = 1
TEMPERATURE = 0.1  # of the softmax over cosines; found on Flickr8k's val split
MIN_STD = 1e-6  # below it, a number does not vary and counts for nothing


@dataclass(frozen=True)
class Neighbors:
    """The training images' vectors, and their captions in token ids."""

    vectors: Tensor  # (N, D), standardised, of length 1
    mean: Tensor  # (D,)
    scale: Tensor  # (D,), 1 / standard deviation
    captions: Sequence[Sequence[Sequence[int]]]  # several per image
    vocabulary: Vocabulary
    recipe: FeatureRecipe
    split_digest: str  # of the split whose training images these are

    def nearest(self, features: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The training images nearest to features (P, …), the nearest first: their weights (P, k),
        a softmax of the cosines, and indices (P, k); k is `count`, or N if there are fewer."""
        vectors = _standardize(mean_vectors(features), self.mean, self.scale)
        cosines, indices = (vectors @ self.vectors.T).topk(min(count, len(self.vectors)))
        return (cosines / TEMPERATURE).softmax(dim=1), indices

    @cached_property
    def cider(self) -> CiderReward:
        """Scores captions against those of training images."""
        references = References(self.captions, len(self.vocabulary), self.vectors.device)
        return CiderReward(references)


def mean_vectors(features: Tensor) -> Tensor:
    """Vectors (P, D) of features (P, D) or (P, height, width, D)."""
    return features.mean(dim=(1, 2)) if features.dim() == 4 else features


def build_neighbors(
    vectors: Tensor,
    captions: Sequence[Sequence[Sequence[int]]],
    vocabulary: Vocabulary,
    recipe: FeatureRecipe,
    split_digest: str,
) -> Neighbors:
    """Build them from the training images' mean vectors (N, D), float32."""
    mean = vectors.mean(dim=0)
    std = vectors.std(dim=0, correction=0)
    scale = torch.where(std > MIN_STD, 1 / std, 0)
    vectors = _standardize(vectors, mean, scale)
    return Neighbors(vectors, mean, scale, captions, vocabulary, recipe, split_digest)


def _standardize(vectors: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    return F.normalize((vectors - mean) * scale, dim=1)


def write_neighbors(path: Path, neighbors: Neighbors) -> None:
    """Write them; the vectors in float16, which changes cosines only in their last digits."""
    flat = [caption for captions in neighbors.captions for caption in captions]
    tensors = {
        "vectors": neighbors.vectors.half(),
        "mean": neighbors.mean,
        "scale": neighbors.scale,
        "token_ids": _int32(token for caption in flat for token in caption),
        "lengths": _int32(map(len, flat)),
        "counts": _int32(map(len, neighbors.captions)),
    }
    header = {
        "neighbors": FORMAT,
        "features": asdict(neighbors.recipe),
        "split_digest": neighbors.split_digest,
        "vocabulary": list(neighbors.vocabulary.words),
    }
    write_tensors(path, tensors, header)


def _int32(numbers: Iterable[int]) -> Tensor:
    return torch.tensor(list(numbers), dtype=torch.int32)


def read_neighbors(path: Path, model: TrainedDecoder, device: torch.device) -> Neighbors:
    """Read the neighbours for a model's captions. A model of vectors can have those of grids, and
    the other way round: what counts is a grid's mean.

    Raises:
        InputError: the file is missing, damaged, or of another vocabulary, split or features.
    """
    tensors, header = read_tensors(path)
    if header.get("neighbors") != FORMAT:
        raise ArtifactError(path, "is not a file of neighbours of this version")
    vocabulary = model.vocabulary
    if parse_words(header.get("vocabulary"), where=str(path)) != vocabulary:
        raise InputError(f"{path} has another vocabulary than the model; run 'showtell neighbors'")
    recipe = FeatureRecipe.from_json(header.get("features"), where=str(path))
    pooled = replace(recipe, layer="pooled")
    require_same_recipe(pooled, replace(model.recipe, layer="pooled"), str(path))
    if header.get("split_digest") != model.split_digest:  # they may be test images
        raise InputError(f"{path} is of another split than the model; run 'showtell neighbors'")
    try:
        lengths, counts = tensors["lengths"].tolist(), tensors["counts"].tolist()
        flat = [caption.tolist() for caption in tensors["token_ids"].split(lengths)]
        ends = torch.tensor([0, *counts]).cumsum(0).tolist()
        captions = [flat[begin:end] for begin, end in pairwise(ends)]
        vectors, mean, scale = (tensors[name].float() for name in ("vectors", "mean", "scale"))
        if not (
            vectors.shape == (len(captions), len(mean))
            and mean.shape == scale.shape
            and sum(counts) == len(flat)
            and min(counts) > 0
            and tensors["token_ids"].min() >= 0
            and tensors["token_ids"].max() < len(vocabulary)
        ):
            raise ValueError("shapes differ")
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ArtifactError(path, f"has tensors that do not fit together ({error})") from None
    vectors, mean, scale = (tensor.to(device) for tensor in (vectors, mean, scale))
    return Neighbors(vectors, mean, scale, captions, vocabulary, recipe, model.split_digest)
