"""Extraction on a GPU, end to end, beside the CNN alone and beside decoding alone."""

import io
import random
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from benchmarks.extraction import CONFIG, decoding, untrained
from benchmarks.timing import Row
from pipeline.backbones.backbone import build_backbone, global_avg_pool
from pipeline.extraction import nvjpeg
from pipeline.extraction.feature_extractor import FeatureExtractor, default_batch_size
from pipeline.extraction.feature_writer import create_features
from pipeline.extraction.nvjpeg import preprocess_on_gpu
from pipeline.extraction.plan import make_recipe
from pipeline.extraction.preprocess import Sample
from pipeline.extraction.stream import default_num_workers, iter_features
from pipeline.features.recipe import FeatureRecipe
from pipeline.images.archive import ImageArchive

COUNT = 12_000  # photos
SIZE = (500, 375)
MODELS = (("resnet50", None), ("vit_b_16", None), ("resnet50", 320))
PASSES = 30  # of the CNN alone


def photos(out: Path, count: int) -> None:
    """A zip of made-up photos; 500 different ones, again and again."""
    rng = random.Random(0)
    contents = []
    for _ in range(min(count, 500)):
        small = Image.frombytes("RGB", (64, 48), rng.randbytes(64 * 48 * 3))
        jpeg = io.BytesIO()
        small.resize(SIZE, Image.Resampling.BICUBIC).save(jpeg, "JPEG", quality=85)
        contents.append(jpeg.getvalue())
    with zipfile.ZipFile(out, "w") as archive:
        for number, content in zip(range(count), cycle(contents), strict=False):
            archive.writestr(f"{number:06d}.jpg", content)


def rate(work: Callable[[], int], device: torch.device) -> float:
    """Images a second, after a warm-up."""
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    done = work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return done / (time.perf_counter() - began)


def bare(name: str, images: Tensor, compiled: bool) -> Callable[[], int]:
    """The trunk as torchvision has it, in the images' precision, channels last.

    Args:
        images: (B, 3, S, S), normalised.
    """
    trunk = build_backbone(name, images.shape[-1]).to(images.device, images.dtype)
    trunk = trunk.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    forward = torch.compile(trunk, mode="max-autotune-no-cudagraphs") if compiled else trunk

    @torch.inference_mode()
    def work() -> int:
        for _ in range(PASSES):
            global_avg_pool(forward(images))
        return PASSES * len(images)

    return work


class Extraction:
    """One CNN, and what it is fed."""

    def __init__(self, name: str, size: int | None, device: torch.device) -> None:
        backbone = untrained(name)
        config = CONFIG.model_copy(update={"image_size": (size,)})
        recipe = make_recipe([backbone], config)
        self.name, self.device, self.side = name, device, recipe.views[0].preprocessing.size
        self.batch, self.workers = default_batch_size(recipe, device), default_num_workers(device)
        precision = torch.float16 if device.type == "cuda" else torch.float32
        self.cnn = FeatureExtractor([backbone], recipe, device, precision, self.batch)

    @property
    def what(self) -> str:
        return f"{self.name} at {self.side} px"

    def alone(self, compiled: bool) -> dict[str, float]:
        """Rates of the CNN alone, on images that lie on the device."""
        shape = (self.batch, self.side, self.side, 3)
        ready = torch.randint(0, 256, shape, dtype=torch.uint8, device=self.device)
        normal = torch.randn(shape, device=self.device).to(self.cnn.precision).permute(0, 3, 1, 2)

        def ours() -> int:
            for _ in range(PASSES):
                self.cnn([ready])
            return PASSES * self.batch

        rates = {"bare": rate(bare(self.name, normal, compiled=False), self.device)}
        rates["ours"] = rate(ours, self.device)
        if compiled:
            rates["compiled"] = rate(bare(self.name, normal, compiled=True), self.device)
        return rates

    def whole(self, archive: Path, decoder: str, out: Path) -> float:
        """The rate from the zip to the file of features."""
        self.cnn.recipe = replace(self.cnn.recipe, jpeg_decoder=decoder)

        def work() -> int:
            with ImageArchive(archive) as opened:
                made_of = (opened.ids, self.cnn.feature_shape, "float16", self.cnn.recipe)
                with create_features(out, *made_of) as rows:
                    running = (self.cnn, self.batch, self.workers, torch.float16)
                    samples = [Sample(image_id) for image_id in opened.ids]
                    for made in iter_features(opened, samples, *running):
                        rows.append_checked(made.values, made.checksums)
                return len(opened.ids)

        return rate(work, self.device)


def rows(device: torch.device, scratch: Path, compiled: bool) -> Iterator[Row]:
    """
    Args:
        compiled: measure torch.compile too, which takes most of a minute.
    """
    archive, few = scratch / "photos.zip", scratch / "few.zip"
    photos(archive, COUNT)
    photos(few, max(1, COUNT // 4))
    pillow = rate(decoding(few, default_num_workers(device)), device)
    yield Row("decoding, Pillow on all cores", pillow, "images/s", "itself", 1.0)
    decoders = ["pillow", *(["nvjpeg"] if nvjpeg.is_available(device) else [])]
    for name, size in MODELS:
        one = Extraction(name, size, device)
        rates = one.alone(compiled and (name, size) == MODELS[0] and device.type == "cuda")
        for kind, value in rates.items():
            what = f"CNN alone, {one.what}, {kind}"
            yield Row(what, value, "images/s", "bare", value / rates["bare"])
        fastest = max(rates.values())
        for decoder in decoders:
            if decoder == "nvjpeg":
                decoded = _decoded_on_gpu(few, one.cnn.recipe, device, one.batch)
                what = f"decoding and resizing to {one.side} px, nvJPEG"
                yield Row(what, decoded, "images/s", "Pillow on all cores", decoded / pillow)
                limit = min(fastest, decoded)
            else:
                limit = min(fastest, pillow)
            took = one.whole(few if decoder == "pillow" else archive, decoder, scratch / "f.h5")
            what = f"extraction, {one.what}, {decoder}"
            yield Row(what, took, "images/s", "decoding or fastest CNN", took / limit, "0.90")
            yield Row(what, took, "images/s", "bare CNN", took / rates["bare"], "0.90")


def _decoded_on_gpu(
    archive: Path, recipe: FeatureRecipe, device: torch.device, batch: int
) -> float:
    with ImageArchive(archive) as opened:
        contents = [opened.read(one) for one in opened.ids]
    parts = [contents[begin : begin + batch] for begin in range(0, len(contents), batch)]

    def work() -> int:
        with ThreadPoolExecutor(4) as threads:
            list(
                threads.map(
                    lambda part: preprocess_on_gpu(part, ["photo"] * len(part), recipe, device),
                    parts,
                )
            )
        return len(contents)

    return rate(work, device)
