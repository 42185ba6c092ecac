"""Beam search, batched over images and beams, for any decoder.

A caption of n words has the log-probability of its words and of the <end> after them. Its score is
that sum divided by (n + 1) ** length_penalty: 0 leaves the sum, 1 makes it a mean per word
(Wu et al. 2016 use the same idea). Captions have one word at the least and `max_length` at the
most, and every one is ended by the model, none is cut off.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.captions.vocabulary import END, PAD, START, UNK
from pipeline.decoders.decoder import StepDecoder
from pipeline.runtime.cuda_graphs import CudaGraphs

NEVER = float("-inf")


@dataclass(frozen=True)
class BeamSearchConfig:
    """How captions are searched for; the fields are params of the evaluate stage."""

    beam_size: int = 1
    length_penalty: float = 0.0
    max_length: int = 20
    no_repeat_ngram_size: int = 0  # no n-gram of this size twice in a caption; 0 blocks nothing
    allow_unk: bool = False
    beam_groups: int = 1  # of beams, `beam` in all: Vijayakumar et al., "Diverse Beam Search", 2016
    diversity_penalty: float = (
        0.5  # nats that a word costs for each beam of an earlier group that says it
    )


@dataclass(frozen=True)
class Hypothesis:
    """A caption as word ids, without <start> and <end>, and its score."""

    words: list[int]
    score: float


class BeamSearch:
    """A decoder's search, to be called many times: on a GPU it is a CUDA graph for each number of
    images, made when that number comes for the second time."""

    def __init__(self, decoder: StepDecoder, search: BeamSearchConfig) -> None:
        self._search = search
        self._graphs = CudaGraphs(lambda features: search_tokens(decoder, features, search))

    def __call__(self, features: Tensor) -> list[list[Hypothesis]]:
        """The best caption of each group of beams, for each of B images."""
        words, scores = self._graphs(features)
        return hypotheses(words, scores, self._search)


def beam_search(
    decoder: StepDecoder, features: Tensor, search: BeamSearchConfig
) -> list[Hypothesis]:
    """The best caption of each of B images; arguments as of `diverse_beam_search`."""
    return best_of_groups(diverse_beam_search(decoder, features, search))


def best_of_groups(found: list[list[Hypothesis]]) -> list[Hypothesis]:
    return [max(groups, key=lambda one: one.score) for groups in found]


def diverse_beam_search(
    decoder: StepDecoder, features: Tensor, search: BeamSearchConfig
) -> list[list[Hypothesis]]:
    """The best caption of each group of beams, for each of B images.

    Args:
        decoder: anything with `start` and `step`.
        features: what the decoder's `start` takes, B in the first dimension.
    """
    words, scores = search_tokens(decoder, features, search)
    return hypotheses(words, scores, search)


def hypotheses(words: Tensor, scores: Tensor, search: BeamSearchConfig) -> list[list[Hypothesis]]:
    """What `search_tokens` gave, as lists."""
    found = [
        Hypothesis([word for word in caption if word != PAD], score)
        for caption, score in zip(words.tolist(), scores.tolist(), strict=True)
    ]
    return [
        found[begin : begin + search.beam_groups]
        for begin in range(0, len(found), search.beam_groups)
    ]


@torch.inference_mode()
def search_tokens(
    decoder: StepDecoder, features: Tensor, search: BeamSearchConfig, leaving: bool | None = None
) -> tuple[Tensor, Tensor]:
    """The same as tensors: words (B * groups, max_length), <pad> after each caption, and scores.

    Finished captions are set aside and never grow again. An image is done once nothing that is
    still growing can beat the best finished caption of its group: log-probabilities only fall, so
    the bound is the sum so far over the largest divisor.

    Args:
        leaving: whether an image that is done leaves the batch; None: on a CPU. A GPU would have
            to be waited for to say which: there it stays, what goes on growing is worth nothing,
            and the search can be one CUDA graph.
    """
    B, G = len(features), search.beam_groups
    K = search.beam_size // G
    device = features.device
    leaving = device.type == "cpu" if leaving is None else leaving
    state = decoder.start(features)
    if G > 1:
        state = state.rows(torch.arange(B, device=device).repeat_interleave(G))
    # Rows are groups of beams, row i of image i // G; r = b * G of them, b images still here.
    words = torch.full((B * G,), START, device=device)
    # All beams of a group begin alike, so there is one, k = 1; from the first word on k = K,
    # unless there are too few words.
    history = words.new_zeros((B * G, 1, 0))  # words of the growing captions, (r, k, length)
    scores = torch.zeros((B * G, 1), device=device)
    done_scores = torch.full((B * G, K), NEVER, device=device)
    done_words = words.new_zeros((B * G, K, search.max_length))  # <pad> after the last word
    rows = torch.arange(B * G, device=device)  # which rows are still in the batch
    found_words, found_scores = done_words[:, 0].clone(), done_scores[:, 0].clone()

    for length in range(search.max_length + 1):
        logits, state = decoder.step(words, state)  # (r * k, V)
        k, V = scores.shape[1], logits.shape[-1]
        log_probs = torch.log_softmax(logits.float(), dim=-1).view(-1, k, V)
        _mask_tokens(log_probs, history, search)
        candidates = log_probs.add_(scores.unsqueeze(-1)).flatten(1)  # (r, k * V)
        ranks, top = _best(candidates, V, search)  # (r, 2 K)
        top_scores = candidates.gather(1, top) if G > 1 else ranks
        parents, chosen = top // V, top % V
        ends = chosen == END

        # Ended captions count only from the beam itself: the best K candidates.
        ending = ends.clone()
        ending[:, K:] = False
        normal = (length + 1) ** search.length_penalty
        new_scores = (top_scores / normal).masked_fill(~ending, NEVER)
        padded = torch.nn.functional.pad(history, (0, search.max_length - length), value=PAD)
        new_words = padded.gather(1, _expand_index(parents, padded))
        done_scores, kept = torch.cat([new_scores, done_scores], dim=1).topk(K)
        done_words = torch.cat([new_words, done_words], dim=1)
        done_words = done_words.gather(1, _expand_index(kept, done_words))

        _, growing = ranks.masked_fill(ends, NEVER).topk(min(K, top.shape[1]))  # (r, K)
        scores = top_scores.masked_fill(ends, NEVER).gather(1, growing)
        parents, chosen = parents.gather(1, growing), chosen.gather(1, growing)
        bound = scores.amax(dim=1) / (search.max_length + 1) ** search.length_penalty
        finished = (bound <= done_scores[:, 0]) | (length == search.max_length)
        # A decoder remembers images, of which each has as many rows: they leave together.
        finished = finished.view(-1, G).all(dim=1).repeat_interleave(G)
        # Move every tensor to the surviving images and, within them, the surviving beams.
        left = torch.arange(len(rows), device=device)
        if leaving:
            over = finished.nonzero().flatten()
            found_words[rows[over]], found_scores[rows[over]] = (
                done_words[over, 0],
                done_scores[over, 0],
            )
            left = (~finished).nonzero().flatten()
        else:
            found_words, found_scores = done_words[:, 0], done_scores[:, 0]
            scores = scores.masked_fill(finished.unsqueeze(1), NEVER)
        if len(left) == 0 or length == search.max_length:
            break
        beams = (left.unsqueeze(1) * k + parents[left]).flatten()
        state = state.rows(beams, images=left[::G] // G if len(left) < len(rows) else None)
        history = history[left].gather(1, _expand_index(parents[left], history))
        history = torch.cat([history, chosen[left].unsqueeze(-1)], dim=-1)
        scores, words, rows = scores[left], chosen[left].flatten(), rows[left]
        done_scores, done_words = done_scores[left], done_words[left]
    return found_words, found_scores


def _best(candidates: Tensor, words: int, search: BeamSearchConfig) -> tuple[Tensor, Tensor]:
    """Ranks and places (r, 2 K) of the best candidates (r, k * V), the best first.

    2 K, for even if K of them end, K are left to grow. The rank is the score, less what a group
    pays for the words with which the earlier groups of its image go on at this step.
    """
    G = search.beam_groups
    K = search.beam_size // G
    count = min(2 * K, candidates.shape[1])
    if G == 1:
        return candidates.topk(count)
    by_image = candidates.unflatten(0, (-1, G))  # (b, G, k * V)
    said = candidates.new_zeros(len(by_image), words)  # by how many beams of the earlier groups
    found = []
    for group in range(G):
        price = (search.diversity_penalty * said).repeat(
            1, candidates.shape[1] // words
        )  # (b, k * V)
        ranks, top = (by_image[:, group] - price).topk(count)
        found.append((ranks, top))
        chosen = top % words
        goes_on = (chosen != END) & ((chosen != END).cumsum(dim=1) <= K)
        said = said.scatter_add(1, chosen, goes_on.float())
    ranks, top = (torch.stack(parts, dim=1).flatten(0, 1) for parts in zip(*found, strict=True))
    return ranks, top


def _mask_tokens(log_probs: Tensor, history: Tensor, search: BeamSearchConfig) -> None:
    """Set what may not follow `history` (r, k, length) to never, in `log_probs` (r, k, V) itself:
    it is by far the largest tensor here, and a copy would cost as much as the rest of a step."""
    length = history.shape[-1]
    if length == search.max_length:
        log_probs[..., :END].fill_(NEVER)
        log_probs[..., END + 1 :].fill_(NEVER)
        return
    banned = [PAD, START] + ([] if search.allow_unk else [UNK]) + ([END] if length == 0 else [])
    for token in banned:  # not all at once: their numbers would have to travel to the device
        log_probs[..., token].fill_(NEVER)
    n = search.no_repeat_ngram_size
    if n and length >= n:
        # Wherever the last n - 1 words stood before, the word that followed may not follow again.
        starts = length - n + 1
        earlier = torch.stack([history[..., i : i + n - 1] for i in range(starts)], dim=2)
        last = history[..., starts:].unsqueeze(2)  # (r, k, 1, n - 1)
        repeats = (earlier == last).all(dim=-1)  # (r, k, starts)
        followers = history[..., n - 1 :].masked_fill(~repeats, PAD)  # (r, k, starts); PAD is never
        log_probs.scatter_(2, followers, NEVER)


def _expand_index(index: Tensor, like: Tensor) -> Tensor:
    """An index (r, n) over beams, for gathering rows of `like` (r, ·, words)."""
    return index.unsqueeze(-1).expand(-1, -1, like.shape[-1])
