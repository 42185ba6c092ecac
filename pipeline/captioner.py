"""The captioner: the frozen CNN and the trained decoder (or several) as one model."""

from collections.abc import Sequence
from pathlib import Path
from typing import overload

import torch
from torch import Tensor

from pipeline.backbones.weights import read_backbones
from pipeline.captions.vocabulary import END, PAD, START
from pipeline.decoders.decoder import Decoder
from pipeline.evaluation.ensemble import build_ensemble, read_models
from pipeline.extraction.feature_extractor import FeatureExtractor
from pipeline.extraction.preprocess import PreprocessedViews, collate, preprocess
from pipeline.generation.beam_search import BeamSearch, BeamSearchConfig
from pipeline.generation.sampling import SamplingConfig, sample
from pipeline.images.archive import read_image
from pipeline.runtime.device import use_reproducible_products

BATCH_SIZE = 16
ImageSource = str | Path | bytes  # a path, or the content of an image file
MODEL, BACKBONE = "captioner.safetensors", "backbone.safetensors"


class Captioner:
    """Images in, captions out."""

    def __init__(self, backbone: Path, models: Sequence[Path], device: torch.device) -> None:
        """
        Args:
            models: one, or the members of an ensemble.

        Raises:
            InputError: a file cannot be used, or a model was trained on another backbone.
        """
        use_reproducible_products()
        trained = read_models(models, device)
        self.max_length = max(model.max_length for model in trained)  # of a caption, in tokens
        self._vocabulary, recipes = trained[0].vocabulary, [model.recipe for model in trained]
        # Members of an ensemble that take vectors take the means of the others' grids.
        self._recipe = next((recipe for recipe in recipes if recipe.layer == "grid"), recipes[0])
        where = str(models[recipes.index(self._recipe)])
        self._decoder = build_ensemble(trained, self._recipe, where)
        self._cnn = FeatureExtractor(read_backbones(backbone), self._recipe, device)

    @overload
    def caption(self, images: ImageSource, config: BeamSearchConfig | None = None) -> str: ...

    @overload
    def caption(
        self, images: list[ImageSource], config: BeamSearchConfig | None = None
    ) -> list[str]: ...

    def caption(
        self,
        images: ImageSource | list[ImageSource],
        config: BeamSearchConfig | None = None,
    ) -> str | list[str]:
        """Caption one image, or several in batches.

        Args:
            images: one, or a list.
            config: the search; `default_search()` if omitted.

        Raises:
            InputError: an image cannot be read.
        """
        if not isinstance(images, list):
            return self.caption([images], config)[0]
        config = config or self.default_search()
        captions: list[str] = []
        for begin in range(0, len(images), BATCH_SIZE):
            batch = [self.preprocess(image) for image in images[begin : begin + BATCH_SIZE]]
            captions += [groups[0] for groups in self.generate(batch, config)]
        return captions

    def default_search(self) -> BeamSearchConfig:
        """Beam 5 without repeated bigrams: fixed, whatever `params.yaml` says."""
        return BeamSearchConfig(
            beam_size=5, length_penalty=1.0, max_length=self.max_length, no_repeat_ngram_size=2
        )

    def preprocess(self, image: ImageSource) -> PreprocessedViews:
        """Read one image as the CNN takes it."""
        if isinstance(image, bytes):
            return preprocess(image, "the image", self._recipe)
        return preprocess(read_image(Path(image)), str(image), self._recipe)

    def features(self, images: Sequence[PreprocessedViews]) -> Tensor:
        """The features of preprocessed images, float32 (P, D) or (P, height, width, D)."""
        return self._cnn(collate(images))

    def generate(
        self, images: Sequence[PreprocessedViews], config: BeamSearchConfig
    ) -> list[list[str]]:
        """One caption per group of beams, for each preprocessed image."""
        found = BeamSearch(self._decoder, config)(self.features(images))
        return [[self._decode(caption.token_ids) for caption in groups] for groups in found]

    def sample(
        self,
        images: Sequence[PreprocessedViews],
        count: int,
        config: SamplingConfig,
        rng: torch.Generator,
    ) -> list[list[str]]:
        """`count` sampled captions of each preprocessed image."""
        rows = sample(self._decoder, self.features(images), count, config, rng).tolist()
        captions = [self._decode([token for token in row if token != PAD]) for row in rows]
        return [captions[begin : begin + count] for begin in range(0, len(captions), count)]

    def _decode(self, token_ids: list[int]) -> str:
        return " ".join(self._vocabulary.decode([token for token in token_ids if token != END]))

    @property
    def has_attention(self) -> bool:
        """Whether it is a single decoder that attends to a grid."""
        return isinstance(self._decoder, Decoder) and self._recipe.layer == "grid"

    def attention_weights(self, image: PreprocessedViews, caption: Sequence[str]) -> Tensor:
        """The weights with which each token of a caption was predicted, (T, height, width).

        Raises:
            TypeError: the decoder has no attention.
        """
        if not isinstance(self._decoder, Decoder):
            raise TypeError("an ensemble has no attention weights of its own")
        features = self.features([image])  # (1, height, width, D)
        token_ids = torch.tensor([[START, *self._vocabulary.encode(caption)[:-1]]])
        with torch.inference_mode():
            weights = self._decoder.attention_weights(features, token_ids.to(features.device))[0]
        height, width = features.shape[1:3]
        return weights[:, : height * width].unflatten(1, (height, width)).cpu()
