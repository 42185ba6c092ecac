"""The policy-gradient loss of self-critical training, and a decoder without dropout."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pipeline.captions.vocabulary import PAD
from pipeline.decoders.decoder import Decoder
from pipeline.generation.sampling import log_probabilities


def policy_loss(
    decoder: Decoder,
    features: Tensor,
    samples: Tensor,
    rewards: Tensor,
    *,
    temperature: float,
    dtype: torch.dtype,
    tokens: Tensor | None = None,
) -> Tensor:
    """REINFORCE loss per token (Williams 1992); the baseline is the mean reward of the image's
    other samples.

    Args:
        features: of P images, (P, …).
        samples: S captions of each, (P * S, T).
        rewards: (P, S).
        temperature: that they were sampled with.
        tokens: what to divide the sum by, if it is not the number of these samples' tokens.
    """
    baseline = (rewards.sum(dim=1, keepdim=True) - rewards) / (rewards.shape[1] - 1)
    advantage = (rewards - baseline).view(-1, 1).to(features.device)  # (B, 1)
    with torch.autocast(features.device.type, dtype, enabled=dtype != torch.float32):
        log_probs = log_probabilities(decoder, features, samples, temperature)  # (B, T)
    count = (samples != PAD).sum() if tokens is None else tokens
    return -(advantage * log_probs).sum() / count


@contextmanager
def without_dropout(decoder: Decoder) -> Iterator[None]:
    """Turn dropout off but stay in train mode: cuDNN's RNN backward needs it."""
    kinds = {nn.Dropout: "p", nn.RNNBase: "dropout"}
    modules = list(decoder.modules())
    settings = [(m, name) for m in modules for kind, name in kinds.items() if isinstance(m, kind)]
    before = [getattr(module, name) for module, name in settings]
    for module, name in settings:
        setattr(module, name, 0.0)
    try:
        yield
    finally:
        for (module, name), value in zip(settings, before, strict=True):
            setattr(module, name, value)
