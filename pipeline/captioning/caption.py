"""A caption as users get it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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
    alternatives: tuple["Caption", ...] = ()  # other captions of the image, the best first
    attention: NDArray[np.float32] | None = None  # (T, height, width), where each token looked

    def __str__(self) -> str:
        return self.text
