"""Search and scoring: captions a second with beam 5, batched and one image at a time."""

import random
import time

import torch

from benchmarks.peer import PeerTopDown
from benchmarks.timing import Row, interleaved
from benchmarks.training import GRID, VECTOR, WORDS, made_up_references
from pipeline.captions.vocabulary import END, START
from pipeline.config.schema import TrainConfig
from pipeline.decoders.decoder import DecoderConfig
from pipeline.decoders.registry import build_decoder
from pipeline.generation.beam_search import BeamSearch, BeamSearchConfig
from pipeline.metrics.scores import bleu, cider, rouge_l

IMAGES, ALONE, BATCH = 1000, 50, 100


def rows(config: TrainConfig, device: torch.device, repeats: int) -> list[Row]:
    torch.manual_seed(0)
    config = config.model_copy(update={"decoder": "show_and_tell"})
    decoder = build_decoder(DecoderConfig.of(config.model_dump(), VECTOR, WORDS)).to(device).eval()
    features = torch.rand(IMAGES, *VECTOR, device=device)
    # Untrained, it hardly ever ends a caption by itself: all get as long as Flickr8k's are.
    search = BeamSearch(decoder, BeamSearchConfig(beam_size=5, length_penalty=0.7, max_length=11))

    def batched() -> int:
        for part in features.split(BATCH):
            search(part)
        return IMAGES

    def alone() -> int:
        for image in features[:ALONE].split(1):
            search(image)
        return ALONE

    rates = interleaved({"batched": batched, "alone": alone}, repeats)
    ratio = rates["batched"] / rates["alone"]
    return [
        Row("search, beam 5", rates["batched"], "captions/s", "one at a time", ratio, "10"),
        _beside_a_peer(config, device, repeats),
        _scoring(),
    ]


def _beside_a_peer(config: TrainConfig, device: torch.device, repeats: int) -> Row:
    """Top-down attention's search, and the same in the structure of `benchmarks.peer`."""
    config = config.model_copy(update={"decoder": "top_down_attention"})
    decoder = build_decoder(DecoderConfig.of(config.model_dump(), GRID, WORDS)).to(device).eval()
    peer = PeerTopDown(GRID[-1], WORDS, config).to(device).eval()
    grids = torch.rand(BATCH, *GRID, device=device)
    search = BeamSearch(decoder, BeamSearchConfig(beam_size=5, max_length=11))

    def ours() -> int:
        return len(search(grids))

    def theirs() -> int:
        return len(peer.search(grids, beam=5, length=12, start=START, end=END))

    rates = interleaved({"ours": ours, "peer": theirs}, repeats)
    ratio = rates["ours"] / rates["peer"]
    what = "search, beam 5, top_down_attention"
    return Row(what, rates["ours"], "captions/s", "peer", ratio, "aim 6")


def _scoring() -> Row:
    """BLEU, CIDEr and ROUGE-L of 1,000 captions against five references each."""
    references, _ = made_up_references(IMAGES)
    rng = random.Random(1)
    captions = [rng.choice(refs)[:-1] for refs in references]
    began = time.perf_counter()
    bleu(captions, references)
    cider(captions, references)
    rouge_l(captions, references)
    seconds = time.perf_counter() - began
    return Row(f"scoring {IMAGES:,} images", seconds, "s", "3 s", seconds / 3, "at most 1")
