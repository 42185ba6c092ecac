"""Self-critical sequence training: the decoder learns from the scores of its own captions.

Rennie et al., CVPR 2017, with the baseline of Luo, "A Better Variant of Self-Critical Sequence
Training", 2020: a caption is compared with the other captions drawn for the same picture.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config.scst import ScstConfig
from pipeline.errors import InputError
from pipeline.model.average import Average
from pipeline.model.batches import EncodedCaptions, one_caption_each
from pipeline.model.decoder import Decoder
from pipeline.model.fit import caption_loss
from pipeline.model.sample import Sampling, log_probabilities, sample
from pipeline.model.split import Split
from pipeline.model.state import (
    Saved,
    load_chance,
    load_module,
    load_optimizer,
    save_chance,
    save_module,
    save_optimizer,
)
from pipeline.progress import bar
from pipeline.scoring.reward import BleuReward, CiderReward
from pipeline.store.vocabulary import PAD


@dataclass(frozen=True)
class Learnt:
    """What an epoch was like, as means over its steps: reward x100, loss in nats a word."""

    reward: float
    cross_entropy: float | None  # where some was mixed in


class Reinforce:
    """A trained decoder that goes on learning."""

    def __init__(
        self,
        decoder: Decoder,
        split: Split,
        config: ScstConfig,
        precision: torch.dtype,
        max_length: int,
    ) -> None:
        """
        Args:
            max_length: words of a drawn caption at the most.
        """
        self.decoder, self.split, self.config, self.precision = decoder, split, config, precision
        self._sampling = Sampling(config.temperature, max_length=max_length)
        self._average = Average(decoder, config.ema)
        references = references_of(split.captions, len(split.features))
        self._cider = CiderReward(references)
        self._bleu = BleuReward(references) if config.bleu else None
        self.optimizer = torch.optim.AdamW(
            decoder.parameters(), lr=config.learning_rate, weight_decay=0.0, fused=True
        )
        device = decoder.feature_mean.device
        self._order = torch.Generator().manual_seed(config.seed)
        self._draw = torch.Generator(device).manual_seed(config.seed)
        self._number = 0
        self._groups: list[Tensor] = []  # the pictures of this epoch's steps to come
        self._steps, self._rewards, self._losses = 0, 0.0, 0.0

    @property
    def learnt(self) -> Decoder:
        """The decoder to caption with, in eval mode."""
        return self._average.decoder

    def epoch(self, number: int, after_step: Callable[[], None] = lambda: None) -> Learnt:
        """Every picture once, or those that are left.

        Args:
            number: of the epoch; the one that `load` is in the middle of is gone on with.
            after_step: called after every step, when `save` is whole.

        Raises:
            InputError: the loss is no number any more.
        """
        config = self.config
        self.decoder.train()
        if number != self._number:
            pictures = torch.randperm(len(self.split.features), generator=self._order)
            self._number, self._groups = number, list(pictures.split(config.pictures))
            self._steps, self._rewards, self._losses = 0, 0.0, 0.0
        with bar(
            label=f"epoch {number}",
            total=self._steps + len(self._groups),
            unit="batch",
            initial=self._steps,
        ) as progress:
            while self._groups:
                self._step(self._groups.pop(0))
                progress.update()
                after_step()
        return Learnt(
            reward=100 * self._rewards / self._steps,
            cross_entropy=self._losses / self._steps if config.cross_entropy else None,
        )

    def _step(self, group: Tensor) -> None:
        """Captions of these pictures (P,) are drawn, scored and learned from."""
        config, split = self.config, self.split
        features = split.features[group]  # (P, …)
        with without_dropout(self.decoder):
            drawn = sample(self.decoder, features, config.samples, self._sampling, self._draw)
        values = self.rewards(group, drawn)  # (P, samples)
        with nullcontext() if config.dropout else without_dropout(self.decoder):
            loss = self._policy_loss(features, drawn, values)
        if config.cross_entropy:
            batch = one_caption_each(split.captions, group, self._order, features.device)
            supervised = caption_loss(
                *(self.decoder, features, batch, batch.inputs),
                smoothing=0.0,
                precision=self.precision,
            )
            loss = loss + config.cross_entropy * supervised
            self._losses += float(supervised.detach())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.decoder.parameters(), config.clip_norm)
        if not math.isfinite(float(norm)):  # before the weights are lost to it
            raise InputError(
                f"the loss or its gradient stopped being a number in epoch {self._number}, step "
                f"{self._steps + 1}, "
                f"at a learning rate of {config.learning_rate:.2g}; lower scst.learning_rate"
            )
        self.optimizer.step()
        self._average.update()
        self._rewards, self._steps = self._rewards + float(values.mean()), self._steps + 1

    def save(self) -> Saved:
        """All that the next step depends on."""
        tensors, header = save_optimizer(self.optimizer)
        tensors |= save_module("decoder", self.decoder) | self._average.save()
        tensors |= save_chance(self.decoder.feature_mean.device)
        tensors |= {"order": self._order.get_state(), "draw": self._draw.get_state()}
        left = torch.cat([torch.zeros(0, dtype=torch.int64), *self._groups])
        header |= {"epoch": self._number, "steps": self._steps}
        header |= {"rewards": self._rewards, "losses": self._losses}
        return tensors | {"left": left}, header

    def load(self, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
        """Be where `save` was called."""
        load_module("decoder", self.decoder, tensors)
        self._average.load(tensors)
        load_optimizer(self.optimizer, tensors, header)
        self._order.set_state(tensors["order"])
        self._draw.set_state(tensors["draw"])
        left = tensors["left"]
        self._groups = list(left.split(self.config.pictures)) if len(left) else []
        self._number, self._steps = header["epoch"], header["steps"]
        self._rewards, self._losses = header["rewards"], header["losses"]
        load_chance(tensors, self.decoder.feature_mean.device)

    def rewards(self, pictures: Tensor, drawn: Tensor) -> Tensor:
        """CIDEr-D, and `bleu` times BLEU-4, of captions (P * samples, T) -> (P, samples)."""
        captions = [[word for word in row if word != PAD] for row in drawn.tolist()]
        numbers = pictures.repeat_interleave(len(captions) // len(pictures)).tolist()
        values = torch.tensor([self._cider(*one) for one in zip(numbers, captions, strict=True)])
        if self._bleu:
            bleu = [self._bleu(*one) for one in zip(numbers, captions, strict=True)]
            values += self.config.bleu * torch.tensor(bleu)
        return values.view(len(pictures), -1)

    def _policy_loss(self, features: Tensor, drawn: Tensor, values: Tensor) -> Tensor:
        """Words of captions that are better than their siblings become likelier."""
        others = (values.sum(dim=1, keepdim=True) - values) / (values.shape[1] - 1)
        advantage = (values - others).view(-1, 1).to(features.device)  # (B, 1)
        with torch.autocast(
            features.device.type, self.precision, enabled=self.precision != torch.float32
        ):
            likely = log_probabilities(self.decoder, features, drawn, self.config.temperature)
        return -(advantage * likely).sum() / (drawn != PAD).sum()


@contextmanager
def without_dropout(decoder: Decoder) -> Iterator[None]:
    """In train mode all the same: fused recurrent kernels have a gradient only there."""
    modules = [m for m in decoder.modules() if isinstance(m, (nn.Dropout, nn.RNNBase))]
    before = [(m.p if isinstance(m, nn.Dropout) else m.dropout) for m in modules]
    _set_dropout(modules, [0.0] * len(modules))
    try:
        yield
    finally:
        _set_dropout(modules, before)


def _set_dropout(modules: Sequence[nn.Dropout | nn.RNNBase], shares: Sequence[float]) -> None:
    for module, share in zip(modules, shares, strict=True):
        setattr(module, "p" if isinstance(module, nn.Dropout) else "dropout", share)


def references_of(captions: EncodedCaptions, pictures: int) -> list[list[list[int]]]:
    """The word ids of each picture's captions, <end> included, <start> not."""
    references: list[list[list[int]]] = [[] for _ in range(pictures)]
    for picture, length, words in zip(
        captions.pictures.tolist(), captions.lengths.tolist(), captions.words.tolist(), strict=True
    ):
        references[picture].append(words[1:length])
    return references
