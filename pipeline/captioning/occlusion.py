"""Occlusion maps: which parts of a photo the words of a caption depend on, for any captioner.

A patch slides over the photo, and whatever it covers is hidden from the CNN (Zeiler & Fergus, ECCV
2014). A word depends on a part if covering it makes the word less likely. Unlike attention weights
this needs no grid, and it says what matters, not where the decoder looked.
"""

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.captioning.captioner import Captioner
from pipeline.captions.vocabulary import START
from pipeline.decoders.decoder import StepDecoder
from pipeline.extraction.feature_extractor import default_batch_size
from pipeline.extraction.preprocess import PreprocessedViews
from pipeline.features.recipe import FeatureRecipe

CELLS = 8  # of the map, each way
PATCH = 2  # cells that a patch covers, each way; it moves by one, so that neighbours overlap
CORNERS = list(product(range(CELLS - PATCH + 1), repeat=2))  # the row and column of each patch

# An ensemble's mean probability can be 0 in float32, and differences must stay finite.
MIN_LOG_PROB = -50.0


def occlusion_map(
    captioner: Captioner, image: PreprocessedViews, tokens: Sequence[str]
) -> NDArray[np.float32]:
    """By how much the log-probability of each of T tokens falls, given those before it, where the
    image is covered: (T, 8, 8), the mean of the patches over each cell; negative where it rises.
    """
    token_ids = captioner.vocabulary.encode(tokens)
    images = [image, *_covered(image, captioner.recipe)]
    size = default_batch_size(captioner.recipe, captioner.device)
    batches = [images[begin : begin + size] for begin in range(0, len(images), size)]
    with torch.inference_mode():
        log_probs = torch.cat(
            [
                token_log_probs(captioner.decoder, captioner.features(batch), token_ids)
                for batch in batches
            ]
        ).cpu()  # (1 + patches, T)
    falls = log_probs[0] - log_probs[1:]
    total, patches = torch.zeros(len(tokens), CELLS, CELLS), torch.zeros(CELLS, CELLS)
    for (row, column), fall in zip(CORNERS, falls, strict=True):
        under = (..., slice(row, row + PATCH), slice(column, column + PATCH))
        total[under] += fall[:, None, None]
        patches[under] += 1
    return (total / patches).numpy()


def token_log_probs(decoder: StepDecoder, features: Tensor, token_ids: Sequence[int]) -> Tensor:
    """The log-probability (P, T) of each token of one caption, for P images' features (P, …)."""
    state, log_probs = decoder.init_state(features), []
    for previous, token in zip([START, *token_ids], token_ids, strict=False):
        given = torch.full((len(features),), previous, device=features.device)
        logits, state = decoder.step(given, state)
        log_probs.append(logits.float().log_softmax(dim=-1)[:, token])
    return torch.stack(log_probs, dim=1).clamp_min(MIN_LOG_PROB)


def _covered(image: PreprocessedViews, recipe: FeatureRecipe) -> Iterator[PreprocessedViews]:
    """The image with each patch in turn, in the mean colour of the CNN's training images."""
    for row, column in CORNERS:
        views = []
        for pixels, view in zip(image, recipe.views, strict=True):
            mean = torch.tensor(view.preprocessing.mean) * 255
            edges = [round(cell * len(pixels) / CELLS) for cell in range(CELLS + 1)]
            hidden = pixels.clone()  # (S, S, 3)
            rows = slice(edges[row], edges[row + PATCH])
            hidden[rows, edges[column] : edges[column + PATCH]] = mean.round().to(torch.uint8)
            views.append(hidden)
        yield tuple(views)
