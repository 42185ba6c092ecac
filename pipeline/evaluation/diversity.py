"""What no n-gram score tells: whether captions differ, stutter or break off."""

from collections.abc import Sequence

# English words that hardly ever end a sentence. Of Flickr8k's own 40,000 captions 1.0 % end in
# these, nearly all of them in "on" ("a boy looks on") or "her".
BAD_ENDINGS = frozenset(
    "a an the his her its their this that these and or but while as of with from into at to for "
    "in on near is are".split()
)


def diversity_stats(captions: Sequence[Sequence[str]]) -> dict[str, float]:
    """Mean words a caption, the number of words ever used, and percentages of captions: distinct
    ones, those that say some pair of words twice, those that end in a dangling word."""
    share = 100 / len(captions)
    return {
        "length": sum(map(len, captions)) / len(captions),
        "unique_captions": share * len({tuple(caption) for caption in captions}),
        "repeated": share * sum(repeats(caption, 2) for caption in captions),
        "bad_endings": share * sum(caption[-1] in BAD_ENDINGS for caption in captions if caption),
        "vocabulary_used": len({word for caption in captions for word in caption}),
    }


def repeats(caption: Sequence[str], order: int) -> bool:
    """Whether it says some n-gram of this order twice."""
    grams = [tuple(caption[i : i + order]) for i in range(len(caption) + 1 - order)]
    return len(set(grams)) < len(grams)
