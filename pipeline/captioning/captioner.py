"""The captioner: the frozen CNN and the trained decoder (or several) as one model."""

import math
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Literal, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline.backbones.weights import read_backbones
from pipeline.captioning.caption import Caption, best_distinct, describe_hypothesis
from pipeline.captioning.feature_stream import map_features, raise_errors
from pipeline.captioning.files import NEIGHBORS
from pipeline.captions.vocabulary import END, PAD, START
from pipeline.decoders.decoder import Decoder
from pipeline.evaluation.confidence import Confidence, match_calibration
from pipeline.evaluation.ensemble import build_ensemble, read_models
from pipeline.extraction.feature_extractor import FeatureExtractor
from pipeline.extraction.preprocess import PreprocessedViews, collate, preprocess
from pipeline.generation.beam_search import BeamSearchConfig
from pipeline.generation.sampling import SamplingConfig, sample
from pipeline.images.decode import BinaryFile, ImageSource
from pipeline.reranking.consensus import build_search
from pipeline.reranking.neighbors import read_neighbors
from pipeline.runtime.device import use_reproducible_products
from pipeline.runtime.errors import InputError

SEARCHES = 16  # the last ones used; on a GPU each keeps its CUDA graphs


class Captioner:
    """Images in, captions out. Several threads may share an instance."""

    def __init__(
        self,
        backbone: Path,
        models: Sequence[Path],
        device: torch.device,
        confidence: Path | Confidence | None = None,
        search: BeamSearchConfig | None = None,
    ) -> None:
        """
        Args:
            models: one, or the members of an ensemble.
            confidence: the calibration, or its file; ignored if it is of other models.
            search: the default; if omitted, the calibration's, or beam 5 without repeated bigrams.

        Raises:
            InputError: a file cannot be used, or a model was trained on another backbone.
        """
        use_reproducible_products()
        trained = read_models(models, device)
        self.device = device
        self.max_length = max(model.max_length for model in trained)  # of a caption, in tokens
        self.vocabulary, recipes = trained[0].vocabulary, [model.recipe for model in trained]
        # Members of an ensemble that take vectors take the means of the others' grids.
        self.recipe = next((recipe for recipe in recipes if recipe.layer == "grid"), recipes[0])
        where = str(models[recipes.index(self.recipe)])
        self.decoder = build_ensemble(trained, self.recipe, where)
        self.confidence = match_calibration(confidence, trained)
        plain = BeamSearchConfig(5, 1.0, self.max_length, no_repeat_ngram_size=2)
        self.search = search or (self.confidence.search if self.confidence else plain)
        self._cnn = FeatureExtractor(read_backbones(backbone), self.recipe, device)
        neighbors = models[0].with_name(NEIGHBORS)
        read = cache(partial(read_neighbors, neighbors, trained[0], device))
        self._search = lru_cache(SEARCHES)(partial(build_search, self.decoder, neighbors=read))
        self._search(self.search)  # what it lacks is an error now, not at the first image
        # A GPU's captured graphs read and write the same memory in every call.
        self._lock: AbstractContextManager[object]
        self._lock = nullcontext() if device.type == "cpu" else threading.Lock()

    def __repr__(self) -> str:
        decoder = self.decoder.config.decoder if isinstance(self.decoder, Decoder) else "ensemble"
        size = f"{len(self.vocabulary):,} tokens"
        return f"<Captioner: {decoder} on {self.recipe.label}; {size}; {self.device}>"

    @overload  # a str is an image, although it is an iterable of them
    def caption(  # type: ignore[overload-overlap]
        self,
        images: ImageSource,
        search: BeamSearchConfig | None = None,
        *,
        alternatives: int = 0,
        attention: bool = False,
    ) -> Caption: ...

    @overload
    def caption(
        self,
        images: Iterable[ImageSource],
        search: BeamSearchConfig | None = None,
        *,
        alternatives: int = 0,
        attention: bool = False,
    ) -> list[Caption]: ...

    def caption(
        self,
        images: ImageSource | Iterable[ImageSource],
        search: BeamSearchConfig | None = None,
        *,
        alternatives: int = 0,
        attention: bool = False,
    ) -> Caption | list[Caption]:
        """Caption one image, or all of several.

        Args:
            images: one, or any iterable of images: a path, a file opened in binary mode or its
                bytes, an image of Pillow's, or an array of uint8 (H, W, 3).
            search: the search; by default `self.search`.
            alternatives: how many other captions of each image to return with it, at most.
            attention: whether to return where each token looked.

        Raises:
            InputError: an image cannot be read, there are fewer beams than captions asked for, or
                the decoder has no attention.
        """
        if isinstance(images, str | Path | bytes | Image.Image | np.ndarray | BinaryFile):
            config = self._configure(search, alternatives, attention)
            views = self.preprocess(images)
            with self._lock:
                return self._describe(self.features([views]), config, alternatives, attention)[0]
        return list(self.stream(images, search, alternatives=alternatives, attention=attention))

    @overload
    def stream(
        self,
        images: Iterable[ImageSource],
        search: BeamSearchConfig | None = None,
        *,
        alternatives: int = 0,
        attention: bool = False,
        errors: Literal["raise"] = "raise",
    ) -> Iterator[Caption]: ...

    @overload
    def stream(
        self,
        images: Iterable[ImageSource | InputError],
        search: BeamSearchConfig | None = None,
        *,
        alternatives: int = 0,
        attention: bool = False,
        errors: Literal["return"],
    ) -> Iterator[Caption | InputError]: ...

    def stream(
        self,
        images: Iterable[ImageSource | InputError],
        search: BeamSearchConfig | None = None,
        *,
        alternatives: int = 0,
        attention: bool = False,
        errors: Literal["raise", "return"] = "raise",
    ) -> Iterator[Caption | InputError]:
        """Caption images as they come, in order, in batches; memory does not grow with them.

        Args:
            images: as for `caption`; a generator is read a few batches ahead.
            errors: `return` yields the InputError of an image that cannot be read in its place, and
                passes one on that stands in an image's place.
        """
        if errors not in ("raise", "return"):
            raise ValueError(f"errors must be 'raise' or 'return', not {errors!r}")
        config = self._configure(search, alternatives, attention)
        describe = partial(
            self._describe, config=config, alternatives=alternatives, attention=attention
        )
        outcomes = map_features(describe, images, self._cnn, self._lock, concurrent=True)
        return outcomes if errors == "return" else raise_errors(outcomes)

    def sample(
        self,
        images: Iterable[ImageSource | InputError],
        count: int,
        config: SamplingConfig,
        seed: int = 0,
    ) -> Iterator[list[Caption] | InputError]:
        """`count` sampled captions of each image, without scores, or why it cannot be read."""
        rng, decode = torch.Generator(self.device).manual_seed(seed), self.vocabulary.decode

        def draw(features: Tensor) -> list[list[Caption]]:
            rows = sample(self.decoder, features, count, config, rng).tolist()
            ids = ([token for token in row if token not in (PAD, END)] for row in rows)
            captions = [Caption(" ".join(words), tuple(words)) for words in map(decode, ids)]
            return [captions[begin : begin + count] for begin in range(0, len(captions), count)]

        # One after the other: the generator's numbers are drawn in order.
        return map_features(draw, images, self._cnn, self._lock, concurrent=False)

    def preprocess(self, image: ImageSource) -> PreprocessedViews:
        """Read one image as the CNN takes it."""
        return preprocess(image, self.recipe)

    def features(self, images: Sequence[PreprocessedViews]) -> Tensor:
        """The features of preprocessed images, float32 (P, D) or (P, height, width, D)."""
        return self._cnn(collate(images))

    def caption_features(
        self, features: Tensor, search: BeamSearchConfig, alternatives: int, attention: bool
    ) -> list[Caption]:
        """Caption images by their features; on a GPU one thread at a time, as `features`."""
        config = self._configure(search, alternatives, attention)
        return self._describe(features, config, alternatives, attention)

    @property
    def has_attention(self) -> bool:
        """Whether it is a single decoder that attends to a grid."""
        return isinstance(self.decoder, Decoder) and self.recipe.layer == "grid"

    def _configure(
        self, search: BeamSearchConfig | None, alternatives: int, attention: bool
    ) -> BeamSearchConfig:
        search = search or self.search
        if attention and not self.has_attention:
            raise InputError("the model has no attention over a grid; it was trained without")
        if alternatives < 0:
            raise ValueError(f"alternatives must be 0 or more, not {alternatives}")
        if alternatives >= search.beam_size:
            raise InputError(
                f"{alternatives} alternatives need a beam of {alternatives + 1} or more, not "
                f"{search.beam_size}"
            )
        if search.consensus_weight:
            return search  # it returns all that the beams find
        per_group = math.ceil((1 + alternatives) / search.beam_groups)
        return replace(search, num_return_sequences=per_group)

    def _describe(
        self, features: Tensor, config: BeamSearchConfig, alternatives: int, attention: bool
    ) -> list[Caption]:
        """The captions of images, from their features (P, …)."""
        captions = []
        for image, found in zip(features.split(1), self._search(config)(features), strict=True):
            kept = best_distinct(found)[: 1 + alternatives]
            best, *others = (
                describe_hypothesis(one, self.vocabulary, self.confidence) for one in kept
            )
            weights = self._attention(image, kept[0].token_ids) if attention else None
            captions.append(replace(best, alternatives=tuple(others), attention=weights))
        return captions

    def _attention(self, features: Tensor, token_ids: list[int]) -> NDArray[np.float32]:
        """The weights (T, height, width) with which each token was predicted, less a sentinel's."""
        assert isinstance(self.decoder, Decoder)
        inputs = torch.tensor([[START, *token_ids[:-1]]], device=features.device)
        with torch.inference_mode():
            weights = self.decoder.attention_weights(features, inputs)[0]
        height, width = features.shape[1:3]
        return weights[:, : height * width].unflatten(1, (height, width)).cpu().numpy()
