"""One tokeniser, by coco-caption's conventions."""

import pytest

from pipeline.scoring.tokens import tokenize
from pipeline.store.text import read_text_archive
from tests.conftest import SHARED


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("A dog runs .", "a dog runs"),
        ("A dog runs.", "a dog runs"),
        ("A dog. The cat's ball!", "a dog the cat 's ball"),
        ("A man 's hat", "a man 's hat"),
        ("It doesn't, cannot", "it does n't can not"),
        ("a T-shirt; snow-covered - hills --", "a t-shirt snow-covered hills"),
        ('He says "hello" (twice)', "he says hello twice"),
        ("“Hello” — it’s here…", "hello it 's here"),
        ("Mr. Smith in the U.S. now", "mr. smith in the u.s. now"),
        ("a man in D.C.", "a man in d.c."),
        ("see avrovulcan.com", "see avrovulcan.com"),
        ("3.5 m high, #1 & co", "3.5 m high # 1 & co"),
        ("Ein Café\u0301 im Grünen", "ein café\u0301 im grünen"),
        ("tab\there", "tab here"),
        (" . ,; ", ""),
        ("", ""),
    ],
)
def test_lower_case_treebank_words_without_punctuation(caption: str, tokens: str) -> None:
    assert tokenize(caption) == tokens.split()


def test_tokenizing_tokens_changes_nothing() -> None:
    for caption in ("A man 's T-shirt is n't here .", "Mr. Smith, in D.C."):
        tokens = tokenize(caption)
        assert tokenize(" ".join(tokens)) == tokens


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs Flickr8k in ../shared")
def test_flickr8k_has_the_known_vocabulary() -> None:
    archive = read_text_archive(SHARED / "flickr8k/Flickr8k_text.zip")
    assert archive.splits is not None
    counts: dict[str, int] = {}
    for image_id in archive.splits["train"]:
        for caption in archive.captions[image_id]:
            for token in tokenize(caption):
                counts[token] = counts.get(token, 0) + 1
    assert sum(count >= 5 for count in counts.values()) == 2538
