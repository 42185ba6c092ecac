"""The vocabulary: words and their token ids, in a stable order, as JSON."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.runtime.errors import ArtifactError
from pipeline.runtime.files import read_checked_json, write_checked_json

PAD, START, END, UNK = range(4)
SPECIAL = ("<pad>", "<start>", "<end>", "<unk>")


@dataclass(frozen=True)
class Vocabulary:
    """Words by token id; the first four are the special tokens."""

    words: tuple[str, ...]
    ids: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", {word: i for i, word in enumerate(self.words)})

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, tokens: Iterable[str]) -> list[int]:
        """Return token ids; <unk> for unknown words."""
        return [self.ids.get(token, UNK) for token in tokens]

    def decode(self, ids: Sequence[int]) -> list[str]:
        """Return the words of token ids."""
        return [self.words[i] for i in ids]


def build_vocabulary(captions: Iterable[Sequence[str]], min_count: int) -> Vocabulary:
    """Keep words that occur at least `min_count` times, by falling frequency, then by alphabet."""
    counts = Counter(token for caption in captions for token in caption)
    kept = sorted(
        (word for word, count in counts.items() if count >= min_count and word not in SPECIAL),
        key=lambda word: (-counts[word], word),
    )
    return Vocabulary((*SPECIAL, *kept))


def write_vocabulary(path: Path, vocabulary: Vocabulary, min_count: int, table_digest: str) -> None:
    """Write a vocabulary, with the digest of the captions table that it was built from."""
    content = {"min_count": min_count, "table_digest": table_digest}
    write_checked_json(path, {**content, "words": list(vocabulary.words)})


def read_vocabulary(path: Path, table_digest: str) -> Vocabulary:
    """Read the vocabulary of the captions table with this digest.

    Raises:
        ArtifactError: the file is missing, damaged, not a vocabulary, or of another table.
    """
    content = read_checked_json(path)
    vocabulary = parse_words(content.get("words"), where=str(path))
    if content.get("table_digest") != table_digest:
        raise ArtifactError(path, "is the vocabulary of another captions table")
    return vocabulary


def parse_words(words: Any, where: str) -> Vocabulary:
    """Build a vocabulary from JSON.

    Raises:
        ArtifactError: it is not a list of distinct words that begins with the special tokens.
    """
    if (
        not isinstance(words, list)
        or not all(isinstance(word, str) and word.isprintable() for word in words)
        or tuple(words[: len(SPECIAL)]) != SPECIAL
        or len(set(words)) != len(words)
    ):
        expected = f"expected distinct words that begin with {' '.join(SPECIAL)}"
        raise ArtifactError(where, f"does not hold a vocabulary: {expected}")
    return Vocabulary(tuple(words))
