"""What a step of training is fed: batches, words that are dropped or its own, the learning rate."""

from typing import Any

import pytest
import torch

from pipeline.captions.vocabulary import END, PAD, START, UNK, build_vocabulary
from pipeline.dataset.batching import count_batches, encode, iter_batches
from pipeline.dataset.feature_dataset import add_noise
from pipeline.training.ema import ModelEma
from pipeline.training.scheduled_sampling import apply_word_dropout, scheduled_sampling
from pipeline.training.trainer import caption_loss, warmup_cosine
from tests.test_decoder import decoder, features_for

CPU = torch.device("cpu")


def test_dropped_words_are_unk_and_the_start_stays() -> None:
    torch.manual_seed(0)
    words = torch.full((200, 11), 5)
    words[:, 0] = START
    words[0, 4:] = PAD
    dropped = apply_word_dropout(words, 0.25)
    assert (dropped[:, 0] == START).all()
    assert (dropped[0, 4:] == PAD).all()
    words, dropped = words[1:], dropped[1:]
    assert set(dropped[:, 1:].unique().tolist()) == {5, UNK}
    assert float((dropped[:, 1:] == UNK).float().mean()) == pytest.approx(0.25, abs=0.03)
    assert torch.equal(apply_word_dropout(words, 0.0), words)


def test_noise_is_in_each_features_own_measure() -> None:
    torch.manual_seed(0)
    features = torch.randn(400, 9, 3)
    std = torch.tensor([0.1, 1.0, 10.0])
    noise = add_noise(features, std, 0.5) - features
    assert torch.allclose(noise.std(dim=(0, 1)), 0.5 * std, rtol=0.05)
    assert (noise.mean(dim=(0, 1)).abs() < 0.05 * std).all()
    assert torch.equal(add_noise(features, std, 0.0), features)


class CountsOn:
    """Says of every word the one after it in the vocabulary."""

    def forward_hidden(
        self, features: torch.Tensor, words: torch.Tensor
    ) -> tuple[torch.Tensor, None]:
        return words.unsqueeze(-1), None

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return 100.0 * torch.nn.functional.one_hot(hidden.squeeze(-1) + 1, 40).float()


def test_own_words_are_what_the_decoder_says_there() -> None:
    torch.manual_seed(0)
    words = torch.randint(4, 30, (200, 11))
    words[:, 0] = START
    words[0, 4:] = PAD
    decoder: Any = CountsOn()
    heard = scheduled_sampling(decoder, torch.zeros(200, 1), words, 0.25)
    assert (heard[:, 0] == START).all()
    assert (heard[0, 4:] == PAD).all()
    changed = heard[1:, 2:] != words[1:, 2:]  # the first word would be <end>, which is never heard
    assert torch.equal(heard[1:, 2:][changed], words[1:, 1:-1][changed] + 1)
    assert float(changed.float().mean()) == pytest.approx(0.25, abs=0.03)
    assert torch.equal(scheduled_sampling(decoder, torch.zeros(200, 1), words, 0.0), words)


def test_batches_are_every_caption_once_and_nearly_unpadded() -> None:
    references = [[["w"] * (1 + (image + turn) % 9) for turn in range(5)] for image in range(40)]
    captions = encode(references, build_vocabulary([["w"]], 1))
    cut = list(iter_batches(captions, 16, CPU, torch.Generator().manual_seed(0)))
    assert sum(len(batch.inputs) for batch in cut) == 200
    assert len(cut) == count_batches(captions, 16, by_image=False)
    tokens = sum(batch.tokens for batch in cut)
    assert tokens == sum(len(caption) + 1 for refs in references for caption in refs)
    assert sum(batch.targets.numel() for batch in cut) < 1.1 * tokens
    for batch in cut:
        assert (batch.inputs[:, 0] == START).all()
        assert ((batch.targets == END).sum(dim=1) == 1).all()
        assert int((batch.targets != PAD).sum()) == batch.tokens
    again = list(iter_batches(captions, 16, CPU, torch.Generator().manual_seed(0)))
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(cut, again, strict=True))


