"""Scores: NLTK's BLEU equals coco-caption's, and the baselines are correct."""

import contextlib
import io
import random

import pytest
from nltk.translate.bleu_score import corpus_bleu
from pycocoevalcap.bleu.bleu import Bleu

from pipeline.metrics.baselines import best_constant_caption, human_scores
from pipeline.metrics.scores import bleu, cider, compute_scores, rouge_l, sentence_bleu_4
from pipeline.metrics.validation import SplitScores

WORDS = ["a", "the", "dog", "cat", "man", "runs", "sits", "on", "grass", "snow", "red", "big"]


def sentences(
    seed: int, images: int, shortest: int = 4
) -> tuple[list[list[str]], list[list[list[str]]]]:
    """Return random captions, and five references of each that share words with it."""
    rng = random.Random(seed)

    def sentence() -> list[str]:
        return rng.choices(WORDS, k=rng.randint(shortest, 14))

    captions = [sentence() for _ in range(images)]
    references = [
        [[word if rng.random() < 0.7 else rng.choice(WORDS) for word in caption] for _ in range(5)]
        for caption in captions
    ]
    for refs in references:
        for ref in refs:
            del ref[rng.randint(min(3, len(ref)), len(ref)) :]
    return captions, references


@pytest.mark.parametrize("shortest", [1, 4])
@pytest.mark.parametrize("seed", range(5))
def test_bleu_equals_coco_captions(seed: int, shortest: int) -> None:
    captions, references = sentences(seed, 40, shortest)
    assert (min(map(len, captions)) < 4) == (shortest < 4)
    gts = {i: [" ".join(ref) for ref in refs] for i, refs in enumerate(references)}
    res = {i: [" ".join(caption)] for i, caption in enumerate(captions)}
    with contextlib.redirect_stdout(io.StringIO()):
        theirs, _ = Bleu(4).compute_score(gts, res)
    for order, ours in enumerate(bleu(captions, references)):
        assert ours / 100 == pytest.approx(theirs[order], abs=1e-6)


def test_bleu_equals_nltks_where_no_caption_is_too_short_for_an_n_gram() -> None:
    captions, references = sentences(0, images=40)
    weights = [(1.0,), (1 / 2,) * 2, (1 / 3,) * 3, (1 / 4,) * 4]
    theirs = corpus_bleu(references, captions, weights)
    assert bleu(captions, references) == pytest.approx([100 * score for score in theirs])


def test_bleu_by_hand() -> None:
    """Papineni's example of clipping: 'the' is matched at most twice."""
    candidate = ["the"] * 7
    references = ["the cat is on the mat".split(), "there is a cat on the mat".split()]
    bleu_1, *others = bleu([candidate], [references])
    assert bleu_1 == pytest.approx(100 * 2 / 7)
    assert others == [0.0] * 3


def test_perfect_captions_have_the_highest_scores() -> None:
    _, references = sentences(0, images=20)
    perfect = compute_scores([refs[0] for refs in references], references)
    assert perfect["bleu_4"] == pytest.approx(100)
    assert perfect["rouge_l"] == pytest.approx(100)
    worse = compute_scores([refs[0][::-1] for refs in references], references)
    assert worse["bleu_4"] < 50
    assert worse["cider"] < perfect["cider"]


def test_empty_captions_score_nothing_and_break_nothing() -> None:
    _, references = sentences(0, images=3)
    empty: list[list[str]] = [[], [], []]
    assert bleu(empty, references) == [0.0] * 4
    assert sentence_bleu_4(empty, references) == [0.0] * 3
    assert cider(empty, references)[0] == 0.0


def test_the_mean_of_the_captions_scores_is_the_corpus_score() -> None:
    captions, references = sentences(3, images=10)
    for metric in (cider, rouge_l):
        mean, scores = metric(captions, references)
        assert len(scores) == 10
        assert mean == pytest.approx(sum(scores) / 10)


def test_the_best_constant_caption_is_exact() -> None:
    candidates, references = sentences(1, images=30)
    best = best_constant_caption(candidates, references)

    def bleu_4_of(caption: list[str]) -> float:
        return bleu([caption] * len(references), references)[3]

    assert bleu_4_of(list(best)) == pytest.approx(max(map(bleu_4_of, candidates)))


def test_human_captions_are_scored_against_the_other_references() -> None:
    _, references = sentences(2, images=10)
    same = [[refs[0]] * 5 for refs in references]
    perfect = human_scores(same)
    assert perfect is not None
    assert perfect["bleu_4"] == pytest.approx(100)
    human = human_scores(references)
    assert human is not None
    assert 0 < human["bleu_4"] < 100
    assert human_scores([[refs[0]] for refs in references]) is None


@pytest.mark.parametrize("shortest", [1, 4])
def test_the_scores_of_validation_are_those_of_the_reports(shortest: int) -> None:
    captions, references = sentences(1, 40, shortest)
    references[3], references[4] = references[3][:2], references[4][:1]
    captions[5], captions[6] = [], ["not", "in", "not", "in", *captions[6]]
    scores = SplitScores(references)
    for candidates in (captions, captions[::-1]):
        expected = bleu(candidates, references)[3], cider(candidates, references)[0]
        assert scores(candidates) == pytest.approx(expected, abs=1e-9)
