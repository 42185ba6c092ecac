"""The tokeniser: coco-caption's tokens, without its Java."""

import unicodedata

import pytest

from pipeline.captions.tokenizer import FOREIGN_PUNCTUATION, tokenize
from pipeline.sources.captions import read_captions
from tests.conftest import SHARED
from tests.helpers.hard_captions import DIFFERENT, digest, hard_captions, read_table

FLICKR8K = "278b1e8d543cea15cbf4d81c3c8d357ebb1b3e9cc60395daefa61bbd08b1aaa7"


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
        ("'stop now' said no. 5 of AT&T", "stop now said no. 5 of at&t"),
        ("wait..what, see www.foo.com/a?b", "wait what see www.foo.com/a?b"),
        ("你好。 ¿que? «bon» „hallo“", "你好 que bon hallo"),
        ("कुत्ता दौड़ता है। أليس كذلك؟", "कुत्ता दौड़ता है أليس كذلك"),
        ("می\u200cخواهم بروم", "میخواهم بروم"),
        ("I ❤️ NY 😀", "i ❤ ny"),
        ("tab\there\x1b\u200bnow", "tab here now"),
        ("soft\xadball \xad", "softball"),
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


def test_hard_captions_have_the_tokens_of_coco_caption() -> None:
    """The table has the output of Stanford's program, which keeps other scripts' punctuation."""
    table = read_table()
    assert [caption for caption, _ in table] == hard_captions()
    assert len(table) > 1500
    different = {
        caption
        for caption, tokens in table
        if tokenize(caption)
        != [token for token in tokens if not FOREIGN_PUNCTUATION.fullmatch(token)]
    }
    assert different == set(DIFFERENT)


def test_unicode_is_composed() -> None:
    assert (
        tokenize(unicodedata.normalize("NFD", "Ein Café im Grünen")) == "ein café im grünen".split()
    )


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs Flickr8k in ../shared")
def test_all_of_flickr8k_has_the_tokens_of_coco_caption() -> None:
    """`python -m tests.helpers.hard_captions Flickr8k_text.zip` prints the digest, from Java."""
    archive = read_captions(SHARED / "flickr8k/Flickr8k_text.zip")
    captions = [caption for captions in archive.captions.values() for caption in captions]
    assert digest(map(tokenize, captions)) == FLICKR8K


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs Flickr8k in ../shared")
def test_flickr8k_has_the_known_vocabulary() -> None:
    archive = read_captions(SHARED / "flickr8k/Flickr8k_text.zip")
    assert archive.splits is not None
    counts: dict[str, int] = {}
    for image_id, captions in archive.captions.items():
        for caption in captions if archive.splits.get(image_id) == "train" else []:
            for token in tokenize(caption):
                counts[token] = counts.get(token, 0) + 1
    assert sum(count >= 5 for count in counts.values()) == 2538
