"""Teacher forcing: train a decoder on the captions of a split, and measure the loss on another."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.captions.vocabulary import PAD
from pipeline.config.schema import TrainConfig
from pipeline.dataset.batching import (
    Batch,
    BatchPart,
    count_batches,
    iter_batches,
    pad_to_multiple,
    take_part,
)
from pipeline.dataset.feature_dataset import add_noise
from pipeline.dataset.split import Split
from pipeline.decoders.decoder import Decoder
from pipeline.decoders.dropout import set_parts
from pipeline.distributed.ranks import ALONE, Ranks
from pipeline.runtime.checkpoint import State
from pipeline.runtime.cuda_graphs import CudaGraphs
from pipeline.runtime.errors import InputError
from pipeline.runtime.progress import progress_bar
from pipeline.training.base_trainer import BaseTrainer
from pipeline.training.history import Row
from pipeline.training.optimizer import adamw, set_learning_rate
from pipeline.training.scheduled_sampling import apply_word_dropout, scheduled_sampling

CHECK_EVERY = 50  # steps on a GPU, where each check synchronises with the device


class Trainer(BaseTrainer):
    """AdamW with warm-up and cosine decay; `train_epoch` returns the learning rate of the epoch's
    first step, and the mean loss per token in nats."""

    def __init__(
        self,
        decoder: Decoder,
        config: TrainConfig,
        split: Split,
        dtype: torch.dtype,
        ranks: Ranks = ALONE,
    ) -> None:
        optimizer = adamw(decoder, config.learning_rate, config.weight_decay)
        super().__init__(decoder, split, config, dtype, optimizer, ranks)
        captions = split.captions
        # Shrink batches of small data sets so that an epoch has `min_epoch_steps`.
        batch_size = min(config.batch_size, max(1, len(captions) // config.min_epoch_steps))
        self.config = config.model_copy(update={"batch_size": batch_size})
        self.steps_per_epoch = count_batches(captions, batch_size, config.feature_kind == "grid")
        self.total_steps = config.epochs * self.steps_per_epoch
        self._train_loss = self._data_parallel(partial(caption_loss, decoder))
        self._train_step, self._val_loss = CudaGraphs(self._step), CudaGraphs(self._loss)
        self._shuffle = torch.Generator().manual_seed(config.seed)
        self._global_step = 0  # over all epochs
        self._total_loss = torch.zeros((), dtype=torch.float64, device=self.device)
        self._start_epoch(0)

    def _start_epoch(self, epoch: int) -> None:
        self._epoch, self._epoch_start = epoch, self._shuffle.get_state()
        self._epoch_step, self._tokens = 0, 0
        self._total_loss.zero_()

    def learning_rate_at(self, step: int) -> float:
        config = self.config
        return config.learning_rate * warmup_cosine(step, self.total_steps, config.warmup_ratio)

    def train_epoch(self, epoch: int, after_step: Callable[[], None] = lambda: None) -> Row:
        config, decoder = self.config, self.decoder.train()
        if epoch == self._epoch:  # resumed: the same order as before the interruption
            self._shuffle.set_state(self._epoch_start)
        else:
            self._start_epoch(epoch)
        batches = iter_split_batches(self.split, config, self._shuffle, self.device)
        for batch in progress_bar(
            islice(batches, self._epoch_step, None),
            label=f"epoch {epoch}",
            total=self.steps_per_epoch,
            unit="batch",
            initial=self._epoch_step,
            shown=self.ranks.is_main,
        ):
            images = self.ranks.part(len(batch.images))
            part = None if images is None else take_part(batch, images)
            features = self.split.features.draw(batch.images, images)  # (P, …)
            features = add_noise(features, decoder.feature_std, config.feature_noise, images)
            # Scheduled sampling rises linearly over the training. Its forward pass only picks
            # tokens, so it needs no autocast.
            sampling_prob = config.scheduled_sampling * self._global_step / self.total_steps
            inputs = scheduled_sampling(decoder, features, batch.inputs, sampling_prob, part)
            set_learning_rate(self.optimizer, self.learning_rate_at(self._global_step))
            self._ema.count_step()
            if part is None:
                self._train_step(features, inputs, batch.targets, *batch.extra)
            else:  # without a CUDA graph, which cannot hold the ranks' communication
                own = part.batch
                self._step(features, inputs, own.targets, *own.extra, part=part)
            self._tokens += batch.tokens
            self._epoch_step += 1
            if self.device.type == "cpu" or self._epoch_step % CHECK_EVERY == 0:
                self._check_finite()
            self._global_step += 1
            after_step()
        self._check_finite()
        return {
            "learning_rate": self.learning_rate_at((epoch - 1) * self.steps_per_epoch),
            "train_loss": float(self._total_loss) / self._tokens,
        }

    def _step(
        self,
        features: Tensor,
        inputs: Tensor,
        targets: Tensor,
        *token_index: Tensor,
        part: BatchPart | None = None,
    ) -> tuple[Tensor]:
        """One training step on a batch, or on all ranks' parts of it; the mean loss per token."""
        config, size = self.config, self.ranks.size
        if part is not None:
            set_parts(self.decoder, part.parts)
        loss = self._train_loss(
            features,
            apply_word_dropout(inputs, config.word_dropout, part.captions if part else None),
            targets,
            *token_index,
            label_smoothing=config.label_smoothing,
            dtype=self.dtype,
            # The mean of the ranks' losses is the batch's, and so are those of the gradients.
            tokens=None if part is None else part.tokens / size,
        )
        not_finite = self._update(loss)
        loss = loss.detach()
        if part is None:
            self._total_loss += loss.double() * (targets != PAD).sum() + not_finite
        else:
            loss = self.ranks.sum(loss.double()) / size
            self._total_loss += loss * part.tokens + not_finite
        return (loss,)

    def _check_finite(self) -> None:
        if not math.isfinite(float(self._total_loss)):
            rate = self.learning_rate_at(self._global_step)
            raise InputError(
                f"the loss or its gradient is no longer finite in epoch {self._epoch}, by step "
                f"{self._epoch_step} of {self.steps_per_epoch}, at a learning rate of {rate:.2g}; "
                "lower train.learning_rate or train.clip_norm"
            )

    @torch.inference_mode()
    def loss(self, split: Split) -> float:
        """Mean cross-entropy per token in nats, without smoothing: comparable across params."""
        self.ema_decoder.eval()
        losses, tokens = [], 0
        batches = iter_split_batches(split, self.config, shuffle=None, device=self.device)
        for batch in self.ranks.shard(batches):
            features = split.features[batch.images]
            (loss,) = self._val_loss(features, batch.inputs, batch.targets, *batch.extra)
            losses.append(loss.double() * batch.tokens)
            tokens += batch.tokens
        total = 0.0
        # One by one and in order, whatever the number of ranks: `sum` would compensate roundings.
        for part in self.ranks.merge_shards(torch.stack(losses).tolist() if losses else []):
            total += part
        return total / sum(self.ranks.gather(tokens))

    def _loss(self, *batch: Tensor) -> tuple[Tensor]:
        loss = caption_loss(self.ema_decoder, *batch, label_smoothing=0.0, dtype=self.dtype)
        return (loss,)

    def state_dict(self) -> State:
        tensors, header = super().state_dict()
        # An epoch's order depends on the generator's state at the epoch's start.
        tensors |= {"epoch_start": self._epoch_start, "shuffle": self._shuffle.get_state()}
        tensors |= {"total_loss": self._total_loss}
        header |= {"step": self._global_step, "epoch": self._epoch}
        return tensors, header | {"epoch_step": self._epoch_step, "tokens": self._tokens}

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        tensors, header = state
        self._epoch_start = tensors["epoch_start"]
        self._shuffle.set_state(tensors["shuffle"])
        self._total_loss.copy_(tensors["total_loss"])
        self._global_step, self._epoch = header["step"], header["epoch"]
        self._epoch_step, self._tokens = header["epoch_step"], header["tokens"]


