"""Beam search, batched over images and beams, for any decoder.

A caption of n tokens has the log-probability of its tokens and of the <end> after them. Its score
is that sum divided by (n + 1) ** length_penalty: 0 leaves the sum, 1 makes it a mean per token (as
Wu et al. 2016). A caption has at least one token and at most `max_length`, and the decoder ends
every caption itself: none is cut off.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.captions.vocabulary import END, PAD, START, UNK
from pipeline.decoders.decoder import StepDecoder
from pipeline.runtime.cuda_graphs import CudaGraphs

NEG_INF = float("-inf")


@dataclass(frozen=True)
class BeamSearchConfig:
    """The search's settings: params of the evaluate stage by the same names."""

    beam_size: int = 1
    length_penalty: float = 0.0
    max_length: int = 20
    no_repeat_ngram_size: int = 0  # no n-gram of this size twice in a caption; 0 allows all
    allow_unk: bool = False
    # Diverse beam search (Vijayakumar et al. 2016): `beam_size` beams in groups; a token costs
    # `diversity_penalty` nats per beam of an earlier group that has it at the same step.
    beam_groups: int = 1
    diversity_penalty: float = 0.5
    num_return_sequences: int = 1  # the best captions to return of each group, at most its beams
    # Of consensus reranking (`pipeline.reranking.consensus`), not of the search itself.
    consensus_weight: float = 0.0
    num_neighbors: int = 20


@dataclass(frozen=True)
class Hypothesis:
    """A caption as token ids, without <start> and <end>."""

    token_ids: list[int]
    score: float
    token_log_probs: list[float]  # of each token and of the <end> after them


# What a search is called as: features (P, …) -> the captions of each image.
Search = Callable[[Tensor], list[list[Hypothesis]]]


class BeamSearch:
    """The search with one decoder, for repeated calls: on a GPU a CUDA graph per batch size,
    captured on that size's second use."""

    def __init__(
        self, decoder: StepDecoder, config: BeamSearchConfig, drop_finished: bool | None = None
    ) -> None:
        """
        Args:
            drop_finished: whether finished images leave the batch; None: on a CPU. On a GPU that
                would wait for the device. There they stay, their beams count for nothing, and the
                search can be one CUDA graph.
        """
        self._groups = config.beam_groups
        self._search = CudaGraphs(
            lambda features: _search_tokens(decoder, features, config, drop_finished)
        )

    def __call__(self, features: Tensor) -> list[list[Hypothesis]]:
        """The captions of each of P images: the best of each group of beams, or the best
        `num_return_sequences` of each, where it found as many.

        Args:
            features: what the decoder's `init_state` takes, P in the first dimension.
        """
        tokens, scores, sums = (part.tolist() for part in self._search(features))
        rows = [
            [_hypothesis(*caption) for caption in zip(*row, strict=True) if caption[1] > NEG_INF]
            for row in zip(tokens, scores, sums, strict=True)
        ]
        G = self._groups
        images = (rows[begin : begin + G] for begin in range(0, len(rows), G))
        return [[caption for row in groups for caption in row] for groups in images]


def _hypothesis(tokens: list[int], score: float, sums: list[float]) -> Hypothesis:
    """A caption from padded tokens (max_length) and running log-probabilities (max_length + 1)."""
    token_ids = [token for token in tokens if token != PAD]
    sums = sums[: len(token_ids) + 1]
    log_probs = [now - before for before, now in pairwise([0.0, *sums])]
    return Hypothesis(token_ids, score, log_probs)