@pytest.mark.parametrize("counts", [(5,), (1, 2, 5)])
def test_batches_by_image_keep_an_images_captions_together(counts: tuple[int, ...]) -> None:
    references = [
        [["w"] * (1 + (image + turn) % 9) for turn in range(counts[image % len(counts)])]
        for image in range(40)
    ]
    captions = encode(references, build_vocabulary([["w"]], 1))
    cut = list(iter_batches(captions, 16, CPU, torch.Generator().manual_seed(0), by_image=True))
    assert sorted(torch.cat([batch.images for batch in cut]).tolist()) == list(range(40))
    assert len(cut) == count_batches(captions, 16, by_image=True)
    for batch in cut:
        assert len(batch.inputs) <= 16
        said = (batch.targets != PAD).sum(dim=1).view(len(batch.images), -1)  # with <end>
        for image, lengths in zip(batch.images.tolist(), said.tolist(), strict=True):
            assert lengths == [len(caption) + 1 for caption in references[image]]
        assert batch.token_index is not None
        assert torch.equal(batch.token_index, (batch.targets != PAD).flatten().nonzero().squeeze(1))


@pytest.mark.parametrize("by_image", [False, True])
def test_batches_of_few_shapes_have_the_same_captions_and_the_same_loss(by_image: bool) -> None:
    """As CUDA graphs take them: filled up with captions of <pad>, which the loss ignores."""
    torch.manual_seed(0)
    references = [[["w"] * (1 + (image + turn) % 9) for turn in range(5)] for image in range(17)]
    captions = encode(references, build_vocabulary([["w"]], 1))
    learns = decoder(vocabulary_size=5)
    features = features_for(learns, 17)
    losses, said = [], []
    for static_shapes in (False, True):
        cut = list(iter_batches(captions, 20, CPU, None, by_image, static_shapes))
        if static_shapes:
            assert {len(batch.inputs) for batch in cut} == {20}
            assert {batch.inputs.shape[1] % 2 for batch in cut} == {0}
        losses.append(
            [
                float(
                    caption_loss(
                        *(learns, features[batch.images], batch.inputs, batch.targets),
                        *batch.extra,
                        label_smoothing=0.1,
                        dtype=torch.float32,
                    ).detach()
                )
                for batch in cut
            ]
        )
        said.append([batch.tokens for batch in cut])
        assert said[-1] == [int((batch.targets != PAD).sum()) for batch in cut]
    assert said[0] == said[1]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("images", [3, 20])  # fewer words than the rows are rounded up to; more
def test_the_loss_and_its_gradient_are_of_the_words_alone(images: int, smoothing: float) -> None:
    torch.manual_seed(0)
    references = [[["w"] * (1 + image % 7), ["w", "v"]] for image in range(images)]
    captions = encode(references, build_vocabulary([["w", "v"]], 1))
    (batch,) = iter_batches(captions, 2 * images, CPU, None, by_image=True)
    learns = decoder(vocabulary_size=6)
    features = features_for(learns, images)[batch.images]

    def gradient(loss: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad(loss, list(learns.parameters())))

    made = caption_loss(
        *(learns, features, batch.inputs, batch.targets, batch.token_index),
        label_smoothing=smoothing,
        dtype=torch.float32,
    )
    says = learns(features, batch.inputs).flatten(0, 1)[batch.token_index]
    targets = batch.targets.flatten()[batch.token_index]
    expected = torch.nn.functional.cross_entropy(says, targets, label_smoothing=smoothing)
    torch.testing.assert_close(made, expected)
    torch.testing.assert_close(gradient(made), gradient(expected))


def test_words_out_of_the_vocabulary_are_unk() -> None:
    captions = encode([[["w", "x"]]], build_vocabulary([["w"]], 1))
    assert captions.token_ids.tolist() == [[START, 4, UNK, END]]


def test_the_average_warms_up_to_its_decay() -> None:
    """Ten steps after a leap it has made most of it; long after, it is as slow as its decay."""
    learns = decoder(vocabulary_size=6)
    average = ModelEma(learns, 0.9)

    def leap(value: float, steps: int) -> float:
        torch.nn.init.constant_(learns.embed.weight, value)
        for _ in range(steps):
            average.count_step()
            average.update()
        return float(average.decoder.embed.weight.detach().mean())

    leap(0.0, 1)
    assert leap(1.0, 10) > 0.98
    leap(0.0, 400)
    assert leap(1.0, 1) == pytest.approx(0.1, abs=1e-3)


def test_the_learning_rate_rises_then_falls() -> None:
    rates = [warmup_cosine(step, 100, warmup_ratio=0.2) for step in range(100)]
    assert rates.index(max(rates)) == 20
    assert rates[:21] == sorted(rates[:21])
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert 0 < rates[0] < 0.06
    assert rates[-1] < 0.01
