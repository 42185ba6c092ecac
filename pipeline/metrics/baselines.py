"""Two baselines on the same images: the best constant caption, and human captions."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator

from nltk.util import everygrams

from pipeline.metrics.registry import ORDERS
from pipeline.metrics.scores import ReferenceLists, Tokens, cider, compute_scores

MAX_ROUNDS = 10  # of human captions against the others


def best_constant_caption(candidates: Iterable[Tokens], references: ReferenceLists) -> Tokens:
    """Return the candidate with the best BLEU-4 as the caption of every image; the first of equals.

    The result is exact, not sampled. For one caption repeated N times, the clipped matches of an
    n-gram that occurs in it k times are the sum over images of min(k, most in a reference). That
    needs only the number of images that have the n-gram at least once, twice, …, so the cost of a
    candidate depends on its own length alone.
    """
    at_least: Counter[tuple[tuple[str, ...], int]] = Counter()  # (n-gram, k) -> images
    lengths: Counter[tuple[int, ...]] = Counter()  # reference lengths of an image -> images
    for refs in references:
        most: Counter[tuple[str, ...]] = Counter()
        for ref in refs:
            most |= Counter(everygrams(ref, max_len=ORDERS))
        at_least.update((ngram, k) for ngram, count in most.items() for k in range(1, count + 1))
        lengths[tuple(sorted({len(ref) for ref in refs}))] += 1
    images = len(references)
    reference_length: dict[int, int] = {}  # length of a caption -> summed closest lengths

    def bleu_4(caption: Tokens) -> float:
        length = len(caption)
        if length < 4:
            return 0.0
        matches = [0] * 5
        for ngram, count in Counter(everygrams(caption, max_len=ORDERS)).items():
            matches[len(ngram)] += sum(at_least[ngram, k] for k in range(1, count + 1))
        if not all(matches[1:]):
            return 0.0
        if length not in reference_length:
            reference_length[length] = sum(
                count * min(options, key=lambda option: (abs(option - length), option))
                for options, count in lengths.items()
            )
        log_precision = sum(math.log(matches[n] / (images * (length - n + 1))) for n in range(1, 5))
        log_brevity = min(0.0, 1 - reference_length[length] / (images * length))
        return math.exp(log_precision / 4 + log_brevity)

    unique = dict.fromkeys(tuple(caption) for caption in candidates)
    return max(unique, key=bleu_4)


def human_scores(references: ReferenceLists) -> dict[str, float] | None:
    """Return the scores of one reference against the image's others, averaged over which one.

    Images with a single reference have nothing to score it against and are left out; if they are
    more than half, the result is None. An image with few references uses them several times. Humans
    have one reference less to match than the model, so the comparison is slightly hard on them.
    """
    rounds = [compute_scores(captions, others) for captions, others in _human_rounds(references)]
    if not rounds:
        return None
    return {key: sum(scores[key] for scores in rounds) / len(rounds) for key in rounds[0]}


def human_cider(references: ReferenceLists) -> list[float] | None:
    """Return the CIDEr of every human caption against the image's others; None as above."""
    rounds = [cider(captions, others)[1] for captions, others in _human_rounds(references)]
    return [score for scores in rounds for score in scores] or None


def _human_rounds(
    references: ReferenceLists,
) -> Iterator[tuple[list[Tokens], list[list[Tokens]]]]:
    """Per round one human caption of each image that has several, and the image's others; no
    rounds if most images have a single one."""
    several = [list(refs) for refs in references if len(refs) > 1]
    if 2 * len(several) < len(references):
        return
    for i in range(min(MAX_ROUNDS, max(map(len, several)))):
        captions = [refs[i % len(refs)] for refs in several]
        yield captions, [refs[: i % len(refs)] + refs[i % len(refs) + 1 :] for refs in several]
