"""Drawing captions: of which words, and how often."""

import pytest
import torch

from pipeline.captions.vocabulary import END
from pipeline.generation.sampling import SamplingConfig, sample
from tests.test_beam_search import TableDecoder

A, B, C, D = range(4, 8)
# a 0.4, b 0.3, c 0.2, d 0.1, and then the end.
FIRST = {word: [0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0] for word in range(4, 8)}
TABLE = {1: [0.0, 0.0, 0.0, 0.0, 0.4, 0.3, 0.2, 0.1], **FIRST}


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (SamplingConfig(), {A: 0.4, B: 0.3, C: 0.2, D: 0.1}),
        (SamplingConfig(top_k=1), {A: 1.0}),
        (SamplingConfig(top_k=2), {A: 4 / 7, B: 3 / 7}),
        (SamplingConfig(top_k=100), {A: 0.4, B: 0.3, C: 0.2, D: 0.1}),
        (SamplingConfig(top_p=0.01), {A: 1.0}),  # the likeliest always stays
        (SamplingConfig(top_p=0.5), {A: 4 / 7, B: 3 / 7}),  # the word that gets there is in
        (SamplingConfig(top_p=0.85), {A: 4 / 9, B: 3 / 9, C: 2 / 9}),
        (SamplingConfig(top_k=3, top_p=0.5), {A: 4 / 7, B: 3 / 7}),  # 0.4 + 0.3 of 0.9
        (SamplingConfig(temperature=0.5), {A: 16 / 30, B: 9 / 30, C: 4 / 30, D: 1 / 30}),
    ],
)
def test_words_are_drawn_as_often_as_they_should(
    sampling: SamplingConfig, expected: dict[int, float]
) -> None:
    rng = torch.Generator().manual_seed(0)
    drawn = sample(TableDecoder(TABLE), torch.tensor([0]), 20_000, sampling, rng)
    assert (drawn[:, 1] == END).all()
    counts = torch.bincount(drawn[:, 0], minlength=8) / 20_000
    assert set(counts.nonzero().flatten().tolist()) == set(expected)
    for word, share in expected.items():
        assert float(counts[word]) == pytest.approx(share, abs=0.02)
