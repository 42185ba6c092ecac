"""Two scores to read a model's by: captions that ignore the image, and people's."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from pipeline.metrics.scores import Tokens, compute_scores


def best_constant_caption(
    candidates: Iterable[Tokens], references: Sequence[Sequence[Tokens]]
) -> Tokens:
    """The candidate with the best BLEU-4 if it is said of every image; of equals, the first.

    Exact, not sampled: for one caption said N times, the clipped matches of an n-gram that it has
    k times are the sum over images of min(k, most in a reference), which needs only how many
    images have it at least once, twice, … So every candidate costs its own length.
    """
    at_least: Counter[tuple[tuple[str, ...], int]] = Counter()  # (n-gram, k) -> images
    lengths: Counter[tuple[int, ...]] = Counter()  # reference lengths of an image -> images
    for refs in references:
        most: Counter[tuple[str, ...]] = Counter()
        for ref in refs:
            most |= _ngrams(ref)
        at_least.update((gram, k) for gram, count in most.items() for k in range(1, count + 1))
        lengths[tuple(sorted({len(ref) for ref in refs}))] += 1
    images = len(references)
    reference_length: dict[int, int] = {}

    def bleu_4(caption: Tokens) -> float:
        length = len(caption)
        if length < 4:
            return 0.0
        matches = [0] * 5
        for gram, count in _ngrams(caption).items():
            matches[len(gram)] += sum(at_least[gram, k] for k in range(1, count + 1))
        if not all(matches[1:]):
            return 0.0
        if length not in reference_length:
            reference_length[length] = sum(
                times * min(options, key=lambda one: (abs(one - length), one))
                for options, times in lengths.items()
            )
        log_precision = sum(math.log(matches[n] / (images * (length - n + 1))) for n in range(1, 5))
        brevity = min(0.0, 1 - reference_length[length] / (images * length))
        return math.exp(log_precision / 4 + brevity)

    distinct = dict.fromkeys(tuple(caption) for caption in candidates)
    return max(distinct, key=bleu_4)


def human_scores(references: Sequence[Sequence[Tokens]]) -> dict[str, float] | None:
    """One reference scored against the image's others, averaged over which one it is.

    Images with fewer references than most have are left out. With one reference an image
    there is nothing to score against: None. People have one reference less to match than the
    model, so the comparison is a little hard on them.
    """
    count = max(Counter(len(refs) for refs in references).items(), key=lambda item: item[1])[0]
    if count < 2:
        return None
    full = [list(refs) for refs in references if len(refs) == count]
    turns = [
        compute_scores(
            [refs[turn] for refs in full], [refs[:turn] + refs[turn + 1 :] for refs in full]
        )
        for turn in range(count)
    ]
    return {key: sum(scores[key] for scores in turns) / count for key in turns[0]}


def _ngrams(tokens: Tokens) -> Counter[tuple[str, ...]]:
    """How often each 1- to 4-gram occurs."""
    return Counter(
        tuple(tokens[begin : begin + n])
        for n in range(1, 5)
        for begin in range(len(tokens) - n + 1)
    )
