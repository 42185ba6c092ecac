"""Word dropout and scheduled sampling: corrupt the training inputs to reduce exposure bias."""

from functools import partial

import torch
from torch import Tensor

from pipeline.captions.vocabulary import PAD, START, UNK
from pipeline.dataset.batching import BatchPart
from pipeline.decoders.decoder import Decoder
from pipeline.decoders.dropout import set_parts
from pipeline.distributed.part import Part, draw_rows
from pipeline.generation.sampling import mask_special_tokens, sample_tokens


def apply_word_dropout(inputs: Tensor, p: float, part: Part | None = None) -> Tensor:
    """Replace tokens (B, T) by <unk> with probability p (Bowman et al., CoNLL 2016), in all
    captions of a batch or in this part."""
    return inputs.masked_fill(_random_mask(inputs, p, part), UNK) if p else inputs


@torch.no_grad()
def scheduled_sampling(
    decoder: Decoder, features: Tensor, inputs: Tensor, p: float, part: BatchPart | None = None
) -> Tensor:
    """Replace tokens (B, T) of P images' captions by the decoder's own samples with probability p.

    Scheduled sampling (Bengio et al., NeurIPS 2015) for all tokens at once: samples are drawn after
    the given tokens, in one pass (Duckworth et al. 2019).

    Args:
        part: which captions of `inputs` to return; `features` are of their images alone.
    """
    rows = slice(None) if part is None else part.captions.rows
    if not p:
        return inputs[rows]
    mask = _random_mask(inputs, p)[:, 1:]
    inputs, positions = inputs[rows], mask[rows].flatten().nonzero().squeeze(1)
    if part is not None:
        set_parts(decoder, (part.images, part.captions))
    # Position t of the output predicts input t + 1.
    hidden = decoder.forward_hidden(features, inputs)[0][:, :-1].flatten(0, 1)
    chosen = None
    if part is not None:
        before, total = int(mask[: part.captions.start].sum()), int(mask.sum())
        chosen = Part(before, before + len(positions), total)
        set_parts(decoder, (chosen,))
    logits = mask_special_tokens(decoder.logits(hidden[positions]).float(), first=True)
    sampled = sample_tokens(logits.softmax(dim=-1), part=chosen)
    mixed = inputs.clone()
    mixed[:, 1:] = inputs[:, 1:].flatten().index_put((positions,), sampled).view_as(inputs[:, 1:])
    return mixed


def _random_mask(inputs: Tensor, p: float, part: Part | None = None) -> Tensor:
    """Each token (B, T) with probability p, never <start> or <pad>."""
    mask = draw_rows(partial(torch.rand, device=inputs.device), inputs.shape, part) < p
    return mask & (inputs != START) & (inputs != PAD)
