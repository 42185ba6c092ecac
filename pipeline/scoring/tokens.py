"""The project's only tokeniser: coco-caption's conventions, without its Java.

coco-caption lower-cases, splits by the Penn Treebank's rules (`man's` -> `man 's`, `t-shirt` stays
whole) and drops punctuation. On the 40,460 captions of Flickr8k this gives the same tokens as its
Stanford PTBTokenizer 3.4.1 for all but 5 (docs/metrics.md).
"""

import re
import unicodedata

from nltk.tokenize import TreebankWordTokenizer

# Stands beside every score: numbers made with different tokens cannot be compared.
TOKENIZER = "ptb-lower-nopunct-1"

# coco-caption's list, and brackets, which it means to drop but misses once they are lower-cased.
PUNCTUATION = frozenset(
    ["''", "'", "``", "`", '"', "(", ")", "[", "]", "{", "}", *".?!,:;-", "--", "..."]
)

_TYPEWRITER = str.maketrans(
    {"’": "'", "‘": "'", "“": '"', "”": '"', "–": "--", "—": "--", "…": "..."}
)
_ABBREVIATIONS = "".join(
    rf"(?<!\b{word})" for word in ("mr", "mrs", "ms", "dr", "st", "jr", "sr", "vs", "mt")
)
# A full stop inside a caption ends a sentence, but for initials (u.s.) and abbreviations; the
# Treebank's own rules split only the last one.
_SENTENCE_END = re.compile(rf"(?<=\w\w)(?<!\.\w\w){_ABBREVIATIONS}\.(?=\s)")
_INITIALS = re.compile(r"[a-z](\.[a-z])+")  # d.c at a caption's end, its full stop split off
_TREEBANK = TreebankWordTokenizer()


def tokenize(caption: str) -> list[str]:
    """Split a caption into lower-case words, without punctuation; may be empty."""
    text = unicodedata.normalize("NFC", caption).translate(_TYPEWRITER).lower()
    if not text.isprintable():
        text = "".join(char if char.isprintable() else _space_or_nothing(char) for char in text)
    words = _TREEBANK.tokenize(_SENTENCE_END.sub(" . ", text))
    return [
        f"{word}." if _INITIALS.fullmatch(word) else word
        for word in words
        if word not in PUNCTUATION
    ]


def _space_or_nothing(char: str) -> str:
    """Odd spaces and control characters (ESC, say) part words; what is only invisible does not."""
    category = unicodedata.category(char)
    return " " if category.startswith("Z") or category == "Cc" else ""
