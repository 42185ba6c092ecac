"""What a decoder hears in training instead of the references' own words.

It will hear its own words when it captions: these make it ready for that.
"""

import torch
from torch import Tensor

from pipeline.captions.vocabulary import PAD, START, UNK
from pipeline.decoders.decoder import Decoder
from pipeline.generation.sampling import mask_special_tokens, sample_tokens


def apply_word_dropout(inputs: Tensor, share: float) -> Tensor:
    """Words (B, T) of which a share became <unk>: what is said next must come from the image
    (Bowman et al., CoNLL 2016)."""
    if not share:
        return inputs
    return inputs.masked_fill(_chosen(inputs, share), UNK)


@torch.no_grad()
def scheduled_sampling(decoder: Decoder, features: Tensor, inputs: Tensor, share: float) -> Tensor:
    """Words (B, T) of which a share is drawn from what the decoder would have said there.

    Scheduled sampling (Bengio et al., NeurIPS 2015) for all words at once: what it would have
    said is asked after the words given, in one pass (Duckworth et al., 2019).

    Args:
        features: of the batch's images, (P, …).
    """
    if not share:
        return inputs
    places = _chosen(inputs, share)[:, 1:].flatten().nonzero().squeeze(1)
    hidden = decoder.hidden(features, inputs)[:, :-1]  # after <start> the first word's, and so on
    logits = mask_special_tokens(decoder.logits(hidden.flatten(0, 1)[places]).float(), first=True)
    said = sample_tokens(logits.softmax(dim=-1))
    heard = inputs.clone()
    heard[:, 1:] = inputs[:, 1:].flatten().index_put((places,), said).view_as(inputs[:, 1:])
    return heard


def _chosen(inputs: Tensor, share: float) -> Tensor:
    """Which words (B, T) are replaced: any but <start> and <pad>."""
    drawn = torch.rand(inputs.shape, device=inputs.device) < share
    return drawn & (inputs != START) & (inputs != PAD)
