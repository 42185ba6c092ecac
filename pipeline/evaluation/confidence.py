"""Confidence: the probability that a caption is as good as a typical person's.

A caption is as good if its CIDEr reaches the median of human captions, each scored against the
image's other references, on val. A logistic regression on val predicts it from what the decoder
alone knows: the mean log-probability of the tokens, their number, and how rare the words are (a
vocabulary is ordered by frequency, so ids tell). Log-probabilities alone are overconfident and
favour short, common captions (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017).
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from pipeline.config.schema import EvaluateConfig
from pipeline.decoders.captioner_file import TrainedDecoder
from pipeline.generation.beam_search import BeamSearchConfig, Hypothesis
from pipeline.metrics.baselines import human_cider
from pipeline.metrics.scores import cider
from pipeline.runtime.errors import ArtifactError
from pipeline.runtime.files import read_checked_json, write_checked_json
from pipeline.runtime.tensors import tensors_digest

log = logging.getLogger(__name__)

LOWEST = 0.1  # CIDEr: a caption that shares nothing with the references is never good
RIDGE = 1.0  # a Gaussian prior of deviation 1 on the standardised coefficients
ROUNDS = 25  # of Newton's method, which converges in fewer than ten
DIGITS = 6  # significant, so that the last bits of a sum do not reach the file


@dataclass(frozen=True)
class Confidence:
    """A fitted calibration."""

    models: tuple[str, ...]  # the digests of the decoders that it was fitted to
    search: BeamSearchConfig  # that found the captions
    reference: str  # whose median CIDEr on val is the threshold: human, or model
    threshold: float  # CIDEr, x100
    images: int  # of val
    intercept: float
    weights: tuple[float, float, float]  # of `predictors`

    def __call__(self, caption: Hypothesis) -> float:
        """The probability that the caption's CIDEr reaches the threshold."""
        terms = zip(self.weights, predictors(caption), strict=True)
        return _sigmoid(self.intercept + sum(weight * value for weight, value in terms))


def predictors(caption: Hypothesis) -> tuple[float, float, float]:
    """The mean log-probability per token, the number of tokens, and the mean log of their ids."""
    count = len(caption.token_log_probs)  # with <end>, so never 0
    ranks = [math.log(token) for token in caption.token_ids if token > 0]
    return sum(caption.token_log_probs) / count, float(count), sum(ranks) / max(1, len(ranks))


def fit_confidence(
    found: Sequence[Hypothesis],
    captions: Sequence[Sequence[str]],
    references: Sequence[Sequence[Sequence[str]]],
    models: Sequence[str],
    search: BeamSearchConfig,
) -> Confidence:
    """Fit the calibration to captions of val.

    Where most images have a single reference, people have no score; the threshold is then the
    median of the model's own captions.

    Args:
        found: the search's captions, one per image.
        captions: the same as tokens.
        models: digests of the decoders.
    """
    own = np.array(cider(captions, references)[1])
    human = human_cider(references)
    threshold = max(float(np.median(own if human is None else human)), LOWEST)
    values = np.array([predictors(caption) for caption in found])  # (N, 3)
    mean, std = values.mean(axis=0), values.std(axis=0)
    std[std < 1e-6] = 1.0  # one value for all images says nothing
    coefficients = _logistic_regression((values - mean) / std, own >= threshold)
    weights = coefficients[1:] / std
    intercept = float(coefficients[0] - weights @ mean)
    rounded = [float(f"{number:.{DIGITS}g}") for number in (threshold, intercept, *weights)]
    return Confidence(
        models=tuple(models),
        search=search,
        reference="model" if human is None else "human",
        threshold=rounded[0],
        images=len(found),
        intercept=rounded[1],
        weights=(rounded[2], rounded[3], rounded[4]),
    )


def _logistic_regression(values: np.ndarray, outcomes: np.ndarray) -> np.ndarray:
    """The intercept and coefficients (1 + M,) of standardised values (N, M), with a ridge penalty.

    One success and one failure are added at the mean, so that an outcome that never happened has
    a small probability, not none.
    """
    rows = np.column_stack([np.ones(len(values)), values])
    rows = np.vstack([rows, np.eye(1, rows.shape[1]).repeat(2, axis=0)])
    outcomes = np.append(outcomes.astype(float), [0.0, 1.0])
    penalty = RIDGE * np.eye(rows.shape[1])
    penalty[0, 0] = 0
    coefficients = np.zeros(rows.shape[1])
    for _ in range(ROUNDS):
        probs = np.array([_sigmoid(float(logit)) for logit in rows @ coefficients])
        gradient = rows.T @ (probs - outcomes) + penalty @ coefficients
        curvature = (rows * (probs * (1 - probs))[:, None]).T @ rows + penalty
        coefficients = coefficients - np.linalg.solve(curvature, gradient)
    return coefficients


def _sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-min(max(logit, -30.0), 30.0)))


def write_confidence(path: Path, confidence: Confidence) -> None:
    write_checked_json(path, asdict(confidence))


def match_calibration(
    calibration: Confidence | Path | None, models: Sequence[TrainedDecoder]
) -> Confidence | None:
    """Return the calibration, read from its file if need be; None if there is none, or it is of
    other models, which is logged.

    Raises:
        ArtifactError: the file is damaged.
    """
    if isinstance(calibration, Path):
        if not calibration.exists():
            log.info("no confidence: %s does not exist; run 'showtell calibrate'", calibration)
            return None
        calibration = read_confidence(calibration)
    if calibration and list(calibration.models) != model_digests(models):
        log.info("no confidence: the calibration is of other models")
        return None
    return calibration


def model_digests(models: Sequence[TrainedDecoder]) -> list[str]:
    """Return fingerprints of the decoders' weights."""
    return [tensors_digest(dict(model.decoder.state_dict())) for model in models]


def read_confidence(path: Path) -> Confidence:
    """Read what `write_confidence` wrote; anything else is an ArtifactError."""
    return parse_confidence(read_checked_json(path), where=path)


def parse_confidence(content: Any, where: object) -> Confidence:
    """Build a calibration from JSON, which may be anybody's.

    Raises:
        ArtifactError: it is not one, a number is not finite, or its search is out of bounds.
    """
    try:
        parse_search(content["search"], where)
        confidence = TypeAdapter(Confidence).validate_python(content)
        numbers = (confidence.threshold, confidence.intercept, *confidence.weights)
        if not all(map(math.isfinite, numbers)):
            raise ValueError
        return confidence
    except (KeyError, TypeError, ValueError):
        raise ArtifactError(where, "is not a calibration of this version") from None


def parse_search(content: Any, where: object) -> BeamSearchConfig:
    """Build a search from JSON, within the bounds of the evaluate params.

    Raises:
        ArtifactError: it is not one.
    """
    try:
        search = TypeAdapter(BeamSearchConfig).validate_python(content)
        if search.num_return_sequences != 1:
            raise ValueError
        # Files of before consensus reranking lack its params.
        new = {name: getattr(search, name) for name in ("consensus_weight", "num_neighbors")}
        params = {**new, **content}
        params.pop("num_return_sequences", None)
        fixed = {"split": "val", "batch_size": "auto", "device": "auto", "deterministic": True}
        EvaluateConfig.model_validate({**params, **fixed})
        return search
    except (TypeError, AttributeError, ValueError):
        raise ArtifactError(where, "has no valid search") from None
