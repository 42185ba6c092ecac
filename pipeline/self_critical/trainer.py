"""Self-critical sequence training: the decoder learns from the scores of its own captions.

Rennie et al., CVPR 2017, with the baseline of Luo, "A Better Variant of Self-Critical Sequence
Training", 2020: a caption is compared with the other captions drawn for the same image.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.captions.vocabulary import PAD
from pipeline.config.schema import ScstConfig
from pipeline.dataset.batching import (
    Batch,
    BatchPart,
    EncodedCaptions,
    padded_part,
    sample_captions,
    take_part,
)
from pipeline.dataset.split import Split
from pipeline.decoders.decoder import Decoder
from pipeline.decoders.dropout import set_parts
from pipeline.distributed.part import Part
from pipeline.distributed.ranks import ALONE, Ranks
from pipeline.generation.sampling import SamplingConfig, sample
from pipeline.metrics.rewards import BleuReward, CiderReward, References
from pipeline.runtime.checkpoint import State
from pipeline.runtime.cuda_graphs import CudaGraphs
from pipeline.runtime.errors import InputError
from pipeline.runtime.progress import progress_bar
from pipeline.self_critical.policy import policy_loss, without_dropout
from pipeline.training.base_trainer import BaseTrainer
from pipeline.training.history import Row
from pipeline.training.optimizer import adamw
from pipeline.training.trainer import caption_loss

CHECK_EVERY = 20  # steps on a GPU, where each check synchronises with the device


class SelfCriticalTrainer(BaseTrainer):
    """Trains on captions that the decoder samples, with AdamW at a constant learning rate.

    `train_epoch` trains on every image once. It returns means over the steps: the reward x100, and
    the cross-entropy per token in nats, or None if its weight is 0.
    """

    def __init__(
        self,
        decoder: Decoder,
        split: Split,
        config: ScstConfig,
        dtype: torch.dtype,
        max_length: int,
        ranks: Ranks = ALONE,
    ) -> None:
        """Train on captions of at most `max_length` tokens."""
        optimizer = adamw(decoder, config.learning_rate, weight_decay=0.0)
        super().__init__(decoder, split, config, dtype, optimizer, ranks)
        self.config = config
        self._sampling = SamplingConfig(config.temperature, max_length=max_length)
        references = References(
            references_per_image(split.captions, len(split.features)),
            decoder.config.vocabulary_size,
            self.device,
        )
        self._cider = CiderReward(references)
        self._bleu = BleuReward(references) if config.bleu_weight else None
        self._shuffle = torch.Generator().manual_seed(config.seed)
        self._rng = torch.Generator(self.device).manual_seed(config.seed)
        self._sample = CudaGraphs(self._sample_and_score, [self._rng])
        self._train_step = CudaGraphs(self._step)
        temperature = config.temperature
        self._policy_loss = partial(policy_loss, decoder, temperature=temperature, dtype=dtype)
        self._loss = self._data_parallel(self._losses)
        self._epoch = 0
        self._remaining: list[Tensor] = []  # the images of this epoch's remaining steps
        self._epoch_step = 0
        # Sums over this epoch's steps, on the device: rewards, and cross-entropy losses.
        self._sums = torch.zeros(2, dtype=torch.float64, device=self.device)

    def train_epoch(self, epoch: int, after_step: Callable[[], None] = lambda: None) -> Row:
        self.decoder.train()
        if epoch != self._epoch:
            images = torch.randperm(len(self.split.features), generator=self._shuffle)
            self._epoch, self._remaining = epoch, list(images.split(self.config.batch_size))
            self._epoch_step = 0
            self._sums.zero_()
        total = self._epoch_step + len(self._remaining)
        with progress_bar(
            label=f"epoch {epoch}",
            total=total,
            unit="batch",
            initial=self._epoch_step,
            shown=self.ranks.is_main,
        ) as progress:
            while self._remaining:
                self._train_on(self._remaining.pop(0))
                progress.update()
                after_step()
        self._check_finite()
        reward, cross_entropy = (self._sums / self._epoch_step).tolist()
        has_cross_entropy = self.config.cross_entropy_weight > 0
        return {
            "reward": 100 * reward,
            "cross_entropy": cross_entropy if has_cross_entropy else None,
        }

    def _train_on(self, images: Tensor) -> None:
        """Sample captions of these images (P,), score them, and take one training step."""
        on_device = images.to(self.device)
        part = self.ranks.part(len(images))
        features = self.split.features.draw(on_device, part)  # (P, …)
        samples, rewards = self._sample(features, on_device)
        batch = None
        if self.config.cross_entropy_weight:
            batch = sample_captions(self.split.captions, images, self._shuffle, self.device)
        self._ema.count_step()
        if part is None:
            xe_batch = () if batch is None else (batch.inputs, batch.targets, *batch.extra)
            self._train_step(features, samples, rewards, *xe_batch)
        else:  # without a CUDA graph, which cannot hold the ranks' communication
            self._step_on_part(features, samples, rewards, batch, part)
        self._epoch_step += 1
        if self.device.type == "cpu" or self._epoch_step % CHECK_EVERY == 0:
            self._check_finite()

    def _sample_and_score(self, features: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """Captions (P * samples, T) of these images (P,), and their rewards (P, samples): CIDEr-D
        plus `bleu_weight` times BLEU-4. On several ranks, of this one's part of the images."""
        count, part = self.config.samples_per_image, self.ranks.part(len(images))
        rows = None if part is None else part.times(count)
        with without_dropout(self.decoder):
            samples = sample(self.decoder, features, count, self._sampling, self._rng, rows)
        if part is not None:
            images, samples = images[part.rows], self._align(samples, part)
        rewards = self._cider(images, samples)
        if self._bleu:
            rewards += self.config.bleu_weight * self._bleu(images, samples)
        return samples, rewards.view(-1, count).float()

    def _align(self, samples: Tensor, part: Part) -> Tensor:
        """Samples as long as the batch's longest, (B, T), and the random generator in the state
        that sampling the whole batch leaves it in."""
        if samples.device.type == "cpu":  # sampling ends when all of this rank's captions have
            steps = max(self.ranks.gather(samples.shape[1]))
            missing = steps - samples.shape[1]
            for _ in range(missing):
                torch.rand(part.total * self.config.samples_per_image, 1, generator=self._rng)
            samples = F.pad(samples, (0, missing), value=PAD)
        return torch.full_like(samples, PAD) if part.spare else samples

    def _step(
        self, features: Tensor, samples: Tensor, rewards: Tensor, *xe_batch: Tensor
    ) -> tuple[Tensor]:
        """One training step on what `_sample_and_score` returned; its loss. `xe_batch` has inputs,
        targets and token index of a batch for the cross-entropy."""
        loss, cross_entropy = self._loss(features, samples, rewards, *xe_batch)
        not_finite = self._update(loss)
        sums = torch.stack([rewards.mean(), cross_entropy.detach()]).double()
        self._sums += sums + not_finite
        return (loss.detach(),)

    def _step_on_part(
        self, features: Tensor, samples: Tensor, rewards: Tensor, batch: Batch | None, part: Part
    ) -> None:
        """`_step`, on this rank's part of the images; `batch` is the whole one."""
        own = None if batch is None else take_part(batch, part)
        xe_batch = () if own is None else (own.batch.inputs, own.batch.targets, *own.batch.extra)
        parts = {"sampled": self._part_of_samples(samples, part), "given": own}
        loss, cross_entropy = self._loss(features, samples, rewards, *xe_batch, **parts)
        not_finite = self._update(loss)
        reward = torch.zeros_like(loss) if part.spare else rewards.sum() / rewards.shape[1]
        sums = torch.stack([reward / part.total, cross_entropy.detach() / self.ranks.size]).double()
        self._sums += self.ranks.sum(sums) + not_finite

    def _losses(
        self,
        features: Tensor,
        samples: Tensor,
        rewards: Tensor,
        *xe_batch: Tensor,
        sampled: tuple[Tensor, Sequence[Part]] | None = None,
        given: BatchPart | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The loss to minimise, and the cross-entropy in it. On several ranks both are parts, whose
        means over the ranks are the batch's."""
        config = self.config
        tokens = None
        if sampled is not None:
            tokens = sampled[0] / self.ranks.size
            set_parts(self.decoder, sampled[1])
        with nullcontext() if config.use_dropout else without_dropout(self.decoder):
            loss = self._policy_loss(features, samples, rewards, tokens=tokens)
        cross_entropy = torch.zeros_like(loss)
        if xe_batch:
            if given is not None:
                set_parts(self.decoder, given.parts)
            cross_entropy = caption_loss(
                self.decoder,
                features,
                *xe_batch,
                label_smoothing=0.0,
                dtype=self.dtype,
                tokens=None if given is None else given.tokens / self.ranks.size,
            )
            loss = loss + config.cross_entropy_weight * cross_entropy
        return loss, cross_entropy

    def _part_of_samples(self, samples: Tensor, part: Part) -> tuple[Tensor, Sequence[Part]]:
        """The number of tokens of all ranks' samples, and which parts of them are this rank's."""
        count = (samples != PAD).sum()
        captions = part.times(self.config.samples_per_image)
        if samples.is_cuda:
            return self.ranks.sum(count), (part, captions)
        counts = self.ranks.gather(int(count))
        before, total = sum(counts[: self.ranks.rank]), sum(counts)
        outputs = padded_part(before, int(count), total)
        return torch.tensor(total), (part, captions, outputs)

    def _check_finite(self) -> None:
        if not math.isfinite(float(self._sums[0])):
            raise InputError(
                f"the loss or its gradient is no longer finite in epoch {self._epoch}, by step "
                f"{self._epoch_step}, at a learning rate of {self.config.learning_rate:.2g}; lower "
                "scst.learning_rate"
            )

    def state_dict(self) -> State:
        tensors, header = super().state_dict()
        tensors |= {"shuffle": self._shuffle.get_state(), "sampling": self._rng.get_state()}
        remaining = torch.cat([torch.zeros(0, dtype=torch.int64), *self._remaining])
        header |= {"epoch": self._epoch, "epoch_step": self._epoch_step}
        return tensors | {"remaining": remaining, "sums": self._sums}, header

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        tensors, header = state
        self._shuffle.set_state(tensors["shuffle"])
        self._rng.set_state(tensors["sampling"])
        remaining = tensors["remaining"]
        self._remaining = list(remaining.split(self.config.batch_size)) if len(remaining) else []
        self._epoch, self._epoch_step = header["epoch"], header["epoch_step"]
        self._sums.copy_(tensors["sums"])


def references_per_image(captions: EncodedCaptions, images: int) -> list[list[list[int]]]:
    """The token ids of each image's captions, with <end> and without <start>."""
    references: list[list[list[int]]] = [[] for _ in range(images)]
    columns = (captions.images.tolist(), captions.lengths.tolist(), captions.token_ids.tolist())
    for image, length, ids in zip(*columns, strict=True):
        references[image].append(ids[1:length])
    return references
