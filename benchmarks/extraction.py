"""Extraction, end to end: images a second, beside the CNN alone and beside the usual way."""

import io
import random
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path

import torch
import torch._inductor.config as inductor
import torchvision
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.timing import Row, interleaved
from pipeline.backbones.backbone import build_backbone, global_avg_pool, library_of
from pipeline.backbones.weights import BackboneWeights
from pipeline.config.schema import ExtractConfig
from pipeline.extraction.feature_extractor import FeatureExtractor, default_batch_size
from pipeline.extraction.feature_writer import create_features
from pipeline.extraction.plan import make_recipe
from pipeline.extraction.preprocess import Sample, decode
from pipeline.extraction.stream import default_num_workers, iter_features
from pipeline.images.archive import ImageArchive

BACKBONES = (
    *("resnet50", "mobilenet_v2"),
    *("timm/tf_efficientnet_lite0", "timm/vit_small_patch16_224"),
)
SECONDS = 6  # that the CNN alone takes for a round: an archive has thousands of images

CONFIG = ExtractConfig(
    layer="pooled",
    crop_mode="squash",
    image_size=(None,),
    hflip=False,
    augmentations=0,
    pooling="mean",
    grid_size=None,
    shard_rows=None,
    dtype="float16",
    batch_size="auto",
    num_workers="auto",
    jpeg_decoder="auto",
    device="auto",
    deterministic=True,
    precision="auto",
    checkpoint_seconds=60,
)


def some_images(source: Path | None, out: Path, count: int, size: tuple[int, int]) -> None:
    """The first `count` of a zip, again from the start where it has fewer; without a zip, JPEGs of
    smooth noise, about as dear to decode as photos of that size."""
    rng = random.Random(0)
    with zipfile.ZipFile(out, "w") as archive:
        if source is not None:
            with ImageArchive(source) as given:
                for number, image_id in zip(range(count), cycle(given.ids), strict=False):
                    archive.writestr(f"{number:06d}.jpg", given.read(image_id))
            return
        for number in range(count):
            small = Image.frombytes("RGB", (64, 48), rng.randbytes(64 * 48 * 3))
            jpeg = io.BytesIO()
            small.resize(size, Image.Resampling.BICUBIC).save(jpeg, "JPEG", quality=85)
            archive.writestr(f"{number:06d}.jpg", jpeg.getvalue())


def untrained(name: str) -> BackboneWeights:
    torch.manual_seed(0)
    tensors = build_backbone(name).state_dict()
    preprocessing = library_of(name).default_preprocessing(name, "random:0")
    return BackboneWeights(name, "random:0", preprocessing, tensors)


