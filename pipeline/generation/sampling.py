"""Sample captions from a decoder's distribution, and compute captions' log-probabilities."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from pipeline.captions.vocabulary import END, PAD, START, UNK
from pipeline.dataset.batching import pad_to_multiple
from pipeline.decoders.decoder import Decoder, StepDecoder
from pipeline.distributed.part import Part, draw_rows
from pipeline.generation.beam_search import NEG_INF


@dataclass(frozen=True)
class SamplingConfig:
    """How captions are sampled."""

    temperature: float = 1.0  # divides the logits; below 1 favours likely tokens
    top_k: int = 0  # only the k likeliest tokens (Fan et al., ACL 2018); 0: all
    top_p: float = 1.0  # only the likeliest tokens with this mass (Holtzman et al., ICLR 2020)
    max_length: int = 20


@torch.no_grad()
def sample(
    decoder: StepDecoder,
    features: Tensor,
    count: int,
    config: SamplingConfig,
    rng: torch.Generator | None = None,
    part: Part | None = None,
) -> Tensor:
    """Sample `count` captions of each image.

    Args:
        features: of P images, (P, …).
        part: which rows of a batch of captions these are; None: all.

    Returns:
        Token ids (P * count, T): tokens, <end>, <pad>; T is at most max_length + 1, and always that
        on a GPU. A caption of max_length tokens has no <end> if none was sampled by then.
    """
    P = len(features)
    state = decoder.init_state(features)
    state = state.index_select(torch.arange(P, device=features.device).repeat_interleave(count))
    token_ids = torch.full((P * count,), START, device=features.device)
    captions, done = [], torch.zeros_like(token_ids, dtype=torch.bool)
    for length in range(config.max_length + 1):
        logits, state = decoder.step(token_ids, state)
        logits = mask_special_tokens(logits.float(), first=length == 0) / config.temperature
        token_ids = sample_tokens(_top_k_top_p(torch.softmax(logits, dim=-1), config), rng, part)
        if length == config.max_length:  # only <end> may follow
            token_ids = torch.where(token_ids == END, token_ids, PAD)
        token_ids = torch.where(done, PAD, token_ids)
        captions.append(token_ids)
        done |= (token_ids == END) | (token_ids == PAD)
        if token_ids.device.type == "cpu" and done.all():  # on a GPU this would wait for the device
            break
    return torch.stack(captions, dim=1)


def _top_k_top_p(probs: Tensor, config: SamplingConfig) -> Tensor:
    """Probabilities (B, V), with those outside top-k and top-p set to 0."""
    k, p = config.top_k, config.top_p
    if 0 < k < probs.shape[-1]:
        probs = probs.masked_fill(probs < probs.topk(k).values[:, -1:], 0)
    if p < 1:
        ordered, token_ids = probs.sort(dim=-1, descending=True, stable=True)
        # A token stays if those before it have less mass than p: the likeliest always does.
        before = ordered.cumsum(dim=-1) - ordered
        ordered = ordered.masked_fill(before >= p * ordered.sum(dim=-1, keepdim=True), 0)
        probs = torch.zeros_like(probs).scatter(-1, token_ids, ordered)
    return probs


def sample_tokens(
    probs: Tensor, rng: torch.Generator | None = None, part: Part | None = None
) -> Tensor:
    """Sample one token id (B,) per row of `probs` (B, V), which need not sum to one.

    On a CPU from one random number per row: V of them would be a third of a step. On a GPU from V
    exponential variates, of which the smallest wins: a sum there would not be repeatable.
    """
    if probs.device.type != "cpu":
        empty = partial(torch.empty, dtype=probs.dtype, device=probs.device)
        noise = draw_rows(lambda shape: empty(shape).exponential_(generator=rng), probs.shape, part)
        return (probs / noise).argmax(dim=-1)
    sums = probs.double().cumsum(dim=-1)
    height = draw_rows(partial(torch.rand, generator=rng), (len(probs), 1), part).double()
    # The first whose sum is above: never one with a probability of 0.
    return torch.searchsorted(sums, height * sums[:, -1:], right=True).squeeze(1)


def mask_special_tokens(logits: Tensor, first: bool) -> Tensor:
    """Mask special tokens in logits (…, V); at the first position also <end>."""
    logits = logits.clone()
    for token in [PAD, START, UNK] + ([END] if first else []):  # a list would be copied to the GPU
        logits[..., token].fill_(NEG_INF)
    return logits


def log_probabilities(
    decoder: Decoder, features: Tensor, captions: Tensor, temperature: float = 1.0
) -> Tensor:
    """Log-probability (B, T) with which `sample` draws each token of P images' captions (B, T);
    0 for <pad>."""
    start = captions.new_full((len(captions), 1), START)
    inputs = torch.cat([start, captions[:, :-1]], dim=1)
    hidden, _ = decoder.forward_hidden(features, inputs)  # (B, T, ·)
    if captions.device.type != "cpu":  # all positions: to find the tokens would wait for the device
        logits = mask_special_tokens(decoder.logits(hidden).float(), first=False)  # (B, T, V)
        logits[:, 0, END].fill_(NEG_INF)
        log_probs = torch.log_softmax(logits / temperature, dim=-1)
        log_probs = log_probs.gather(2, captions.unsqueeze(2)).squeeze(2)
        return torch.where(captions != PAD, log_probs, 0)
    token_index = (captions != PAD).flatten().nonzero().squeeze(1)
    rows = pad_to_multiple(token_index)
    logits = decoder.logits(hidden.flatten(0, 1)[rows]).float()  # (rows, V)
    logits = mask_special_tokens(logits, first=False)
    # As in sampling, the first token is not <end>.
    first_rows = (token_index % captions.shape[1] == 0).nonzero().squeeze(1)
    logits[first_rows, END] = NEG_INF
    tokens = captions.flatten()[rows]
    log_probs = torch.log_softmax(logits / temperature, dim=-1).gather(1, tokens.unsqueeze(1))
    filled = torch.zeros(captions.numel(), device=captions.device)
    return filled.index_put((token_index,), log_probs[: len(token_index), 0]).view_as(captions)
