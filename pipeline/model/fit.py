"""Teacher forcing: an epoch of learning, and the loss on captions that are not learnt from."""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.config.train import TrainConfig
from pipeline.errors import InputError
from pipeline.model.average import Average
from pipeline.model.batches import Batch, EncodedCaptions, batches, count_batches
from pipeline.model.decoder import Decoder
from pipeline.model.heard import drop_words, own_words
from pipeline.model.split import Split
from pipeline.progress import bar


class Fit:
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
        self.steps = count_batches(captions, config.batch_size, config.layer == "grid")
        self.decoder, self.config, self.precision = decoder, config, precision
        self.optimizer = torch.optim.AdamW(
            decoder.parameters(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=True,
        )
        steps = config.epochs * self.steps
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: learning_rate_factor(step, steps, config.warmup)
        )
        self._average = Average(decoder, config.ema)
        self._shuffle = torch.Generator().manual_seed(config.seed)

    @property
    def learning_rate(self) -> float:
        return float(self.schedule.get_last_lr()[0])

    @property
    def done(self) -> float:
        """The share of all steps that lies behind."""
        return float(self.schedule.last_epoch / (self.config.epochs * self.steps))

    @property
    def learnt(self) -> Decoder:
        """The decoder to caption with, in eval mode."""
        return self._average.decoder

    def epoch(self, split: Split, number: int) -> float:
        """One pass over the captions; the mean loss per word, in nats.

        Raises:
            InputError: the loss is no number any more.
        """
        config, decoder = self.config, self.decoder.train()
        total, tokens = torch.zeros((), dtype=torch.float64, device=_device(decoder)), 0
        cut = batches_of(split, config, self._shuffle, device=_device(decoder))
        for batch in bar(cut, label=f"epoch {number}", total=self.steps, unit="batch"):
            features = split.features[batch.pictures]  # (P, …)
            share = config.scheduled_sampling * self.done
            inputs = own_words(decoder, features, batch.inputs, share)
            inputs = drop_words(inputs, config.word_dropout)
            loss = caption_loss(
                *(decoder, features, batch, inputs),
                smoothing=config.label_smoothing,
                precision=self.precision,
            )
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(decoder.parameters(), config.clip_norm)
            self.optimizer.step()
            self.schedule.step()
            self._average.update()
            total += loss.detach() * batch.tokens  # summed on the device: no wait per step
            tokens += batch.tokens
        mean = float(total) / tokens
        if not math.isfinite(mean):
            raise InputError(
                f"the loss stopped being a number in epoch {number}, at a learning rate of "
                f"{self.learning_rate:.2g}; lower train.learning_rate or train.clip_norm"
            )
        return mean

    @torch.inference_mode()
    def loss(self, split: Split) -> float:
        """Mean cross-entropy per word, in nats, without smoothing: comparable across params."""
        decoder = self.learnt
        total, tokens = 0.0, 0
        for batch in batches_of(split, self.config, shuffle=None, device=_device(decoder)):
            loss = caption_loss(
                *(decoder, split.features[batch.pictures], batch, batch.inputs),
                smoothing=0.0,
                precision=self.precision,
            )
            total, tokens = total + float(loss) * batch.tokens, tokens + batch.tokens
        return total / tokens


def learning_rate_factor(step: int, steps: int, warmup: float) -> float:
    """Linear warm-up over a share of the steps, then half a cosine down to zero."""
    rise = warmup * steps
    if step < rise:
        return (step + 1) / (rise + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1.0, steps - rise)))


def batches_of(
    split: Split, config: TrainConfig, shuffle: torch.Generator | None, device: torch.device
) -> Iterator[Batch]:
    """All of a split's captions, cut as this decoder takes them."""
    by_picture = config.layer == "grid"
    return batches(split.captions, config.batch_size, device, shuffle, by_picture)


def caption_loss(
    decoder: Decoder,
    features: Tensor,
    batch: Batch,
    inputs: Tensor,
    smoothing: float,
    precision: torch.dtype,
) -> Tensor:
    """Mean cross-entropy per word of a batch, with label smoothing (Szegedy et al. 2016).

    Args:
        features: of the batch's pictures, (P, …).
        inputs: (B, T), the batch's own, or with words dropped.
    """
    device = _device(decoder)
    with torch.autocast(device.type, precision, enabled=precision != torch.float32):
        hidden = decoder.hidden(features, inputs)  # (B, T, H)
        logits = decoder.logits(hidden.flatten(0, 1)[batch.kept])  # (tokens, V)
    targets = batch.targets.flatten()[batch.kept]
    return F.cross_entropy(logits.float(), targets, label_smoothing=smoothing)


def _device(decoder: Decoder) -> torch.device:
    return decoder.feature_mean.device
