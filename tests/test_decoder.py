"""Show and Tell's decoder: the picture first, then the words."""

import pytest
import torch

from pipeline.model.decoder import DecoderConfig, ShowAndTell
from pipeline.model.dropout import Dropout
from pipeline.model.search import Search, beam_search
from pipeline.store.vocabulary import END, START


def decoder(cell: str = "lstm", layers: int = 1, dropout: float = 0.0) -> ShowAndTell:
    torch.manual_seed(0)
    config = DecoderConfig(
        cell=cell,  # type: ignore[arg-type]
        feature_size=12,
        vocabulary_size=30,
        embed_size=8,
        hidden_size=16,
        layers=layers,
        dropout=dropout,
    )
    return ShowAndTell(config)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("layers", [1, 2])
def test_teacher_forcing_equals_the_step_by_step_loop(cell: str, layers: int) -> None:
    model = decoder(cell, layers, dropout=0.5).eval()
    features, words = torch.randn(5, 12), torch.randint(4, 30, (5, 7))
    words[:, 0] = START
    at_once = model(features, words)  # (5, 7, 30)
    state = model.start(features)
    for position in range(7):
        logits, state = model.step(words[:, position], state)
        torch.testing.assert_close(logits, at_once[:, position], atol=1e-5, rtol=0)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_it_learns_to_tell_twenty_pictures_apart(cell: str) -> None:
    """Overfitting: every picture gets its own caption back, word by word."""
    model = decoder(cell)
    features = torch.randn(20, 12)
    words = torch.cat([torch.full((20, 1), START), torch.randint(4, 30, (20, 5))], dim=1)
    targets = torch.cat([words[:, 1:], torch.full((20, 1), END)], dim=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(300):
        logits = model(features, words)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    made = beam_search(model.eval(), features, Search(beam=3, max_length=8))
    assert [one.words for one in made] == words[:, 1:].tolist()


def test_what_all_pictures_have_in_common_does_not_matter() -> None:
    """Features are standardised by the training pictures: neither offset nor scale counts."""
    features, words = torch.randn(50, 12), torch.full((50, 1), START)
    plain, moved = decoder().eval(), decoder().eval()
    plain.standardize_by(features)
    moved.standardize_by(7 + 100 * features)
    torch.testing.assert_close(
        plain(features, words), moved(7 + 100 * features, words), atol=1e-4, rtol=0
    )
    constant = torch.ones(50, 12)
    plain.standardize_by(constant)
    assert torch.isfinite(plain(constant, words)).all()


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.9])
def test_dropout_drops_that_share_and_keeps_the_mean(p: float) -> None:
    torch.manual_seed(0)
    ones = torch.ones(1001, 997, requires_grad=True)  # no multiple of what a draw decides
    dropped = Dropout(p).train()(ones)
    assert float((dropped.detach() == 0).float().mean()) == pytest.approx(p, abs=0.002)
    assert float(dropped.detach().mean()) == pytest.approx(1, abs=0.02)
    dropped.sum().backward()
    torch.testing.assert_close(ones.grad, dropped.detach())  # what was dropped learns nothing
    torch.manual_seed(0)
    assert torch.equal(Dropout(p).train()(ones), dropped)


def test_dropout_of_neighbours_is_independent() -> None:
    """Elements that share a random number must not share a fate."""
    torch.manual_seed(0)
    kept = (Dropout(0.5).train()(torch.ones(400_000)) > 0).float().view(-1, 4)
    correlation = torch.corrcoef(kept.T) - torch.eye(4)
    assert float(correlation.abs().max()) < 0.015


def test_dropout_does_nothing_when_captioning() -> None:
    ones = torch.ones(5)
    assert torch.equal(Dropout(0.5).eval()(ones), ones)