@torch.inference_mode()
def _search_tokens(
    decoder: StepDecoder, features: Tensor, config: BeamSearchConfig, drop_finished: bool | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The best n captions of each group as tensors: token ids (P * groups, n, max_length), with
    <pad> after each caption, scores (P * groups, n), and the log-probability of each caption's
    beginnings (P * groups, n, max_length + 1), the last up to its <end>.

    Finished captions are set aside and never grow again. An image is finished once no growing beam
    can beat the n best finished captions of its group: log-probabilities only fall, so the bound is
    the sum so far over the largest divisor.
    """
    P, G = len(features), config.beam_groups
    K = config.beam_size // G
    best = min(config.num_return_sequences, K)
    device = features.device
    drop_finished = device.type == "cpu" if drop_finished is None else drop_finished
    state = decoder.init_state(features)
    if G > 1:
        state = state.index_select(torch.arange(P, device=device).repeat_interleave(G))
    # Rows are groups of beams, row i of image i // G: r = p * G of them for p remaining images.
    token_ids = torch.full((P * G,), START, device=device)
    # All beams of a group start alike, so there is one, k = 1. From the first token on k = K,
    # unless the vocabulary is smaller.
    history = token_ids.new_zeros((P * G, 1, 0))  # tokens of the growing captions, (r, k, length)
    scores = torch.zeros((P * G, 1), device=device)
    sums = scores.new_zeros((P * G, 1, 0))  # `scores` after each token, (r, k, length)
    done_scores = torch.full((P * G, K), NEG_INF, device=device)
    done_tokens = token_ids.new_zeros((P * G, K, config.max_length))
    done_sums = scores.new_zeros((P * G, K, config.max_length + 1))
    rows = torch.arange(P * G, device=device)  # the rows that are still in the batch
    found = [part[:, :best].clone() for part in (done_tokens, done_scores, done_sums)]

    for length in range(config.max_length + 1):
        logits, state = decoder.step(token_ids, state)  # (r * k, V)
        k, V = scores.shape[1], logits.shape[-1]
        log_probs = torch.log_softmax(logits.float(), dim=-1).view(-1, k, V)
        _mask_tokens(log_probs, history, config)
        candidates = log_probs.add_(scores.unsqueeze(-1)).flatten(1)  # (r, k * V)
        ranks, top = _top_candidates(candidates, V, config)  # (r, 2 K)
        top_scores = candidates.gather(1, top) if G > 1 else ranks
        parents, tokens = top // V, top % V
        ends = tokens == END

        # Captions finish only from the beam itself: the best K candidates.
        finishing = ends.clone()
        finishing[:, K:] = False
        length_norm = (length + 1) ** config.length_penalty
        new_scores = (top_scores / length_norm).masked_fill(~finishing, NEG_INF)
        padding = (0, config.max_length - length)
        new_tokens = F.pad(_gather_beams(history, parents), padding, value=PAD)
        new_sums = torch.cat([_gather_beams(sums, parents), top_scores.unsqueeze(-1)], dim=-1)
        new_sums = F.pad(new_sums, padding)
        done_scores, order = torch.cat([new_scores, done_scores], dim=1).topk(K)
        done_tokens = _gather_beams(torch.cat([new_tokens, done_tokens], dim=1), order)
        done_sums = _gather_beams(torch.cat([new_sums, done_sums], dim=1), order)

        _, growing = ranks.masked_fill(ends, NEG_INF).topk(min(K, top.shape[1]))  # (r, K)
        scores = top_scores.masked_fill(ends, NEG_INF).gather(1, growing)
        parents, tokens = parents.gather(1, growing), tokens.gather(1, growing)
        bound = scores.amax(dim=1) / (config.max_length + 1) ** config.length_penalty
        finished = (bound <= done_scores[:, best - 1]) | (length == config.max_length)
        # A decoder's memory has one row per image: all groups of an image leave together.
        finished = finished.view(-1, G).all(dim=1).repeat_interleave(G)
        # Move every tensor to the remaining images and, within them, to the surviving beams.
        remaining = torch.arange(len(rows), device=device)
        if drop_finished:
            done = finished.nonzero().flatten()
            for part, finals in zip(found, (done_tokens, done_scores, done_sums), strict=True):
                part[rows[done]] = finals[done, :best]
            remaining = (~finished).nonzero().flatten()
        else:
            found = [part[:, :best] for part in (done_tokens, done_scores, done_sums)]
            scores = scores.masked_fill(finished.unsqueeze(1), NEG_INF)
        if len(remaining) == 0 or length == config.max_length:
            break
        beams = (remaining.unsqueeze(1) * k + parents[remaining]).flatten()
        images = remaining[::G] // G if len(remaining) < len(rows) else None
        state = state.index_select(beams, images)
        scores, tokens, parents = scores[remaining], tokens[remaining], parents[remaining]
        history = _gather_beams(history[remaining], parents)
        history = torch.cat([history, tokens.unsqueeze(-1)], dim=-1)
        sums = torch.cat([_gather_beams(sums[remaining], parents), scores.unsqueeze(-1)], dim=-1)
        token_ids, rows = tokens.flatten(), rows[remaining]
        done_scores, done_tokens = done_scores[remaining], done_tokens[remaining]
        done_sums = done_sums[remaining]
    return found[0], found[1], found[2]


def _top_candidates(
    candidates: Tensor, vocabulary_size: int, config: BeamSearchConfig
) -> tuple[Tensor, Tensor]:
    """Ranks and indices (r, 2 K) of the best candidates (r, k * V), the best first.

    2 K, so that K can grow even if K end. The rank is the score less the diversity penalty.
    """
    G = config.beam_groups
    K = config.beam_size // G
    count = min(2 * K, candidates.shape[1])
    if G == 1:
        return candidates.topk(count)
    by_image = candidates.unflatten(0, (-1, G))  # (p, G, k * V)
    used = candidates.new_zeros(len(by_image), vocabulary_size)  # beams of earlier groups per token
    per_group = []
    for group in range(G):
        penalty = (config.diversity_penalty * used).repeat(
            1, candidates.shape[1] // vocabulary_size
        )  # (p, k * V)
        ranks, top = (by_image[:, group] - penalty).topk(count)
        per_group.append((ranks, top))
        tokens = top % vocabulary_size
        grows = (tokens != END) & ((tokens != END).cumsum(dim=1) <= K)
        used = used.scatter_add(1, tokens, grows.float())
    ranks, top = (torch.stack(parts, dim=1).flatten(0, 1) for parts in zip(*per_group, strict=True))
    return ranks, top


def _mask_tokens(log_probs: Tensor, history: Tensor, config: BeamSearchConfig) -> None:
    """Set tokens that may not follow `history` (r, k, length) to -inf, in place: `log_probs`
    (r, k, V) is by far the largest tensor, and a copy would cost as much as the rest of a step."""
    length = history.shape[-1]
    if length == config.max_length:
        log_probs[..., :END].fill_(NEG_INF)
        log_probs[..., END + 1 :].fill_(NEG_INF)
        return
    banned = [PAD, START] + ([] if config.allow_unk else [UNK]) + ([END] if length == 0 else [])
    for token in banned:  # one by one: a list of indices would have to be copied to the device
        log_probs[..., token].fill_(NEG_INF)
    n = config.no_repeat_ngram_size
    if n and length >= n:
        # Wherever the last n - 1 tokens occurred before, the token that followed is banned.
        starts = length - n + 1
        earlier = torch.stack([history[..., i : i + n - 1] for i in range(starts)], dim=2)
        last = history[..., starts:].unsqueeze(2)  # (r, k, 1, n - 1)
        repeats = (earlier == last).all(dim=-1)  # (r, k, starts)
        # <pad>, which is banned anyway, stands in where nothing repeats.
        followers = history[..., n - 1 :].masked_fill(~repeats, PAD)  # (r, k, starts)
        log_probs.scatter_(2, followers, NEG_INF)


def _gather_beams(captions: Tensor, beams: Tensor) -> Tensor:
    """The captions (r, n, length) of these beams (r, n), from captions (r, ·, length)."""
    index = beams.unsqueeze(-1).expand(-1, -1, captions.shape[-1])
    return captions.gather(1, index)
