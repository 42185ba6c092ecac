"""The frozen CNN and the images together: what extracts rows of a feature cache, on one machine."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from pipeline.backbones.weights import read_backbones
from pipeline.config.schema import ExtractConfig
from pipeline.extraction.feature_extractor import default_batch_size
from pipeline.extraction.plan import ExtractionPlan, make_recipe
from pipeline.extraction.precision import build_extractor, choose_jpeg_decoder
from pipeline.extraction.preprocess import Sample
from pipeline.extraction.row_files import RowFile
from pipeline.extraction.stream import Rows, default_num_workers, iter_features
from pipeline.images.archive import ImageArchive
from pipeline.images.unreadable import read_unreadable
from pipeline.runtime.device import resolve_device, seed_everything
from pipeline.runtime.errors import InputError


@dataclass(frozen=True)
class ExtractInputs:
    """The files that extraction reads."""

    images: Path
    unreadable: Path
    backbone: Path

    def open_archive(self) -> ImageArchive:
        """Open the images, without the unreadable ones."""
        return ImageArchive(self.images, read_unreadable(self.unreadable))


class ExtractionWorker:
    """Extracts any range of a cache's rows."""

    def __init__(
        self,
        archive: ImageArchive,
        backbone: Path,
        config: ExtractConfig,
        plan: ExtractionPlan | None = None,
        num_workers: int | None = None,
    ) -> None:
        """
        Args:
            plan: another worker's, to follow; None chooses one.
            num_workers: threads; None: the params'.

        Raises:
            InputError: the weights or images cannot be used, or the plan cannot be followed here.
        """
        self._config = config
        device = resolve_device(config.device)
        seed_everything(0, config.deterministic)
        backbones = read_backbones(backbone)
        recipe = plan.recipe if plan else make_recipe(backbones, config)
        if config.batch_size == "auto":
            batch = default_batch_size(recipe, device)
        else:
            batch = config.batch_size
        if num_workers is None and config.num_workers != "auto":
            num_workers = config.num_workers
        self._num_workers = num_workers or default_num_workers(device)
        self._archive = archive
        ids, numbers = archive.ids, range(1 + config.augmentations)
        self._samples = [Sample(image_id, number) for number in numbers for image_id in ids]
        precision = plan.precision if plan else config.precision
        jpeg_decoder = plan.recipe.jpeg_decoder if plan else config.jpeg_decoder
        self._cnn = build_extractor(backbones, recipe, device, precision, batch, archive)
        recipe = choose_jpeg_decoder(self._cnn, jpeg_decoder, batch, archive)
        self._cnn.recipe = recipe
        self.plan = ExtractionPlan(
            recipe,
            str(self._cnn.precision).removeprefix("torch."),
            batch,
            device.type,
            tuple(f"{name} {version(name)}" for name in ("pillow", "torch", "torchvision")),
            self._cnn.feature_shape,
        )
        if plan:
            self.plan.require_same(plan)

    def extract(self, begin: int, end: int, files: Sequence[RowFile] = ()) -> Iterator[Rows]:
        """Yield the rows from `begin`, a multiple of the batch size, to `end`, batch by batch.

        They are yielded with their values, whatever the `files`.

        Raises:
            InputError: an image cannot be used, or a feature is not finite.
        """
        dtype = getattr(torch, self._config.dtype)
        samples = self._samples[begin:end]
        batch = self.plan.batch_size
        done = 0
        for rows in iter_features(
            self._archive, samples, self._cnn, batch, self._num_workers, dtype
        ):
            self._check_finite(rows, samples[done : done + len(rows.checksums)])
            done += len(rows.checksums)
            yield rows

    def _check_finite(self, rows: Rows, samples: Sequence[Sample]) -> None:
        if not rows.finite.all():
            image_id = samples[int((~rows.finite).nonzero()[0][0])].image_id
            hint = "; set extract.dtype: float32" if self._config.dtype == "float16" else ""
            raise InputError(f"the features of {image_id} are not finite{hint}")
