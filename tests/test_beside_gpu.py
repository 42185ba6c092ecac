"""Extraction on a fake GPU, whose copies to the CPU arrive late."""

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.backbones.weights import read_backbones
from pipeline.config.load import load_params
from pipeline.config.schema import ExtractConfig
from pipeline.extraction.feature_extractor import FeatureExtractor
from pipeline.extraction.plan import make_recipe
from pipeline.extraction.preprocess import Sample
from pipeline.extraction.stream import iter_features
from pipeline.images.archive import ImageArchive
from tests.conftest import Artifacts

CPU = torch.device("cpu")


class Pinned(torch.Tensor):
    """Pinned memory: an asynchronous copy arrives when the event after it is synchronised."""

    copies: ClassVar[list[Callable[[], Any]]] = []

    def copy_(self, source: Tensor, non_blocking: bool = False) -> "Pinned":
        assert non_blocking
        self.copies.append(lambda: self.data.as_subclass(Tensor).copy_(source))
        return self


class Event:
    def record(self) -> None:
        self.before = len(Pinned.copies)

    def synchronize(self) -> None:
        for copy in Pinned.copies[: self.before]:
            copy()


class FakeGPU:
    """A CNN on the fake GPU; it counts its calls."""

    device = torch.device("cuda")

    def __init__(self, cnn: FeatureExtractor) -> None:
        self._cnn, self.recipe, self.calls = cnn, cnn.recipe, 0

    def __call__(self, images: list[Tensor]) -> Tensor:
        self.calls += 1
        return self._cnn(images)


def test_on_a_gpu_a_batch_is_computed_while_the_previous_one_is_copied(
    tiny: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbones = read_backbones(tiny.backbone)
    cnn = FeatureExtractor(
        backbones, make_recipe(backbones, load_params(tiny.params, ExtractConfig)), CPU, batch=8
    )
    archive = ImageArchive(tiny.images)
    ids = [Sample(image_id) for image_id in archive.ids]  # 62: the last batch has 6
    expected = list(iter_features(archive, ids, cnn, batch=8, workers=1))

    def empty(shape: tuple[int, ...], dtype: torch.dtype, pin_memory: bool) -> Tensor:
        assert pin_memory
        fill = np.nan if dtype.is_floating_point else 0
        return torch.full(shape, fill, dtype=dtype).as_subclass(Pinned)

    monkeypatch.setattr(Pinned, "copies", [])
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: self)
    gpu: Any = FakeGPU(cnn)
    batches = iter_features(archive, ids, gpu, batch=8, workers=3)
    for number, (rows, reference) in enumerate(zip(batches, expected, strict=True)):
        # While this batch is copied, the next three are computed, but never all of them.
        assert gpu.calls == min(number + 4, 8)
        assert rows.finite.all()
        np.testing.assert_array_equal(rows.values, reference.values)
        np.testing.assert_array_equal(rows.checksums, reference.checksums)
