"""CIDEr-D and BLEU-4 as rewards: of word ids, fast enough to score a caption in the time of drawing
it. `pipeline.scoring.metrics` scores for people.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence

SIGMA = 6.0
ORDERS = 4

Gram = tuple[int, ...]


class CiderReward:
    """CIDEr-D, 0 to 10, of captions of known pictures; document frequencies are theirs.

    Vedantam et al., "CIDEr", CVPR 2015; the -D variant as coco-caption computes it, without its
    stemming: what the reports say / 100.
    """

    def __init__(self, references: Sequence[Sequence[Sequence[int]]]) -> None:
        """
        Args:
            references: word ids of the captions of each picture. Where they end in <end>, how a
                caption ends counts: one that breaks off after "in the" misses n-grams.
        """
        counted = [[_count(reference) for reference in picture] for picture in references]
        frequency: Counter[Gram] = Counter()
        for picture in counted:
            frequency.update({gram for reference in picture for gram in reference})
        self._log_pictures = math.log(len(references))
        self._weight = {gram: self._log_pictures - math.log(n) for gram, n in frequency.items()}
        self._references = [
            [
                (self._vector(counts), len(reference))
                for counts, reference in zip(picture, sentences, strict=True)
            ]
            for picture, sentences in zip(counted, references, strict=True)
        ]

    def __call__(self, picture: int, caption: Sequence[int]) -> float:
        """The reward of one caption of a picture by number."""
        (vectors, norms), length = self._vector(_count(caption)), len(caption)
        total = 0.0
        for (theirs, their_norms), their_length in self._references[picture]:
            matches = [0.0] * ORDERS
            for gram, value in vectors.items():
                their_value = theirs.get(gram)
                if their_value is not None:  # clipped: saying it more often does not pay
                    matches[len(gram) - 1] += min(value, their_value) * their_value
            similar = sum(
                match / (ours * their)
                for match, ours, their in zip(matches, norms, their_norms, strict=True)
                if match
            )
            total += similar * math.exp(-((length - their_length) ** 2) / (2 * SIGMA**2))
        return 10.0 * total / (ORDERS * len(self._references[picture]))

    def _vector(self, counts: Counter[Gram]) -> tuple[dict[Gram, float], list[float]]:
        """tf-idf by n-gram, and its length by order."""
        unseen = self._log_pictures
        vector = {gram: n * self._weight.get(gram, unseen) for gram, n in counts.items()}
        squares = [0.0] * ORDERS
        for gram, value in vector.items():
            squares[len(gram) - 1] += value * value
        return vector, [math.sqrt(square) for square in squares]


class BleuReward:
    """BLEU-4, 0 to 1, of captions of known pictures, one by one.

    A caption alone often has no four words in a row that a reference has. So one is added to the
    matches and the n-grams of every order above 1 (Lin and Och, "ORANGE", COLING 2004).
    """

    def __init__(self, references: Sequence[Sequence[Sequence[int]]]) -> None:
        """
        Args:
            references: as `CiderReward` takes them.
        """
        self._most: list[Counter[Gram]] = []  # how often a reference of the picture says it
        self._lengths = [sorted(len(one) for one in picture) for picture in references]
        for picture in references:
            most: Counter[Gram] = Counter()
            for reference in picture:
                most |= _count(reference)
            self._most.append(most)

    def __call__(self, picture: int, caption: Sequence[int]) -> float:
        """The reward of one caption of a picture by number."""
        length, most = len(caption), self._most[picture]
        matches = [0] * ORDERS
        for gram, count in _count(caption).items():
            matches[len(gram) - 1] += min(count, most[gram])
        if not matches[0]:
            return 0.0
        precisions = math.log(matches[0] / length)
        for order in range(2, ORDERS + 1):
            grams = max(1, length + 1 - order)  # an order that it lacks does it no good
            precisions += math.log((matches[order - 1] + 1) / (grams + 1))
        closest = min(self._lengths[picture], key=lambda one: abs(one - length))
        return math.exp(precisions / ORDERS + min(0.0, 1 - closest / length))


def _count(words: Sequence[int]) -> Counter[Gram]:
    return Counter(_grams(words))


def _grams(words: Sequence[int]) -> Iterator[Gram]:
    for order in range(1, ORDERS + 1):
        yield from zip(*(words[begin:] for begin in range(order)), strict=False)
