"""Beam search, against an exhaustive search over a hand-written transition table.

The idea of testing on a table of next-word probabilities is im2txt's.
"""

import itertools
import math

import pytest
import torch
from torch import Tensor

from pipeline.captions.vocabulary import END, PAD, START, UNK
from pipeline.decoders.decoder import DecoderState
from pipeline.generation.beam_search import BeamSearch, BeamSearchConfig, Hypothesis

A, B, C, D = range(4, 8)  # words, after <pad> <start> <end> <unk>

#            pad  start  end   unk   a     b     c     d
TABLE = {
    START: [0.02, 0.03, 0.05, 0.20, 0.40, 0.25, 0.04, 0.01],
    UNK: [0.00, 0.00, 0.50, 0.10, 0.10, 0.10, 0.10, 0.10],
    A: [0.01, 0.01, 0.08, 0.05, 0.32, 0.28, 0.15, 0.10],
    B: [0.01, 0.01, 0.35, 0.10, 0.08, 0.05, 0.30, 0.10],
    C: [0.01, 0.01, 0.28, 0.10, 0.20, 0.10, 0.05, 0.25],
    D: [0.01, 0.01, 0.60, 0.08, 0.10, 0.10, 0.05, 0.05],
}
SECOND = {word: row[:4] + row[4:][::-1] for word, row in TABLE.items()}  # another image


