"""A caption as users get it."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.captions.vocabulary import Vocabulary
from pipeline.evaluation.confidence import Confidence
from pipeline.generation.beam_search import Hypothesis


@dataclass(frozen=True, eq=False)
class Caption:
    """A caption of an image, and what the model knows about it. `str` gives its text."""

    text: str
    tokens: tuple[str, ...]
    score: float | None = None  # of the search: the higher, the better; None if sampled
    token_probs: tuple[float, ...] = ()  # of each token, given the tokens before it; () if sampled
    # The calibrated probability that the caption is as good as a typical person's
    # (`pipeline.evaluation.confidence`); None if the model was not calibrated.
    confidence: float | None = None
    alternatives: tuple["Caption", ...] = ()  # different captions of the image, the best first
    attention: NDArray[np.float32] | None = None  # (T, height, width), where each token looked

    def __str__(self) -> str:
        return self.text


def describe_hypothesis(
    found: Hypothesis, vocabulary: Vocabulary, confidence: Confidence | None
) -> Caption:
    tokens = tuple(vocabulary.decode(found.token_ids))
    return Caption(
        text=" ".join(tokens),
        tokens=tokens,
        score=found.score,
        token_probs=tuple(math.exp(value) for value in found.token_log_probs[:-1]),
        confidence=confidence(found) if confidence else None,
    )


def best_distinct(found: Iterable[Hypothesis]) -> list[Hypothesis]:
    """Each caption once, the best first: groups of beams can find the same one."""
    best: dict[tuple[int, ...], Hypothesis] = {}
    for hypothesis in sorted(found, key=lambda one: one.score, reverse=True):
        best.setdefault(tuple(hypothesis.token_ids), hypothesis)
    return list(best.values())
