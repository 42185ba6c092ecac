"""Self-critical sequence training: the decoder learns from the scores of its own captions.

Rennie et al., CVPR 2017, with the baseline of Luo, "A Better Variant of Self-Critical Sequence
Training", 2020: a caption is compared with the other captions drawn for the same image.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.captions.vocabulary import PAD
from pipeline.config.scst import ScstConfig
from pipeline.dataset.batching import EncodedCaptions, sample_captions
from pipeline.dataset.split import Split
from pipeline.decoders.decoder import Decoder
from pipeline.generation.sampling import SamplingConfig, log_probabilities, sample
from pipeline.metrics.rewards import BleuReward, CiderReward, References
from pipeline.runtime.cuda_graphs import CudaGraphs
from pipeline.runtime.errors import InputError
from pipeline.runtime.progress import bar
from pipeline.training.ema import ModelEma
from pipeline.training.optimizer import adamw, load_optimizer, save_optimizer
from pipeline.training.trainer import caption_loss
from pipeline.training.trainer_state import (
    TrainerState,
    load_module,
    load_rng_state,
    rng_state_dict,
    save_module,
)


@dataclass(frozen=True)
class EpochStats:
    """What an epoch was like, as means over its steps: reward x100, loss in nats a word."""

    reward: float
    cross_entropy: float | None  # where some was mixed in


class SelfCriticalTrainer:
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
        self._sampling = SamplingConfig(config.temperature, max_length=max_length)
        self._average = ModelEma(decoder, config.ema)
        device = decoder.feature_mean.device
        references = References(
            references_of(split.captions, len(split.features)),
            decoder.config.vocabulary_size,
            device,
        )
        self._cider = CiderReward(references)
        self._bleu = BleuReward(references) if config.bleu else None
        self.optimizer = adamw(decoder, config.learning_rate, weight_decay=0.0)
        self._order = torch.Generator().manual_seed(config.seed)
        self._rng = torch.Generator(device).manual_seed(config.seed)
        self._draw = CudaGraphs(self._drawn, [self._rng])
        self._learn = CudaGraphs(self._learn_from)
        self._number = 0
        self._groups: list[Tensor] = []  # the images of this epoch's steps to come
        self._steps = 0
        # Sums over this epoch's steps, on the device: rewards, and losses of cross-entropy.
        self._sums = torch.zeros(2, dtype=torch.float64, device=device)

    @property
    def learnt(self) -> Decoder:
        """The decoder to caption with, in eval mode."""
        return self._average.decoder

    def epoch(self, number: int, after_step: Callable[[], None] = lambda: None) -> EpochStats:
        """Every image once, or those that are left.

        Args:
            number: of the epoch; the one that `load` is in the middle of is gone on with.
            after_step: called after every step, when `save` is whole.

        Raises:
            InputError: the loss is no number any more.
        """
        config = self.config
        self.decoder.train()
        if number != self._number:
            images = torch.randperm(len(self.split.features), generator=self._order)
            self._number, self._groups = number, list(images.split(config.images))
            self._steps = 0
            self._sums.zero_()
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
        self._check_finite()
        reward, loss = (self._sums / self._steps).tolist()
        return EpochStats(100 * reward, loss if config.cross_entropy else None)

    def _step(self, group: Tensor) -> None:
        """Captions of these images (P,) are drawn, scored and learned from."""
        split, device = self.split, self._sums.device
        group = group.to(device)
        features = split.features[group]  # (P, …)
        drawn, values = self._draw(features, group)
        supervised: tuple[Tensor, ...] = ()
        if self.config.cross_entropy:
            batch = sample_captions(split.captions, group.cpu(), self._order, device)
            supervised = (batch.inputs, batch.targets, *batch.extra)
        self._average.count_step()
        self._learn(features, drawn, values, *supervised)
        self._steps += 1
        if device.type == "cpu" or self._steps % 20 == 0:  # a GPU would be waited for
            self._check_finite()

    def _drawn(self, features: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
        """Captions (P * samples, T) of these images (P,), and their rewards (P, samples)."""
        samples, sampling = self.config.samples, self._sampling
        with without_dropout(self.decoder):
            drawn = sample(self.decoder, features, samples, sampling, self._rng)
        return drawn, self.rewards(group, drawn)

    def _learn_from(
        self, features: Tensor, drawn: Tensor, values: Tensor, *supervised: Tensor
    ) -> tuple[Tensor]:
        """One step, with all that follows from it; the loss.

        Args:
            drawn, values: what `_drawn` gave.
            supervised: inputs, targets, and `kept`, of a batch to learn by teacher forcing.
        """
        config = self.config
        with nullcontext() if config.dropout else without_dropout(self.decoder):
            loss = self._policy_loss(features, drawn, values)
        cross_entropy = torch.zeros_like(loss)
        if supervised:
            inputs, targets, *kept = supervised
            cross_entropy = caption_loss(
                self.decoder,
                features,
                inputs,
                targets,
                *kept,
                smoothing=0.0,
                precision=self.precision,
            )
            loss = loss + config.cross_entropy * cross_entropy
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.decoder.parameters(), config.clip_norm)
        self.optimizer.step()
        self._average.update()
        # A norm that is no number makes the sums none.
        sums = torch.stack([values.mean(), cross_entropy.detach()]).double()
        self._sums += sums + (norm - norm)
        return (loss.detach(),)

    def _check_finite(self) -> None:
        if not math.isfinite(float(self._sums[0])):
            raise InputError(
                f"the loss or its gradient stopped being a number in epoch {self._number}, by step "
                f"{self._steps}, at a learning rate of {self.config.learning_rate:.2g}; lower "
                "scst.learning_rate"
            )

    def save(self) -> TrainerState:
        """All that the next step depends on."""
        self._check_finite()  # else there is nothing to go on with
        tensors, header = save_optimizer(self.optimizer)
        tensors |= save_module("decoder", self.decoder) | self._average.save()
        tensors |= rng_state_dict(self.decoder.feature_mean.device)
        tensors |= {"order": self._order.get_state(), "draw": self._rng.get_state()}
        left = torch.cat([torch.zeros(0, dtype=torch.int64), *self._groups])
        header |= {"epoch": self._number, "steps": self._steps}
        return tensors | {"left": left, "sums": self._sums}, header

    def load(self, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
        """Be where `save` was called."""
        load_module("decoder", self.decoder, tensors)
        self._average.load(tensors)
        load_optimizer(self.optimizer, tensors, header)
        self._order.set_state(tensors["order"])
        self._rng.set_state(tensors["draw"])
        left = tensors["left"]
        self._groups = list(left.split(self.config.images)) if len(left) else []
        self._number, self._steps = header["epoch"], header["steps"]
        self._sums.copy_(tensors["sums"])
        load_rng_state(tensors, self.decoder.feature_mean.device)

    def rewards(self, images: Tensor, drawn: Tensor) -> Tensor:
        """CIDEr-D, and `bleu` times BLEU-4, of captions (P * samples, T) -> (P, samples)."""
        values = self._cider(images, drawn)
        if self._bleu:
            values += self.config.bleu * self._bleu(images, drawn)
        return values.view(len(images), -1).float()

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


def references_of(captions: EncodedCaptions, images: int) -> list[list[list[int]]]:
    """The word ids of each image's captions, <end> included, <start> not."""
    references: list[list[list[int]]] = [[] for _ in range(images)]
    for image, length, words in zip(
        captions.images.tolist(), captions.lengths.tolist(), captions.words.tolist(), strict=True
    ):
        references[image].append(words[1:length])
    return references