class TableDecoder:
    """Says the next word by a table; the state is the image's number."""

    def __init__(self, *tables: dict[int, list[float]]) -> None:
        rows = [[table.get(word, [1 / 8] * 8) for word in range(8)] for table in tables]
        self.log_probs = torch.tensor(rows, dtype=torch.float64).log()  # (images, word, next)
        self.steps = 0

    def init_state(self, features: Tensor) -> DecoderState:
        return DecoderState(memory=(features.long(),), hidden=(features.long(),))

    def step(self, words: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        self.steps += 1
        (images,), (beams,) = state.memory, state.hidden
        # A beam's row stays with its image's, wherever the search moves the two.
        assert torch.equal(images.repeat_interleave(len(beams) // len(images)), beams)
        return self.log_probs[beams, words], state


def beam_search(
    decoder: TableDecoder, images: Tensor, search: BeamSearchConfig
) -> list[Hypothesis]:
    """The best caption of each image."""
    made = BeamSearch(decoder, search)(images)
    return [max(groups, key=lambda one: one.score) for groups in made]


def exhaustive(
    table: dict[int, list[float]], max_length: int, length_penalty: float, **rules: int
) -> list[tuple[float, list[int]]]:
    """All sentences of 1 to max_length words with their scores, the best first."""
    words = [A, B, C, D] + ([UNK] if rules.get("allow_unk") else [])
    n = rules.get("no_repeat_ngram_size", 0)
    found = []
    for length in range(1, max_length + 1):
        for sentence in itertools.product(words, repeat=length):
            grams = [sentence[i : i + n] for i in range(length - n + 1)] if n else []
            if len(set(grams)) < len(grams):
                continue
            path = (START, *sentence, END)
            total = sum(math.log(table[a][b]) for a, b in itertools.pairwise(path))
            found.append((total / (length + 1) ** length_penalty, list(sentence)))
    return sorted(found, key=lambda one: -one[0])


@pytest.mark.parametrize("max_length", [1, 2, 4])
@pytest.mark.parametrize("length_penalty", [0.0, 0.7, 1.0, 2.0])
@pytest.mark.parametrize("no_repeat_ngram_size", [0, 1, 2])
@pytest.mark.parametrize("allow_unk", [False, True])
def test_a_wide_beam_finds_the_best_of_all_sentences(
    max_length: int, length_penalty: float, no_repeat_ngram_size: int, allow_unk: bool
) -> None:
    search = BeamSearchConfig(1024, length_penalty, max_length, no_repeat_ngram_size, allow_unk)
    made = beam_search(TableDecoder(TABLE, SECOND), torch.tensor([0, 1]), search)
    for table, hypothesis in zip((TABLE, SECOND), made, strict=True):
        score, sentence = exhaustive(
            table,
            max_length,
            length_penalty,
            no_repeat_ngram_size=no_repeat_ngram_size,
            allow_unk=allow_unk,
        )[0]
        assert hypothesis.token_ids == sentence
        assert hypothesis.score == pytest.approx(score, abs=1e-6)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
@pytest.mark.parametrize("drop_finished", [False, True])
def test_a_wide_beam_finds_the_n_best_of_all_sentences(
    length_penalty: float, drop_finished: bool
) -> None:
    config = BeamSearchConfig(1024, length_penalty, max_length=4, num_return_sequences=7)
    search = BeamSearch(TableDecoder(TABLE, SECOND), config, drop_finished)
    for table, made in zip((TABLE, SECOND), search(torch.tensor([0, 1])), strict=True):
        every = exhaustive(table, 4, length_penalty)
        best = [score for score, _ in every[:7]]
        assert [one.score for one in made] == pytest.approx(best, abs=1e-6)
        score_of = {tuple(sentence): score for score, sentence in every}  # two may be equally good
        own = [score_of.pop(tuple(one.token_ids)) for one in made]
        assert own == pytest.approx(best, abs=1e-6)


def test_every_caption_has_the_log_probabilities_of_its_tokens_and_its_end() -> None:
    config = BeamSearchConfig(6, 1.0, max_length=3, num_return_sequences=6)
    (made,) = BeamSearch(TableDecoder(TABLE), config)(torch.tensor([0]))
    assert len(made) == 6
    for one in made:
        path = itertools.pairwise([START, *one.token_ids, END])
        assert one.token_log_probs == pytest.approx(
            [math.log(TABLE[a][b]) for a, b in path], abs=1e-6
        )


def test_fewer_captions_than_asked_for_are_returned_where_there_are_no_more() -> None:
    only = {START: [0, 0, 0, 0, 1, 0, 0, 0], A: [0, 0, 1, 0, 0, 0, 0, 0]}
    config = BeamSearchConfig(4, 0.0, max_length=3, num_return_sequences=4)
    (made,) = BeamSearch(TableDecoder(only), config)(torch.tensor([0]))
    assert [one.token_ids for one in made] == [[A]]


@pytest.mark.parametrize(
    ("beam_size", "length_penalty", "max_length", "words", "probability"),
    [
        # Greedy: a is the likeliest, again and again, until only the end is allowed.
        (1, 0.0, 1, [A], 0.40 * 0.08),
        (1, 0.0, 2, [A, A], 0.40 * 0.32 * 0.08),
        # Two beams after one word, a 0.40 and b 0.25: b ends better.
        (2, 0.0, 1, [B], 0.25 * 0.35),
        # With more words, a a 0.128 and a b 0.112 crowd out the end of b, 0.0875; a third beam
        # keeps it.
        (2, 0.0, 4, [A, B], 0.40 * 0.28 * 0.35),
        (3, 0.0, 4, [B], 0.25 * 0.35),
        # A mean per word likes the longer one better.
        (3, 1.0, 3, [A, B], 0.40 * 0.28 * 0.35),
    ],
)
def test_exact_sentences_and_scores_by_hand(
    beam_size: int, length_penalty: float, max_length: int, words: list[int], probability: float
) -> None:
    search = BeamSearchConfig(beam_size, length_penalty, max_length)
    (made,) = beam_search(TableDecoder(TABLE), torch.tensor([0]), search)
    assert made.token_ids == words
    normal = (len(words) + 1) ** length_penalty
    assert made.score == pytest.approx(math.log(probability) / normal, abs=1e-6)


@pytest.mark.parametrize("beam_size", [1, 2, 3, 5, 20])
@pytest.mark.parametrize("length_penalty", [0.0, 0.7, 1.5])
def test_a_batch_gives_what_each_image_gives_alone(beam_size: int, length_penalty: float) -> None:
    decoder = TableDecoder(TABLE, SECOND)
    search = BeamSearchConfig(beam_size, length_penalty, max_length=6)
    images = torch.tensor([0, 1, 1, 0, 1])
    together = beam_search(decoder, images, search)
    alone = [beam_search(decoder, image.view(1), search)[0] for image in images]
    assert [one.token_ids for one in together] == [one.token_ids for one in alone]
    assert [one.score for one in together] == pytest.approx([one.score for one in alone])


@pytest.mark.parametrize(("beam_size", "groups"), [(1, 1), (3, 1), (8, 1), (6, 3)])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_images_that_stay_in_the_batch_get_the_captions_of_those_that_leave(
    beam_size: int, groups: int, length_penalty: float
) -> None:
    """As on a GPU, where the whole search is one graph."""
    search = BeamSearchConfig(
        beam_size, length_penalty, max_length=7, no_repeat_ngram_size=2, beam_groups=groups
    )
    images = torch.tensor([0, 1, 1, 0])
    made = []
    for drop_finished in (True, False):
        decoder = TableDecoder(TABLE, SECOND)
        made.append(BeamSearch(decoder, search, drop_finished)(images))
    assert made[0] == made[1]


def test_a_beam_is_never_better_than_the_best_sentence_nor_worse_than_its_score() -> None:
    """A reported score is the score of the reported sentence."""
    for beam_size in (1, 2, 3, 8):
        (made,) = beam_search(
            TableDecoder(TABLE), torch.tensor([0]), BeamSearchConfig(beam_size, 0.7, 5)
        )
        scores = {tuple(sentence): score for score, sentence in exhaustive(TABLE, 5, 0.7)}
        assert made.score == pytest.approx(scores[tuple(made.token_ids)], abs=1e-6)
        assert made.score <= max(scores.values()) + 1e-6  # float32's rounding


def test_a_caption_has_a_word_at_least_and_max_length_at_most() -> None:
    silent = {word: [0.0, 0.0, 0.97, 0.01, 0.005, 0.005, 0.005, 0.005] for word in range(8)}
    endless = {word: [0.0, 0.0, 0.0001, 0.0, 0.9996, 0.0001, 0.0001, 0.0001] for word in range(8)}
    made = beam_search(
        TableDecoder(silent, endless), torch.tensor([0, 1]), BeamSearchConfig(3, 1.0, 7)
    )
    assert len(made[0].token_ids) == 1
    assert len(made[1].token_ids) == 7


def test_only_words_are_said() -> None:
    noise = {word: [0.3, 0.3, 0.1, 0.2, 0.025, 0.025, 0.025, 0.025] for word in range(8)}
    (made,) = beam_search(TableDecoder(noise), torch.tensor([0]), BeamSearchConfig(2, 1.0, 5))
    assert not {PAD, START, END, UNK} & set(made.token_ids)
    allowed = BeamSearchConfig(2, 1.0, 5, allow_unk=True)
    assert UNK in beam_search(TableDecoder(noise), torch.tensor([0]), allowed)[0].token_ids


def test_search_stops_once_nothing_can_win() -> None:
    decided = {word: [0.0, 0.0, 0.9, 0.0, 0.025, 0.025, 0.025, 0.025] for word in range(4, 8)}
    decoder = TableDecoder({**decided, START: [0.0, 0.0, 0.0, 0.0, 0.97, 0.01, 0.01, 0.01]})
    beam_search(
        decoder, torch.tensor([0]), BeamSearchConfig(beam_size=4, length_penalty=0.0, max_length=50)
    )
    assert decoder.steps < 5


def test_groups_that_pay_nothing_say_the_same() -> None:
    """Each finds what a beam search as wide as the group finds."""
    search = BeamSearchConfig(6, 0.7, 5, beam_groups=3, diversity_penalty=0.0)
    (alone,) = beam_search(TableDecoder(TABLE), torch.tensor([0]), BeamSearchConfig(2, 0.7, 5))
    (made,) = BeamSearch(TableDecoder(TABLE), search)(torch.tensor([0]))
    assert [one.token_ids for one in made] == [alone.token_ids] * 3
    assert [one.score for one in made] == pytest.approx([alone.score] * 3)


def test_a_group_pays_for_the_words_of_those_before_it() -> None:
    """Greedy groups, by hand: after a 0.40 comes b 0.25, until a costs less than it is ahead."""
    ahead = math.log(0.40 / 0.25)
    for diversity, second in ((ahead - 0.01, A), (ahead + 0.01, B)):
        search = BeamSearchConfig(2, 0.0, 1, beam_groups=2, diversity_penalty=diversity)
        (made,) = BeamSearch(TableDecoder(TABLE), search)(torch.tensor([0]))
        assert [one.token_ids for one in made] == [[A], [second]]
        end = {A: 0.40 * 0.08, B: 0.25 * 0.35}[second]
        assert made[1].score == pytest.approx(math.log(end))  # what it paid is not in its score


@pytest.mark.parametrize(("beam_size", "groups"), [(4, 4), (6, 3), (6, 2), (40, 2)])
def test_groups_in_a_batch_say_what_they_say_alone(beam_size: int, groups: int) -> None:
    decoder = TableDecoder(TABLE, SECOND)
    search = BeamSearchConfig(beam_size, 0.7, 6, beam_groups=groups, diversity_penalty=1.0)
    images = torch.tensor([0, 1, 1, 0, 1])
    together = BeamSearch(decoder, search)(images)
    for image, made in zip(images, together, strict=True):
        (alone,) = BeamSearch(decoder, search)(image.view(1))
        assert [one.token_ids for one in made] == [one.token_ids for one in alone]
        table = (TABLE, SECOND)[int(image)]
        scores = {tuple(sentence): score for score, sentence in exhaustive(table, 6, 0.7)}
        for one in made:
            assert one.score == pytest.approx(scores[tuple(one.token_ids)], abs=1e-5)
    best = beam_search(decoder, images, search)
    assert [one.score for one in best] == [max(one.score for one in made) for made in together]
