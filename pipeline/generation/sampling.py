"""Captions drawn from a decoder's own distribution, and how likely it finds captions."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.captions.vocabulary import END, PAD, START, UNK
from pipeline.dataset.batching import pad_to_multiple
from pipeline.decoders.decoder import Decoder, StepDecoder

NEVER = float("-inf")


@dataclass(frozen=True)
class SamplingConfig:
    """What captions are drawn from."""

    temperature: float = 1.0  # divides the logits; below 1 likely words are drawn more often still
    top_k: int = 0  # of so many likeliest words only (Fan et al., ACL 2018); 0: of all
    top_p: float = (
        1.0  # of the likeliest that have this share together (Holtzman et al., ICLR 2020)
    )
    max_length: int = 20


@torch.no_grad()
def sample(
    decoder: StepDecoder,
    features: Tensor,
    count: int,
    sampling: SamplingConfig,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw `count` captions of each image.

    Args:
        features: of P images, (P, …).

    Returns:
        Word ids (P * count, T), T at most max_length + 1, on a GPU always: words, <end>, <pad>. A
        caption of max_length words has no <end> if it was not drawn by then.
    """
    P = len(features)
    state = decoder.start(features)
    state = state.rows(torch.arange(P, device=features.device).repeat_interleave(count))
    words = torch.full((P * count,), START, device=features.device)
    said, done = [], torch.zeros_like(words, dtype=torch.bool)
    for length in range(sampling.max_length + 1):
        logits, state = decoder.step(words, state)
        logits = mask_special_tokens(logits.float(), first=length == 0) / sampling.temperature
        words = sample_tokens(_top_k_top_p(torch.softmax(logits, dim=-1), sampling), generator)
        if length == sampling.max_length:  # only to end is left
            words = torch.where(words == END, words, PAD)
        words = torch.where(done, PAD, words)
        said.append(words)
        done |= (words == END) | (words == PAD)
        if words.device.type == "cpu" and done.all():  # a GPU would be waited for
            break
    return torch.stack(said, dim=1)


def _top_k_top_p(shares: Tensor, sampling: SamplingConfig) -> Tensor:
    """Shares (B, V), with nothing left to words that are too unlikely to be drawn."""
    k, p = sampling.top_k, sampling.top_p
    if 0 < k < shares.shape[-1]:
        shares = shares.masked_fill(shares < shares.topk(k).values[:, -1:], 0)
    if p < 1:
        ordered, words = shares.sort(dim=-1, descending=True, stable=True)
        # A word stays if those before it have not got there yet: the likeliest always does.
        before = ordered.cumsum(dim=-1) - ordered
        ordered = ordered.masked_fill(before >= p * ordered.sum(dim=-1, keepdim=True), 0)
        shares = torch.zeros_like(shares).scatter(-1, words, ordered)
    return shares


def sample_tokens(shares: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One of V for each row of (B, V) by its share.

    On a CPU from one random number: V of them would be a third of a step. On a GPU from V: the
    first to come of V Poisson processes, in which nothing is summed in an order of chance.
    """
    if shares.device.type != "cpu":
        waits = torch.empty_like(shares).exponential_(generator=generator)
        return (shares / waits).argmax(dim=-1)
    sums = shares.double().cumsum(dim=-1)
    height = torch.rand(len(shares), 1, generator=generator, device=shares.device).double()
    # The first whose sum is above: never one without a share.
    return torch.searchsorted(sums, height * sums[:, -1:], right=True).squeeze(1)


def mask_special_tokens(logits: Tensor, first: bool) -> Tensor:
    """Logits (…, V) without what is no word; the first word (B, V) is no <end> either."""
    never = [PAD, START, UNK] + ([END] if first else [])
    logits = logits.clone()
    for token in never:  # not all at once: their numbers would have to travel to the device
        logits[..., token].fill_(NEVER)
    return logits


def log_probabilities(
    decoder: Decoder, features: Tensor, captions: Tensor, temperature: float = 1.0
) -> Tensor:
    """Log-probability (B, T) with which `sample` draws each word of captions (B, T); 0 for <pad>.

    Args:
        features: of P images, (P, …), P a divisor of B.
    """
    begin = captions.new_full((len(captions), 1), START)
    inputs = torch.cat([begin, captions[:, :-1]], dim=1)
    hidden = decoder.hidden(features, inputs)  # (B, T, ·)
    if captions.device.type != "cpu":  # all places: a GPU would be waited for to say which are kept
        logits = mask_special_tokens(decoder.logits(hidden).float(), first=False)  # (B, T, V)
        logits[:, 0, END].fill_(NEVER)
        values = torch.log_softmax(logits / temperature, dim=-1)
        values = values.gather(2, captions.unsqueeze(2)).squeeze(2)
        return torch.where(captions != PAD, values, 0)
    kept = (captions != PAD).flatten().nonzero().squeeze(1)
    rows = pad_to_multiple(kept)
    logits = mask_special_tokens(
        decoder.logits(hidden.flatten(0, 1)[rows]).float(), first=False
    )  # (rows, V)
    # As in sampling, a caption does not end before it begins.
    firsts = (kept % captions.shape[1] == 0).nonzero().squeeze(1)
    logits[firsts, END] = NEVER
    chosen = captions.flatten()[rows]
    values = torch.log_softmax(logits / temperature, dim=-1).gather(1, chosen.unsqueeze(1))
    filled = torch.zeros(captions.numel(), device=captions.device)
    return filled.index_put((kept,), values[: len(kept), 0]).view_as(captions)
