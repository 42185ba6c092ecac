"""Beam search, batched over pictures and beams, for any decoder.

A caption of n words has the log-probability of its words and of the <end> after them. Its score is
that sum divided by (n + 1) ** length_penalty: 0 leaves the sum, 1 makes it a mean per word
(Wu et al. 2016 use the same idea). Captions have one word at the least and `max_length` at the
most, and every one is ended by the model, none is cut off.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.model.decoder import Stepwise
from pipeline.store.vocabulary import END, PAD, START, UNK

NEVER = float("-inf")


@dataclass(frozen=True)
class Search:
    """How captions are searched for; the fields are params of the evaluate stage."""

    beam: int = 1
    length_penalty: float = 0.0
    max_length: int = 20
    block_ngram: int = 0  # no n-gram of this size twice in a caption; 0 blocks nothing
    allow_unk: bool = False


@dataclass(frozen=True)
class Hypothesis:
    """A caption as word ids, without <start> and <end>, and its score."""

    words: list[int]
    score: float


@torch.inference_mode()
def beam_search(decoder: Stepwise, features: Tensor, search: Search) -> list[Hypothesis]:
    """The best caption of each of B pictures.

    Finished captions are set aside and never grow again. A picture leaves the batch once nothing
    that is still growing can beat its best finished caption: log-probabilities only fall, so the
    bound is the sum so far over the largest divisor.

    Args:
        decoder: anything with `start` and `step`.
        features: what the decoder's `start` takes, B in the first dimension.
    """
    B, K = len(features), search.beam
    device = features.device
    state = decoder.start(features)
    words = torch.full((B,), START, device=device)
    # All beams of a picture begin alike, so there is one, k = 1; from the first word on k = K,
    # unless there are too few words.
    history = words.new_zeros((B, 1, 0))  # words of the growing captions, (b, k, length)
    scores = torch.zeros((B, 1), device=device)
    done_scores = torch.full((B, K), NEVER, device=device)
    done_words = words.new_zeros((B, K, search.max_length))  # <pad> after the last word
    pictures = torch.arange(B, device=device)  # which pictures are still in the batch
    best: list[Hypothesis | None] = [None] * B

    for length in range(search.max_length + 1):
        logits, state = decoder.step(words, state)  # (b * k, V)
        k, V = scores.shape[1], logits.shape[-1]
        log_probs = torch.log_softmax(logits.float(), dim=-1).view(-1, k, V)
        _forbid(log_probs, history, search)
        # 2 K candidates: even if K of them end, K are left to grow.
        candidates = log_probs.add_(scores.unsqueeze(-1)).flatten(1)  # (b, k * V)
        top_scores, top = candidates.topk(min(2 * K, candidates.shape[1]))  # (b, 2 K)
        parents, chosen = top // V, top % V
        ends = chosen == END

        # Ended captions count only from the beam itself: the best K candidates.
        ending = ends.clone()
        ending[:, K:] = False
        normal = (length + 1) ** search.length_penalty
        new_scores = (top_scores / normal).masked_fill(~ending, NEVER)
        padded = torch.nn.functional.pad(history, (0, search.max_length - length), value=PAD)
        new_words = padded.gather(1, _widen(parents, padded))
        done_scores, kept = torch.cat([new_scores, done_scores], dim=1).topk(K)
        done_words = torch.cat([new_words, done_words], dim=1)
        done_words = done_words.gather(1, _widen(kept, done_words))

        scores, growing = top_scores.masked_fill(ends, NEVER).topk(min(K, top.shape[1]))  # (b, K)
        parents, chosen = parents.gather(1, growing), chosen.gather(1, growing)
        bound = scores[:, 0] / (search.max_length + 1) ** search.length_penalty
        finished = (bound <= done_scores[:, 0]) | (length == search.max_length)
        for row in finished.nonzero().flatten().tolist():
            caption = [word for word in done_words[row, 0].tolist() if word != PAD]
            best[int(pictures[row])] = Hypothesis(caption, float(done_scores[row, 0]))
        left = (~finished).nonzero().flatten()
        if len(left) == 0:
            break

        # Move every tensor to the surviving pictures and, within them, the surviving beams.
        beams = (left.unsqueeze(1) * k + parents[left]).flatten()
        state = state.rows(beams, pictures=left if len(left) < len(pictures) else None)
        history = history[left].gather(1, _widen(parents[left], history))
        history = torch.cat([history, chosen[left].unsqueeze(-1)], dim=-1)
        scores, words, pictures = scores[left], chosen[left].flatten(), pictures[left]
        done_scores, done_words = done_scores[left], done_words[left]

    return [hypothesis for hypothesis in best if hypothesis is not None]


def _forbid(log_probs: Tensor, history: Tensor, search: Search) -> None:
    """Set what may not follow `history` (b, k, length) to never, in `log_probs` (b, k, V) itself:
    it is by far the largest tensor here, and a copy would cost as much as the rest of a step."""
    length = history.shape[-1]
    if length == search.max_length:
        log_probs[..., :END] = NEVER
        log_probs[..., END + 1 :] = NEVER
        return
    banned = [PAD, START] + ([] if search.allow_unk else [UNK]) + ([END] if length == 0 else [])
    log_probs[..., banned] = NEVER
    n = search.block_ngram
    if n and length >= n:
        # Wherever the last n - 1 words stood before, the word that followed may not follow again.
        starts = length - n + 1
        earlier = torch.stack([history[..., i : i + n - 1] for i in range(starts)], dim=2)
        last = history[..., starts:].unsqueeze(2)  # (b, K, 1, n - 1)
        repeats = (earlier == last).all(dim=-1)  # (b, K, starts)
        followers = history[..., n - 1 :].masked_fill(~repeats, PAD)  # (b, K, starts); PAD is never
        log_probs.scatter_(2, followers, NEVER)


def _widen(index: Tensor, like: Tensor) -> Tensor:
    """An index (b, n) over beams, for gathering rows of `like` (b, ·, words)."""
    return index.unsqueeze(-1).expand(-1, -1, like.shape[-1])
