"""Extraction on a GPU, end to end, beside the CNN alone and beside decoding alone."""

import io
import random
import statistics
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
from pipeline.cnn import nvjpeg
from pipeline.cnn.frozen import FrozenCNN
from pipeline.cnn.nvjpeg import prepare_on_gpu
from pipeline.cnn.stream import _loaded, features_of
from pipeline.cnn.trunk import build_trunk, pool
from pipeline.extract import auto_batch, auto_workers, make_recipe
from pipeline.store.pictures import PictureArchive
from pipeline.store.rows import create_features

COUNT = 12_000
COMPILE = True  # takes most of a minute
SIZE = (500, 375)
MODELS = (("resnet50", None), ("vit_b_16", None), ("resnet50", 320))


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


def rate(work: Callable[[], int], device: torch.device, repeats: int = 1) -> float:
    """Pictures a second, after a warm-up."""
    work()
    rates = []
    for _ in range(repeats):
        if device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        done = work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        rates.append(done / (time.perf_counter() - began))
    return statistics.median(rates)


def bare(name: str, pictures: Tensor, precision: torch.dtype, compiled: bool) -> Callable[[], int]:
    """The trunk as torchvision has it, in half precision, channels last, on normalised pictures."""
    trunk = build_trunk(name, input_size=pictures.shape[-1])
    trunk = trunk.to(pictures.device, precision, memory_format=torch.channels_last)  # type: ignore[call-overload]
    forward = torch.compile(trunk, mode="max-autotune-no-cudagraphs") if compiled else trunk

    @torch.inference_mode()
    def work() -> int:
        for _ in range(30):
            pool(forward(pictures))
        return 30 * len(pictures)

    return work


def rows(device: torch.device, scratch: Path) -> Iterator[Row]:
    on_gpu = device.type == "cuda"
    precision = torch.float16 if on_gpu else torch.float32
    workers = auto_workers(device)
    archive = scratch / "photos.zip"
    photos(archive, COUNT)
    few = scratch / "few.zip"
    photos(few, max(1, COUNT // 4))
    threads = rate(decoding(few, workers), device)
    has = nvjpeg.works_on(device)
    if not has:
        print("no nvJPEG here", flush=True)
    cpu = threads
    for name, size in MODELS:
        backbone = untrained(name)
        recipe = make_recipe([backbone], CONFIG.model_copy(update={"image_size": (size,)}))
        side = recipe.views[0].preprocessing.size
        batch = auto_batch(recipe, device)
        cnn = FrozenCNN([backbone], recipe, device, precision, batch)
        ready = torch.randint(0, 256, (batch, side, side, 3), dtype=torch.uint8, device=device)
        normal = torch.randn(batch, 3, side, side, device=device).to(precision)
        normal = normal.contiguous(memory_format=torch.channels_last)
        what = f"{name} at {side} px"

        def alone(cnn: FrozenCNN = cnn, ready: Tensor = ready) -> int:
            for _ in range(30):
                cnn([ready])
            return 30 * len(ready)

        rates = {"bare": rate(bare(name, normal, precision, compiled=False), device)}
        rates["ours alone"] = rate(alone, device)
        if COMPILE and on_gpu and (name, size) == MODELS[0]:
            began = time.monotonic()
            try:
                rates["compiled"] = rate(bare(name, normal, precision, compiled=True), device)
            except Exception as error:
                print(f"not compiled: {str(error)[:300]}", flush=True)
            print(f"(compiled in {time.monotonic() - began:.0f} s)", flush=True)
        for kind, value in rates.items():
            yield Row(
                f"CNN alone, {what}, {kind}", value, "pictures/s", "bare", value / rates["bare"]
            )
        fastest = max(rates.values())
        if has and (name, size) == MODELS[0]:
            yield _decoded_on_gpu(few, recipe, device, batch, cpu)
        first = (name, size) == MODELS[0]
        if first and on_gpu:
            processes = _loading(archive, cnn, batch, workers, device)
            what_by = "Pillow on all cores, processes, resized"
            yield Row(
                f"decoding: {what_by}", processes, "pictures/s", "threads", processes / threads
            )
            cpu = max(threads, processes)
        if has and first:
            cnn.recipe = replace(recipe, jpeg_decoder="nvjpeg")
            made = _loading(archive, cnn, batch, workers, device)
            yield Row(
                "loading for it by nvJPEG, from the zip", made, "pictures/s", "Pillow", made / cpu
            )
        for decoder in [*(["pillow"] if first or not has else []), *(["nvjpeg"] if has else [])]:
            cnn.recipe = replace(recipe, jpeg_decoder=decoder)
            took = _extraction(archive, cnn, batch, workers, scratch, device)
            limit = min(fastest, cpu)
            yield Row(
                f"extraction, {what}, {decoder}",
                took,
                "pictures/s",
                "the slower of the CNN alone and decoding",
                took / limit,
                "0.90",
            )
            yield Row(
                f"extraction, {what}, {decoder}",
                took,
                "pictures/s",
                "the fastest CNN alone",
                took / fastest,
                "0.90",
            )


def _decoded_on_gpu(archive: Path, recipe, device, batch, cpu) -> Row:  # type: ignore[no-untyped-def]
    with PictureArchive(archive) as opened:
        contents = [opened.content(one) for one in opened.ids]
    names = ["photo"] * len(contents)

    def work() -> int:
        with ThreadPoolExecutor(4) as threads:
            begins = range(0, len(contents), batch)
            list(
                threads.map(
                    lambda b: prepare_on_gpu(
                        contents[b : b + batch], names[b : b + batch], recipe, device
                    ),
                    begins,
                )
            )
        return len(contents)

    made = rate(work, device)
    return Row(
        "decoding and resizing by nvJPEG", made, "pictures/s", "Pillow on all cores", made / cpu
    )


def _loading(
    archive: Path, cnn: FrozenCNN, batch: int, workers: int, device: torch.device
) -> float:
    """Pictures a second once the first batch is there: processes take seconds to start."""
    with PictureArchive(archive) as opened:
        ids = opened.ids
        parts = [ids[begin : begin + batch] for begin in range(0, len(ids), batch)]
        loaded = _loaded(opened, parts, cnn, workers)
        next(loaded)
        began, done = time.perf_counter(), sum(len(views[0]) for views in loaded)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return done / (time.perf_counter() - began)


def _extraction(
    archive: Path, cnn: FrozenCNN, batch: int, workers: int, scratch: Path, device: torch.device
) -> float:
    with PictureArchive(archive) as opened:
        ids = opened.ids

    def work() -> int:
        out = create_features(scratch / "f.h5", ids, cnn.feature_shape, "float16", cnn.recipe)
        with PictureArchive(archive) as opened, out as rows:
            for made in features_of(opened, ids, cnn, batch, workers, torch.float16):
                rows.append(made.values, made.checksums)
        return len(ids)

    return rate(work, device)