class _Files(Dataset[Tensor]):
    def __init__(self, folder: Path, name: str) -> None:
        files = sorted(folder.iterdir())
        self._files = files[: max(1, len(files) // 4)]
        self._transform = own_transform(name)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, i: int) -> Tensor:
        return self._transform(Image.open(self._files[i]).convert("RGB"))


def own_transform(name: str) -> Callable[[Image.Image], Tensor]:
    """The transform that the model's library gives for it."""
    if not name.startswith("timm/"):
        return torchvision.models.get_model_weights(name).DEFAULT.transforms()
    import timm

    config = timm.get_pretrained_cfg(name.removeprefix("timm/"), allow_unregistered=False)
    assert config is not None
    data_config = timm.data.resolve_data_config(pretrained_cfg=config.to_dict())
    return timm.data.create_transform(**data_config)


def plain_way(folder: Path, name: str, device: torch.device) -> Callable[[], int]:
    """float32, a file an image, a DataLoader: what one writes first; a quarter of the files."""
    model = build_backbone(name).to(device)
    files = _Files(folder, name)

    @torch.no_grad()
    def work() -> int:
        for images in DataLoader(files, batch_size=32, num_workers=2):
            global_avg_pool(model(images.to(device))).cpu()
        return len(files)

    return work


def on_all_cores(
    cnn: FeatureExtractor, images: Tensor, count: int, workers: int
) -> Callable[[], int]:
    """The CNN alone on images in memory: a thread a core, each with one thread inside."""

    def work() -> int:
        if cnn.device.type != "cpu":
            for _ in range(count):
                cnn([images])
            return count * len(images)
        inside = torch.get_num_threads()
        with ThreadPoolExecutor(workers, initializer=lambda: torch.set_num_threads(1)) as pool:
            list(pool.map(lambda _: cnn([images]), range(count)))
        torch.set_num_threads(inside)
        return count * len(images)

    return work


def decoding(images: Path, workers: int) -> Callable[[], int]:
    """Decoding alone, on all cores."""

    def work() -> int:
        with ImageArchive(images) as archive, ThreadPoolExecutor(workers) as threads:
            contents = [archive.read(one) for one in archive.ids]
            list(threads.map(lambda content: decode(content, "").shape, contents))
        return len(contents)

    return work


def compiled(
    backbone: BackboneWeights, images: Tensor, precision: torch.dtype, count: int
) -> Callable[[], int] | None:
    """torch.compile with frozen weights, all of torch's threads in each pass; None without the
    C++ compiler that it needs. Its own time does not count here."""
    inductor.freezing = True
    trunk = build_backbone(backbone.name)
    trunk.load_state_dict(backbone.tensors)
    trunk = trunk.to(images.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    forward = torch.compile(trunk)
    inputs = images.float().permute(0, 3, 1, 2)  # (B, 3, S, S), channels last

    @torch.inference_mode()
    def work() -> int:
        half = precision != torch.float32
        with torch.autocast(images.device.type, precision, enabled=half):
            for _ in range(count):
                global_avg_pool(forward(inputs)).float().cpu()
        return count * len(images)

    try:
        work()
    except Exception as error:  # the compiler's own kinds
        print(f"not compiled: {str(error).splitlines()[0]}")
        return None
    return work


def rows(
    images: Path | None,
    photos: Path | None,
    device: torch.device,
    precision: torch.dtype,
    repeats: int,
) -> Iterator[Row]:
    """
    Args:
        images: a zip of images of the CNN's size; None to make some up.
        photos: the same, larger: decoding may then be what limits.
    """
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "images.zip")
        for name in BACKBONES:
            yield from _rows(name, images, path, device, precision, repeats, photos=False)
        yield from _rows("mobilenet_v2", photos, path, device, precision, repeats, photos=True)


def _rows(
    name: str,
    source: Path | None,
    images: Path,
    device: torch.device,
    precision: torch.dtype,
    repeats: int,
    photos: bool,
) -> list[Row]:
    backbone = untrained(name)
    recipe = make_recipe([backbone], CONFIG)
    batch, workers = default_batch_size(recipe, device), default_num_workers(device)
    cnn = FeatureExtractor([backbone], recipe, device, precision, batch)
    size = recipe.views[0].preprocessing.size
    ready = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8, device=device)
    shape = cnn.feature_shape
    few = on_all_cores(cnn, ready, 2 * workers, workers)
    alone = interleaved({"few": few}, repeats=1)["few"]
    passes = round(SECONDS * alone / batch) or 1
    some_images(source, images, passes * batch, (500, 375) if photos else (224, 224))
    with ImageArchive(images) as archive:
        contents = {one: archive.read(one) for one in archive.ids}
    ids = list(contents)

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "files")
        folder.mkdir()
        for one, content in contents.items():
            (folder / one).write_bytes(content)

        def ours() -> int:
            with (
                ImageArchive(images) as archive,
                create_features(Path(scratch, "f.h5"), ids, shape, "float16", recipe) as out,
            ):
                samples = [Sample(image_id) for image_id in ids]
                for made in iter_features(archive, samples, cnn, batch, workers, torch.float16):
                    out.append_checked(made.values, made.checksums)
            return len(ids)

        contenders = {
            "ours": ours,
            "bare": on_all_cores(cnn, ready, passes, workers),
            "compiled": None if photos else compiled(backbone, ready, precision, passes),
            "decoding": decoding(images, workers) if photos else None,
            "plain": None if photos else plain_way(folder, name, device),
        }
        rates = interleaved({key: work for key, work in contenders.items() if work}, repeats)
    rate, what = rates["ours"], f"extraction, {name}"
    fastest = max(rates[key] for key in ("bare", "compiled") if key in rates)
    if photos:
        limit = min(fastest, rates["decoding"])
        what += ", photos"
        return [Row(what, rate, "images/s", "CNN alone or decoding", rate / limit, "0.85")]
    return [
        Row(what, rate, "images/s", "fastest CNN alone", rate / fastest, "0.90"),
        Row(what, rate, "images/s", "the plain way", rate / rates["plain"], "3, where bfloat16"),
        *(
            Row(f"CNN alone, {key}", rates[key], "images/s", "ours", rates[key] / rate)
            for key in ("bare", "compiled")
            if key in rates
        ),
    ]
