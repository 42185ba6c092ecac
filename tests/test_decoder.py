"""Decoders: teacher forcing and captioning are one function, and each learns and attends."""

from itertools import product
from typing import Any

import pytest
import torch

from pipeline.captions.vocabulary import END, PAD, START
from pipeline.decoders.attention import AdditiveAttention
from pipeline.decoders.decoder import Decoder, DecoderConfig
from pipeline.decoders.dropout import Dropout
from pipeline.decoders.registry import DECODERS, build_decoder
from pipeline.generation.beam_search import BeamSearch, BeamSearchConfig
from pipeline.self_critical.policy import without_dropout

GRID = (2, 3, 12)
ATTENDING = [name for name, spec in DECODERS.items() if spec.features == "grid"]


def decoder(name: str = "show_and_tell", **changes: Any) -> Decoder:
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "rnn_type": "lstm",
        "feature_shape": (12,) if DECODERS[name].features == "pooled" else GRID,
        "vocabulary_size": 30,
        "embed_size": 16,
        "hidden_size": 16,
        "num_layers": 1,
        "num_heads": 4,
        "dropout": 0.0,
        "tie_embeddings": False,
    }
    return build_decoder(DecoderConfig(decoder=name, **(settings | changes)))  # type: ignore[arg-type]


def features_for(model: Decoder, images: int) -> torch.Tensor:
    return torch.randn(images, *model.config.feature_shape)


VARIANTS = [
    (name, cell, layers, tied)
    for name, cell, layers, tied in product(DECODERS, ("lstm", "gru"), (1, 2), (False, True))
    if layers == 1 or not DECODERS[name].single_layer
]


