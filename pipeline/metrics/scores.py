"""BLEU, CIDEr and ROUGE-L of captions against their references, all on the scale 0 to 100.

BLEU is computed from NLTK's counts without smoothing (`pipeline.metrics.bleu`), CIDEr is
pycocoevalcap's CIDEr-D with document frequencies from the references (Vedantam et al. 2015),
ROUGE-L is pycocoevalcap's (Lin 2004). All take the tokens of `pipeline.captions.tokenizer`.
"""

from collections.abc import Sequence

import numpy as np
from nltk.translate.bleu_score import (
    SmoothingFunction,
    closest_ref_length,
    modified_precision,
    sentence_bleu,
)
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from pipeline.metrics.bleu import ORDERS, SCALE, add_ngram_totals, bleu_from_counts
from pipeline.metrics.registry import BLEU_NAMES

Tokens = Sequence[str]
Captions = Sequence[Tokens]  # one per image
ReferenceLists = Sequence[Sequence[Tokens]]  # several per image


def bleu_counts(captions: Captions, references: ReferenceLists) -> np.ndarray:
    """Return integers per caption, (N, 2 + ORDERS): its length, the length of the closest
    reference, and for n = 1 to 4 its clipped n-gram matches.

    The counts are NLTK's. Its `corpus_bleu` is not used: it counts a caption that is too short for
    an n-gram as one wrong n-gram, while the paper and coco-caption count none.
    """
    rows = [
        [
            len(caption),
            closest_ref_length(refs, len(caption)),
            *(
                modified_precision(refs, caption, n).numerator if len(caption) >= n else 0
                for n in range(1, ORDERS + 1)
            ),
        ]
        for caption, refs in zip(captions, references, strict=True)
    ]
    return np.array(rows, dtype=np.int64).reshape(len(rows), 2 + ORDERS)


def bleu(captions: Captions, references: ReferenceLists) -> list[float]:
    """Return corpus BLEU-1 to BLEU-4, x100, unsmoothed: 0 where no n-gram matches."""
    sums = add_ngram_totals(bleu_counts(captions, references)).sum(axis=0)
    return [float(score) for score in bleu_from_counts(sums)]


def cider(captions: Captions, references: ReferenceLists) -> tuple[float, list[float]]:
    """Return CIDEr-D, x100: the mean and each caption's."""
    return _coco_scores(Cider(), captions, references)


def rouge_l(captions: Captions, references: ReferenceLists) -> tuple[float, list[float]]:
    """Return ROUGE-L, x100: the mean and each caption's."""
    return _coco_scores(Rouge(), captions, references)


def sentence_bleu_4(captions: Captions, references: ReferenceLists) -> list[float]:
    """Return the smoothed sentence BLEU-4 of each caption, x100: to sort by, not to average.

    Corpus BLEU is not a mean over sentences, and without smoothing most sentences would score 0.
    Orders without a match get 0.1 (Chen & Cherry 2014, method 1).
    """
    smooth = SmoothingFunction(epsilon=0.1).method1
    return [
        SCALE * float(sentence_bleu(refs, caption, smoothing_function=smooth)) if caption else 0.0
        for caption, refs in zip(captions, references, strict=True)
    ]


def compute_scores(captions: Captions, references: ReferenceLists) -> dict[str, float]:
    """Return the scores of a set of captions, by the keys of metrics.json."""
    return {
        **dict(zip(BLEU_NAMES, bleu(captions, references), strict=True)),
        "cider": cider(captions, references)[0],
        "rouge_l": rouge_l(captions, references)[0],
    }


def _coco_scores(
    scorer: Cider | Rouge, captions: Captions, references: ReferenceLists
) -> tuple[float, list[float]]:
    """Return a score of pycocoevalcap, which takes references and captions by number."""
    gts = {i: [" ".join(ref) for ref in refs] for i, refs in enumerate(references)}
    res = {i: [" ".join(caption)] for i, caption in enumerate(captions)}
    mean, scores = scorer.compute_score(gts, res)
    return SCALE * float(mean), [SCALE * float(score) for score in scores]
