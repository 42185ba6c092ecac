"""The model card: a README.md with the YAML front matter of model hubs.

Mitchell et al., "Model Cards for Model Reporting", FAccT 2019.
"""

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline import __version__
from pipeline.captions.table import FLICKR8K_SPLIT_DIGEST
from pipeline.evaluation.bootstrap import score_intervals
from pipeline.evaluation.reports import CONFIDENCE, Evaluation, counts_and_means
from pipeline.metrics.registry import METRICS, SCORE_NAMES
from pipeline.runtime.errors import sanitize

log = logging.getLogger(__name__)

RESAMPLES, SEED = 2000, 0
NUM_EXAMPLES = 10
FLICKR8K = (
    "Trained on Flickr8k, whose images belong to their photographers; its authors allow "
    "non-commercial research and education only. This model carries the same restriction. Cite "
    "Hodosh, Young and Hockenmaier, Framing Image Description as a Ranking Task (JAIR 2013)."
)
NOT_STATED = "The licence of the training data was not stated; ask its publisher before you use it."


@dataclass(frozen=True)
class CardDetails:
    """What only the publisher knows."""

    name: str
    license: str  # an SPDX identifier, or other
    dataset: str | None  # None: what the split tells
    data_license: str | None  # in a sentence; None: what is known of the data set


@dataclass(frozen=True)
class Example:
    """A captioned image of the card."""

    path: str  # of a file in the folder, or the image's id
    caption: str
    confidence: str
    reference: str = ""


@dataclass(frozen=True)
class ScoreRow:
    name: str
    title: str
    value: float
    interval: str


def render_card(
    details: CardDetails,
    evaluation: Evaluation,
    model: dict[str, Any],
    files: Sequence[tuple[str, str]],
    shown: Sequence[Example],
    onnx: bool,
) -> str:
    """Return the card in Markdown.

    Args:
        model: `features`, `decoder` and `vocabulary_size`.
        files: names and digests.
        shown: captioned photos that may be; if empty, images of the split are named.
    """
    metrics = evaluation.metrics
    is_flickr8k = metrics.meta["split_digest"] == FLICKR8K_SPLIT_DIGEST
    if not is_flickr8k and not (details.dataset and details.data_license):
        log.info("say in the card what the model learned from: --dataset NAME --data-license TEXT")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(text=escape_markdown, yaml=json.dumps)  # JSON's strings are YAML's
    return environment.get_template("model_card.md").render(
        **model,
        name=details.name,
        license=details.license,
        dataset=details.dataset or ("flickr8k" if is_flickr8k else "unknown"),
        data_license=details.data_license or (FLICKR8K if is_flickr8k else NOT_STATED),
        split=metrics.split,
        images=metrics.meta["images"],
        references=f"{metrics.meta['references']:g}",
        tokenizer=metrics.meta["tokenizer"],
        split_digest=metrics.meta["split_digest"],
        scores=_score_rows(evaluation),
        baselines=metrics.baselines,
        metrics=metrics.numbers,
        confidence=metrics.confidence,
        untrained=metrics.untrained,
        shown=bool(shown),
        examples=shown or _examples(evaluation),
        files=files,
        onnx=onnx,
        version=__version__,
    )


def escape_markdown(text: str) -> str:
    """Escape what would be markup, or end a cell of a table: captions and names are untrusted."""
    return re.sub(r"([\\`*_{}\[\]<>#|!&~])", r"\\\1", sanitize(text))


def _score_rows(evaluation: Evaluation) -> list[ScoreRow]:
    intervals = score_intervals(*counts_and_means(evaluation.scores), RESAMPLES, SEED)
    return [
        ScoreRow(
            name,
            METRICS[name].title,
            evaluation.metrics.numbers[name],
            f"{low:.1f} to {high:.1f}" if f"{low:.1f}" != f"{high:.1f}" else "",
        )
        for name, (low, high) in zip(SCORE_NAMES, intervals, strict=True)
    ]


def _examples(evaluation: Evaluation) -> list[Example]:
    """Images at even ranks of confidence, or of CIDEr if there is none."""
    table = evaluation.scores
    key = CONFIDENCE if CONFIDENCE in table else "cider"
    ranked = table[key].sort_values(kind="stable").index.tolist()
    last, most = len(ranked) - 1, min(NUM_EXAMPLES, len(ranked))
    chosen = dict.fromkeys(ranked[round(i * last / max(1, most - 1))] for i in range(most))
    return [
        Example(
            image_id,
            evaluation.captions[image_id],
            f"{table[CONFIDENCE][image_id]:.2f}" if CONFIDENCE in table else "",
            evaluation.references[image_id][0],
        )
        for image_id in chosen
    ]
