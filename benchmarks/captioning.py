"""The captioner: one warm caption, and many photos beside the CNN and the search alone."""

import statistics
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.extraction import CONFIG, on_all_cores, some_images, untrained
from benchmarks.timing import Row, interleaved
from benchmarks.training import WORDS
from pipeline.backbones.weights import write_backbones
from pipeline.captioning.captioner import Captioner
from pipeline.captioning.feature_stream import SEARCH_BATCH
from pipeline.captions.vocabulary import SPECIAL, Vocabulary
from pipeline.config.schema import TrainConfig
from pipeline.decoders.captioner_file import TrainedDecoder, write_model
from pipeline.decoders.decoder import DecoderConfig
from pipeline.decoders.registry import build_decoder
from pipeline.extraction.feature_extractor import FeatureExtractor, default_batch_size
from pipeline.extraction.plan import make_recipe
from pipeline.extraction.stream import default_num_workers
from pipeline.generation.beam_search import BeamSearch, BeamSearchConfig
from pipeline.images.archive import ImageArchive

PHOTOS, SINGLE = 192, 30
# Untrained, it hardly ever ends a caption by itself: all get as long as Flickr8k's are.
SEARCH = BeamSearchConfig(beam_size=5, length_penalty=1.0, max_length=11)


def rows(config: TrainConfig, device: torch.device, repeats: int) -> list[Row]:
    """MobileNetV2 at 224 px with spatial attention, photos of 500 x 375."""
    backbone = untrained("mobilenet_v2")
    recipe = make_recipe([backbone], CONFIG.model_copy(update={"layer": "grid"}))
    batch, workers = default_batch_size(recipe, device), default_num_workers(device)
    cnn = FeatureExtractor([backbone], recipe, device, batch=batch)
    words = Vocabulary((*SPECIAL, *(f"word{i}" for i in range(WORDS - len(SPECIAL)))))
    params = {**config.model_dump(), "decoder": "spatial_attention"}
    decoder_config = DecoderConfig.of(params, cnn.feature_shape, len(words))
    decoder = build_decoder(decoder_config).to(device).eval()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_backbones(folder / "backbone", [backbone])
        model = TrainedDecoder(decoder, words, recipe, "0" * 16, SEARCH.max_length)
        write_model(folder / "model", model)
        captioner = Captioner(folder / "backbone", [folder / "model"], device, search=SEARCH)
        some_images(None, folder / "photos.zip", PHOTOS, (500, 375))
        with ImageArchive(folder / "photos.zip") as archive:
            photos = [archive.read(image_id) for image_id in archive.ids]

    size = recipe.views[0].preprocessing.size
    ready = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8, device=device)
    features = torch.rand(PHOTOS, *cnn.feature_shape, device=device)
    search = BeamSearch(decoder, SEARCH)

    def search_alone() -> int:
        for part in features.split(SEARCH_BATCH):
            search(part)
        return PHOTOS

    rates = interleaved(
        {
            "ours": lambda: len(captioner.caption(photos)),
            "cnn": on_all_cores(cnn, ready, PHOTOS // batch, workers),
            "search": search_alone,
        },
        repeats,
    )
    limit = 1 / (1 / rates["cnn"] + 1 / rates["search"])
    seconds = _seconds_alone(captioner, photos[:SINGLE])
    many, one = "captions of photos", "one warm caption"
    return [
        Row(many, rates["ours"], "images/s", "CNN, then search", rates["ours"] / limit, "0.90"),
        Row(one, 1000 * seconds, "ms", "150 ms", seconds / 0.15, "at most 1"),
    ]


def _seconds_alone(captioner: Captioner, photos: list[bytes]) -> float:
    """The median time of one photo's caption."""
    times = []
    for photo in photos:
        began = time.perf_counter()
        captioner.caption(photo)
        times.append(time.perf_counter() - began)
    return statistics.median(times[2:])
