"""Diversity: unique captions, repetition and bad endings are counted."""

import pytest

from pipeline.evaluation.diversity import diversity_stats


def test_diversity_by_hand() -> None:
    captions = [
        "a dog runs in the grass",
        "a dog runs in the grass",
        "a white and a white and",
        "a man in a",
    ]
    stats = diversity_stats([caption.split() for caption in captions])
    assert stats == pytest.approx(
        {
            "length": 5.5,
            "unique_captions": 75,
            "repeated": 25,
            "bad_endings": 50,
            "vocabulary_used": 9,
        }
    )
