"""Word dropout and scheduled sampling: corrupt the training inputs to reduce exposure bias."""

import torch
from torch import Tensor

from pipeline.captions.vocabulary import PAD, START, UNK
from pipeline.decoders.decoder import Decoder
from pipeline.generation.sampling import mask_special_tokens, sample_tokens


def apply_word_dropout(inputs: Tensor, p: float) -> Tensor:
    """Replace tokens (B, T) by <unk> with probability p (Bowman et al., CoNLL 2016)."""
    return inputs.masked_fill(_random_mask(inputs, p), UNK) if p else inputs


@torch.no_grad()
def scheduled_sampling(decoder: Decoder, features: Tensor, inputs: Tensor, p: float) -> Tensor:
    """Replace tokens (B, T) of P images' captions by the decoder's own samples with probability p.

    Scheduled sampling (Bengio et al., NeurIPS 2015) for all tokens at once: samples are drawn after
    the given tokens, in one pass (Duckworth et al. 2019).
    """
    if not p:
        return inputs
    positions = _random_mask(inputs, p)[:, 1:].flatten().nonzero().squeeze(1)
    # Position t of the output predicts input t + 1.
    hidden = decoder.forward_hidden(features, inputs)[0][:, :-1].flatten(0, 1)
    logits = mask_special_tokens(decoder.logits(hidden[positions]).float(), first=True)
    sampled = sample_tokens(logits.softmax(dim=-1))
    mixed = inputs.clone()
    mixed[:, 1:] = inputs[:, 1:].flatten().index_put((positions,), sampled).view_as(inputs[:, 1:])
    return mixed


def _random_mask(inputs: Tensor, p: float) -> Tensor:
    """Each token (B, T) with probability p, never <start> or <pad>."""
    mask = torch.rand(inputs.shape, device=inputs.device) < p
    return mask & (inputs != START) & (inputs != PAD)