def warmup_cosine(step: int, total_steps: int, warmup_ratio: float) -> float:
    """The learning rate's factor: linear warm-up, then cosine decay to zero."""
    warmup = warmup_ratio * total_steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, total_steps - warmup)))


def iter_split_batches(
    split: Split, config: TrainConfig, shuffle: torch.Generator | None, device: torch.device
) -> Iterator[Batch]:
    """All captions of a split, batched as this decoder takes them."""
    by_image = config.feature_kind == "grid"
    return iter_batches(split.captions, config.batch_size, device, shuffle, by_image)


def caption_loss(
    decoder: Decoder,
    features: Tensor,
    inputs: Tensor,
    targets: Tensor,
    token_index: Tensor | None = None,
    *,
    label_smoothing: float,
    dtype: torch.dtype,
    tokens: float | None = None,
) -> Tensor:
    """Mean cross-entropy per token of a batch, with label smoothing (Szegedy et al. 2016).

    Args:
        features: of the batch's images, (P, …).
        inputs: (B, T), the batch's own, or with words dropped.
        targets: (B, T).
        token_index: where the flattened targets are not <pad>, if known (see `Batch`).
        tokens: what to divide the sum by, if it is not the number of this batch's tokens.
    """
    targets = targets.flatten()
    with torch.autocast(targets.device.type, dtype, enabled=dtype != torch.float32):
        hidden = decoder.forward_hidden(features, inputs)[0].flatten(0, 1)  # (B * T, ·)
        if token_index is not None:
            rows = pad_to_multiple(token_index)  # the loss ignores the padding
            hidden = hidden[rows]
            targets = F.pad(targets[token_index], (0, len(rows) - len(token_index)), value=PAD)
        logits = decoder.logits(hidden)  # (rows, V)
    reduction = "mean" if tokens is None else "sum"
    loss = F.cross_entropy(
        logits.float(),
        targets,
        ignore_index=PAD,
        label_smoothing=label_smoothing,
        reduction=reduction,
    )
    return loss if tokens is None else loss / tokens
