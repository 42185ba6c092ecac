"""Diversity: unique captions, repetition, bad endings and what captions leave out are counted."""

import pytest

from pipeline.evaluation.diversity import diversity_stats, repeats_itself


def test_diversity_by_hand() -> None:
    captions = [
        "a dog runs in the grass",
        "a dog runs in the grass",
        "a white and a white and",
        "a man in a",
    ]
    # Of dog, grass, runs; of white, cat, sits; of man, hat.
    references = [["a dog runs", "the dog in the grass"]] * 2 + [["a white cat sits"], ["man hat"]]
    stats = diversity_stats(
        [caption.split() for caption in captions],
        [[reference.split() for reference in several] for several in references],
    )
    assert stats == pytest.approx(
        {
            "length": 5.5,
            "unique_captions": 75,
            "repeated": 25,
            "bad_endings": 50,
            "word_recall": 100 * (1 + 1 + 1 / 3 + 1 / 2) / 4,
            "vocabulary_used": 9,
        }
    )


@pytest.mark.parametrize(
    ("caption", "repeats"),
    [
        ("a white and white dog", True),
        ("a man or man", True),
        ("a dog dog runs", True),
        ("a boy and a girl and a boy", True),
        ("a black and white dog and a cat", False),
        ("a man and a woman", False),
    ],
)
def test_a_word_joined_to_itself_is_a_repetition(caption: str, repeats: bool) -> None:
    assert repeats_itself(caption.split()) == repeats
