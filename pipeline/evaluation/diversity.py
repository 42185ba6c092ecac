"""What n-gram scores miss: whether captions differ, repeat themselves or end mid-phrase, and how
much of what people mention they leave out."""

from collections.abc import Sequence
from itertools import pairwise

# English words that hardly ever end a sentence. Of Flickr8k's own 40,000 captions 1.0 % end in
# one of them, nearly all in "on" ("a boy looks on") or "her".
FUNCTION_WORDS = frozenset(
    "a an the his her its their this that these and or but while as of with from into at to for "
    "in on near is are".split()
)
CONJUNCTIONS = ("and", "or")


def diversity_stats(
    captions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> dict[str, float]:
    """Return the mean length, the number of distinct words, and percentages.

    Of captions: unique ones, those that repeat themselves, those with a bad ending. Of the
    different words in an image's references, function words aside: those in the caption, on
    average (`word_recall`).
    """
    percent = 100 / len(captions)
    return {
        "length": sum(map(len, captions)) / len(captions),
        "unique_captions": percent * len({tuple(caption) for caption in captions}),
        "repeated": percent * sum(map(repeats_itself, captions)),
        "bad_endings": percent
        * sum(caption[-1] in FUNCTION_WORDS for caption in captions if caption),
        "word_recall": percent * sum(map(_word_recall, captions, references)),
        "vocabulary_used": len({word for caption in captions for word in caption}),
    }


def repeats_itself(caption: Sequence[str]) -> bool:
    """Return whether a pair of words occurs twice, or a word follows itself, also after a
    conjunction: "a white and white dog"."""
    joined = any(
        first == last and word in CONJUNCTIONS
        for first, word, last in zip(caption, caption[1:], caption[2:], strict=False)
    )
    doubled = any(first == second for first, second in pairwise(caption))
    return joined or doubled or repeats_ngram(caption, 2)


def _word_recall(caption: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    words = {word for reference in references for word in reference} - FUNCTION_WORDS
    return len(words.intersection(caption)) / len(words) if words else 0.0


def repeats_ngram(caption: Sequence[str], n: int) -> bool:
    """Return whether some n-gram occurs more than once."""
    ngrams = [tuple(caption[i : i + n]) for i in range(len(caption) + 1 - n)]
    return len(set(ngrams)) < len(ngrams)