@pytest.mark.parametrize(("name", "cell", "layers", "tied"), VARIANTS)
def test_teacher_forcing_equals_the_step_by_step_loop(
    name: str, cell: str, layers: int, tied: bool
) -> None:
    model = decoder(name, rnn_type=cell, num_layers=layers, tie_embeddings=tied, dropout=0.5).eval()
    features, words = features_for(model, 5), torch.randint(4, 30, (15, 7))  # 3 captions each
    words[:, 0] = START
    at_once = model(features, words)  # (15, 7, 30)
    state = model.init_state(features).index_select(torch.arange(5).repeat_interleave(3))
    for position in range(7):
        logits, state = model.step(words[:, position], state)
        torch.testing.assert_close(logits, at_once[:, position], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", DECODERS)
def test_it_learns_to_tell_twenty_images_apart(name: str) -> None:
    """Overfitting: every image gets its own caption back, word by word."""
    model = decoder(name, embed_size=32, hidden_size=32)
    features = features_for(model, 20)
    words = torch.cat([torch.full((20, 1), START), torch.randint(4, 30, (20, 5))], dim=1)
    targets = torch.cat([words[:, 1:], torch.full((20, 1), END)], dim=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(400):
        logits = model(features, words)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    made = BeamSearch(model.eval(), BeamSearchConfig(beam_size=3, max_length=8))(features)
    assert [one.token_ids for (one,) in made] == words[:, 1:].tolist()


@pytest.mark.parametrize(
    ("name", "cell", "layers"), [variant[:3] for variant in VARIANTS if not variant[3]]
)
def test_captions_of_many_lengths_get_what_each_gets_alone(
    name: str, cell: str, layers: int
) -> None:
    """Short captions may leave a batch early; their words and all gradients stay the same."""
    model = decoder(name, rnn_type=cell, num_layers=layers)
    features = features_for(model, 4)
    words = torch.randint(4, 30, (12, 16))
    lengths = [1, 2, 3, 16, 3, 2, 2, 15, 1, 4, 2, 3]
    for row, length in enumerate(lengths):
        words[row, length:] = PAD
    together = model(features, words)
    alone = [
        model(features[row // 3 : row // 3 + 1], words[row : row + 1, :length])
        for row, length in enumerate(lengths)
    ]
    for row, length in enumerate(lengths):
        torch.testing.assert_close(together[row, :length], alone[row][0], atol=1e-5, rtol=0)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    kept = sum(together[row, :length].sum() for row, length in enumerate(lengths))
    mine = torch.autograd.grad(kept, list(model.parameters()), allow_unused=True)
    theirs = torch.autograd.grad(
        sum(one.sum() for one in alone), list(model.parameters()), allow_unused=True
    )
    for which, a, b in zip(names, mine, theirs, strict=True):
        assert (a is None) == (b is None), which
        if a is not None:
            torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("name", DECODERS)
def test_captions_of_one_image_do_not_meddle(name: str) -> None:
    """Several captions of an image side by side get the logits that each gets alone."""
    model = decoder(name, dropout=0.5).eval()
    features, words = features_for(model, 3), torch.randint(4, 30, (6, 5))
    together = model(features, words)
    for row in range(6):
        alone = model(features[row // 2 : row // 2 + 1], words[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", DECODERS)
def test_dropout_is_in_modules_so_that_self_critical_training_can_turn_it_off(name: str) -> None:
    """A decoder that calls `F.dropout` would sample captions under dropout, unnoticed."""
    model = decoder(name, dropout=0.5, num_layers=1 if DECODERS[name].single_layer else 2)
    features, words = features_for(model, 3), torch.randint(4, 30, (6, 5))
    plain = model.eval()(features, words)
    model.train()
    assert not torch.allclose(model(features, words), plain)
    with without_dropout(model):
        torch.testing.assert_close(model(features, words), plain, atol=1e-6, rtol=0)
    assert not torch.allclose(model(features, words), plain)


@pytest.mark.parametrize("name", ATTENDING)
def test_attention_sums_to_one_and_finds_what_matters(name: str) -> None:
    """What a word is told by one cell alone is looked for there."""
    model = decoder(name)
    cells = 6 + (name == "adaptive_attention")  # the sentinel's weight is the last
    told = torch.randint(4, 30, (64,))
    where = torch.randint(6, (64,))
    features = torch.randn(64, 6, 12) * 0.1
    code = torch.randn(30, 11) * 2
    features[torch.arange(64), where, 1:] = code[told]
    features[torch.arange(64), where, 0] = 5.0  # which cell tells
    features = features.view(64, *GRID)
    words = torch.full((64, 1), START)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(150):
        loss = torch.nn.functional.cross_entropy(model(features, words).squeeze(1), told)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    weights = model.eval().attention_weights(features, words)
    assert weights.shape == (64, 1, cells)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(64, 1))
    assert float((weights[:, 0, :6].argmax(dim=-1) == where).float().mean()) > 0.9


@pytest.mark.parametrize("name", ATTENDING)
def test_attention_sums_to_one_for_every_word_of_every_caption(name: str) -> None:
    model = decoder(name).eval()
    weights = model.attention_weights(
        features_for(model, 3), torch.randint(4, 30, (6, 5))
    )  # 2 an image
    assert weights.shape[:2] == (6, 5)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(6, 5))


def test_a_decoder_without_a_grid_says_that_it_attends_to_nothing() -> None:
    model = decoder()
    with pytest.raises(TypeError, match="does not attend to a grid"):
        model.attention_weights(features_for(model, 1), torch.full((1, 1), START))


def test_tied_embeddings_are_one_tensor() -> None:
    names = set(decoder(tie_embeddings=True).state_dict())
    assert set(decoder().state_dict()) - names == {"output.weight", "output.bias"}


def test_what_all_images_have_in_common_does_not_matter() -> None:
    """Features are standardised by the training images: neither offset nor scale counts."""
    features, words = torch.randn(50, 12), torch.full((50, 1), START)
    plain, moved = decoder().eval(), decoder().eval()
    plain.set_feature_stats(features.mean(dim=0), features.std(dim=0))
    moved.set_feature_stats(7 + 100 * features.mean(dim=0), 100 * features.std(dim=0))
    torch.testing.assert_close(
        plain(features, words), moved(7 + 100 * features, words), atol=1e-4, rtol=0
    )
    constant = torch.ones(50, 12)
    plain.set_feature_stats(constant.mean(dim=0), constant.std(dim=0))
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


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rnn_type", ["lstm", "gru"])
@pytest.mark.parametrize("name", ["soft_attention", "top_down_attention"])
def test_training_on_captions_of_any_lengths_has_the_gradients_of_step_by_step(
    name: str, rnn_type: str, precision: torch.dtype
) -> None:
    torch.manual_seed(0)
    model = decoder(name, dropout=0.0, rnn_type=rnn_type)
    features, tokens = features_for(model, 3), torch.randint(4, 30, (6, 5))
    tokens[1, 3:] = tokens[2:4, 2:] = PAD  # an image whose captions are both short
    tokens[5, 4] = END

    def step_by_step() -> torch.Tensor:
        state = model.init_state(features)
        state = state.index_select(torch.arange(3).repeat_interleave(2))
        logits = []
        for column in tokens.unbind(dim=1):
            step_logits, state = model.step(column, state)
            logits.append(step_logits)
        return torch.stack(logits, dim=1)

    def gradient(logits: torch.Tensor) -> torch.Tensor:
        said = (tokens != PAD) & (tokens != END)
        loss = (logits.float().softmax(dim=-1)[..., 7] * said).sum()
        parts = torch.autograd.grad(loss, list(model.parameters()))
        return torch.cat([part.flatten() for part in parts])

    expected = gradient(step_by_step())
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        logits = model(features, tokens)
    tolerance = 1e-6 if precision == torch.float32 else 0.01
    assert (gradient(logits) - expected).norm() < tolerance * expected.norm()


@pytest.mark.parametrize("per_image", [[3, 3, 3, 3, 3], [3, 1, 1, 0, 2]])
def test_additive_attention_in_pieces_is_the_formula(
    monkeypatch: pytest.MonkeyPatch, per_image: list[int]
) -> None:
    """So are its gradients: pieces of two images, and one that is left over."""
    torch.manual_seed(0)
    N, H = 4, 8
    monkeypatch.setattr("pipeline.decoders.attention.CHUNK_ELEMENTS", 2 * 3 * N * H)
    attention = AdditiveAttention(H)
    with torch.no_grad():
        attention.query.weight.mul_(20)  # so that some activations saturate
    hidden, cells = torch.randn(sum(per_image), H), torch.randn(len(per_image), N, H)
    images = torch.arange(len(per_image)).repeat_interleave(torch.tensor(per_image))

    def formula() -> tuple[torch.Tensor, torch.Tensor]:
        activations = torch.tanh(attention.query(hidden)[:, None] + attention.key(cells)[images])
        weights = attention.score(activations).squeeze(-1).softmax(-1)  # (B, N)
        return (weights[:, None] @ cells[images]).squeeze(1), weights

    keys = attention.project_keys(cells)
    made, expected = attention(hidden, keys, cells, per_image), formula()
    parameters = list(attention.parameters())
    gradients = [torch.autograd.grad(one[0].square().sum(), parameters) for one in (made, expected)]
    torch.testing.assert_close(made, expected)
    torch.testing.assert_close(*gradients)
