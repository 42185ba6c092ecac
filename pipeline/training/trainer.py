"""Teacher forcing: an epoch of learning, and the loss on captions that are not learnt from."""

import math
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.captions.vocabulary import PAD
from pipeline.config.train import TrainConfig
from pipeline.dataset.batching import (
    Batch,
    EncodedCaptions,
    batches,
    count_batches,
    pad_to_multiple,
)
from pipeline.dataset.feature_dataset import add_noise
from pipeline.dataset.split import Split
from pipeline.decoders.decoder import Decoder
from pipeline.runtime.cuda_graphs import CudaGraphs
from pipeline.runtime.errors import InputError
from pipeline.runtime.progress import bar
from pipeline.training.ema import ModelEma
from pipeline.training.optimizer import adamw, load_optimizer, save_optimizer, set_learning_rate
from pipeline.training.scheduled_sampling import apply_word_dropout, scheduled_sampling
from pipeline.training.trainer_state import (
    TrainerState,
    load_module,
    load_rng_state,
    rng_state_dict,
    save_module,
)


class Trainer:
    """A decoder that learns: AdamW under a schedule, the weights averaged on the way."""

    def __init__(
        self,
        decoder: Decoder,
        config: TrainConfig,
        captions: EncodedCaptions,
        precision: torch.dtype,
    ) -> None:
        """
        Args:
            captions: what an epoch goes through; the schedule counts its steps.
        """
        # A few hundred captions are a handful of batches: too few steps to learn in.
        size = min(config.batch_size, max(1, len(captions) // config.min_epoch_steps))
        config = config.model_copy(update={"batch_size": size})
        self.steps = count_batches(captions, size, config.layer == "grid")
        self.decoder, self.config, self.precision = decoder, config, precision
        self.optimizer = adamw(decoder, config.learning_rate, config.weight_decay)
        self._step = 0  # of all epochs
        self._learn, self._judge = CudaGraphs(self._learn_from), CudaGraphs(self._loss_of)
        self._average = ModelEma(decoder, config.ema)
        self._shuffle = torch.Generator().manual_seed(config.seed)
        self._total = torch.zeros((), dtype=torch.float64, device=_device(decoder))
        self._begin_epoch(0)

    def _begin_epoch(self, number: int) -> None:
        self._number, self._order = number, self._shuffle.get_state()
        self._batches, self._tokens = 0, 0
        self._total.zero_()

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return self._learning_rate_at(self._step)

    def learning_rate_at_epoch(self, epoch: int) -> float:
        """An epoch's first step's."""
        return self._learning_rate_at((epoch - 1) * self.steps)

    def _learning_rate_at(self, step: int) -> float:
        config, steps = self.config, self.config.epochs * self.steps
        return config.learning_rate * warmup_cosine(step, steps, config.warmup)

    @property
    def place(self) -> tuple[int, int]:
        """Epochs that lie behind, and steps of the one after them."""
        return divmod(self._step, self.steps)

    @property
    def done(self) -> float:
        """The share of all steps that lies behind."""
        return self._step / (self.config.epochs * self.steps)

    @property
    def ema_decoder(self) -> Decoder:
        """The decoder to caption with, in eval mode."""
        return self._average.decoder

    def epoch(
        self, split: Split, number: int, after_step: Callable[[], None] = lambda: None
    ) -> float:
        """One pass over the captions, or the rest of one; the mean loss per word, in nats.

        Args:
            number: of the epoch; the one that `load` is in the middle of is gone on with.
            after_step: called after every step, when `save` is whole.

        Raises:
            InputError: the loss is no number any more.
        """
        config, decoder = self.config, self.decoder.train()
        if number == self._number:  # the same order as before the interruption
            self._shuffle.set_state(self._order)
        else:
            self._begin_epoch(number)
        cut = batches_of(split, config, self._shuffle, device=_device(decoder))
        rest = islice(cut, self._batches, None)
        label, behind = f"epoch {number}", self._batches
        on_cpu = self._total.device.type == "cpu"
        for batch in bar(rest, label=label, total=self.steps, unit="batch", initial=behind):
            features = split.features[batch.images]  # (P, …)
            features = add_noise(features, decoder.feature_std, config.feature_noise)
            share = config.scheduled_sampling * self.done
            inputs = scheduled_sampling(decoder, features, batch.inputs, share)
            set_learning_rate(self.optimizer, self.learning_rate)
            self._average.count_step()
            self._learn(features, inputs, batch.targets, *batch.extra)
            self._tokens += batch.tokens
            self._batches += 1
            if on_cpu or self._batches % 50 == 0:  # a GPU would be waited for
                self._check_finite()
            self._step += 1
            after_step()
        self._check_finite()
        return float(self._total) / self._tokens

    def _learn_from(
        self, features: Tensor, inputs: Tensor, targets: Tensor, *kept: Tensor
    ) -> tuple[Tensor]:
        """One step, with all that follows from it; the loss per word."""
        config, decoder = self.config, self.decoder
        loss = caption_loss(
            decoder,
            features,
            apply_word_dropout(inputs, config.word_dropout),
            targets,
            *kept,
            smoothing=config.label_smoothing,
            precision=self.precision,
        )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(decoder.parameters(), config.clip_norm)
        self.optimizer.step()
        self._average.update()
        # Summed on the device: no wait per step. A norm that is no number makes the sum none.
        loss = loss.detach()
        self._total += loss.double() * (targets != PAD).sum() + (norm - norm)
        return (loss,)

    def _check_finite(self) -> None:
        if not math.isfinite(float(self._total)):
            raise InputError(
                f"the loss or its gradient stopped being a number in epoch {self._number}, by step "
                f"{self._batches} of {self.steps}, at a learning rate of {self.learning_rate:.2g}; "
                "lower train.learning_rate or train.clip_norm"
            )

    def save(self) -> TrainerState:
        """All that the next step depends on."""
        self._check_finite()  # else there is nothing to go on with
        tensors, header = save_optimizer(self.optimizer)
        tensors |= save_module("decoder", self.decoder)
        tensors |= self._average.save() | rng_state_dict(_device(self.decoder))
        # An epoch's order hangs on the generator as the epoch found it.
        tensors |= {"order": self._order, "shuffle": self._shuffle.get_state()}
        tensors |= {"total": self._total}
        header |= {"step": self._step, "epoch": self._number}
        return tensors, header | {"batches": self._batches, "tokens": self._tokens}

    def load(self, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
        """Be where `save` was called."""
        load_module("decoder", self.decoder, tensors)
        self._average.load(tensors)
        self._step = header["step"]
        load_optimizer(self.optimizer, tensors, header)
        self._order = tensors["order"]
        self._total.copy_(tensors["total"])
        self._shuffle.set_state(tensors["shuffle"])
        self._number, self._batches = header["epoch"], header["batches"]
        self._tokens = header["tokens"]
        load_rng_state(tensors, _device(self.decoder))

    @torch.inference_mode()
    def loss(self, split: Split) -> float:
        """Mean cross-entropy per word, in nats, without smoothing: comparable across params."""
        device = _device(self.ema_decoder)
        total, tokens = torch.zeros((), dtype=torch.float64, device=device), 0
        for batch in batches_of(split, self.config, shuffle=None, device=device):
            features = split.features[batch.images]
            (loss,) = self._judge(features, batch.inputs, batch.targets, *batch.extra)
            total, tokens = total + loss.double() * batch.tokens, tokens + batch.tokens
        return float(total) / tokens

    def _loss_of(
        self, features: Tensor, inputs: Tensor, targets: Tensor, *kept: Tensor
    ) -> tuple[Tensor]:
        loss = caption_loss(
            self.ema_decoder,
            features,
            inputs,
            targets,
            *kept,
            smoothing=0.0,
            precision=self.precision,
        )
        return (loss,)


def warmup_cosine(step: int, steps: int, warmup: float) -> float:
    """Linear warm-up over a share of the steps, then half a cosine down to zero."""
    rise = warmup * steps
    if step < rise:
        return (step + 1) / (rise + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1.0, steps - rise)))


def batches_of(
    split: Split, config: TrainConfig, shuffle: torch.Generator | None, device: torch.device
) -> Iterator[Batch]:
    """All of a split's captions, cut as this decoder takes them."""
    by_image = config.layer == "grid"
    return batches(split.captions, config.batch_size, device, shuffle, by_image)


def caption_loss(
    decoder: Decoder,
    features: Tensor,
    inputs: Tensor,
    targets: Tensor,
    kept: Tensor | None = None,
    *,
    smoothing: float,
    precision: torch.dtype,
) -> Tensor:
    """Mean cross-entropy per word of a batch, with label smoothing (Szegedy et al. 2016).

    Args:
        features: of the batch's images, (P, …).
        inputs: (B, T), the batch's own, or with words dropped.
        targets: (B, T), and where they are words, as a batch has it.
    """
    targets = targets.flatten()
    with torch.autocast(targets.device.type, precision, enabled=precision != torch.float32):
        hidden = decoder.hidden(features, inputs).flatten(0, 1)  # (B * T, H)
        if kept is not None:
            rows = pad_to_multiple(kept)  # more than there are words: the loss ignores the others
            hidden = hidden[rows]
            targets = F.pad(targets[kept], (0, len(rows) - len(kept)), value=PAD)
        logits = decoder.logits(hidden)  # (rows, V)
    return F.cross_entropy(logits.float(), targets, ignore_index=PAD, label_smoothing=smoothing)


def _device(decoder: Decoder) -> torch.device:
    return decoder.feature_mean.device
