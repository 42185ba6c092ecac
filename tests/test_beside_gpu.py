"""Extraction beside a GPU, which a stand-in is here: what it computes lands late."""

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
from pipeline.extraction.stream import iter_features
from pipeline.images.archive import ImageArchive
from pipeline.stages.extract import make_recipe
from tests.conftest import Artifacts

CPU = torch.device("cpu")


class Pinned(torch.Tensor):
    """Memory that a GPU copies into behind the back of the program: it has landed once the event
    after it is waited for, and is no number before."""

    underway: ClassVar[list[Callable[[], Any]]] = []

    def copy_(self, source: Tensor, non_blocking: bool = False) -> "Pinned":
        assert non_blocking
        self.underway.append(lambda: self.data.as_subclass(Tensor).copy_(source))
        return self


class Event:
    def record(self) -> None:
        self.before = len(Pinned.underway)

    def synchronize(self) -> None:
        for land in Pinned.underway[: self.before]:
            land()


class SlowGPU:
    """A CNN on it. What is asked of it, and what came of that, is counted."""

    device = torch.device("cuda")

    def __init__(self, cnn: FeatureExtractor) -> None:
        self._cnn, self.recipe, self.asked = cnn, cnn.recipe, 0

    def __call__(self, images: list[Tensor]) -> Tensor:
        self.asked += 1
        return self._cnn(images)


def test_beside_a_gpu_a_batch_is_computed_while_the_one_before_it_is_fetched(
    tiny: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbones = read_backbones(tiny.backbone)
    cnn = FeatureExtractor(
        backbones, make_recipe(backbones, load_params(tiny.params, ExtractConfig)), CPU, batch=8
    )
    archive = ImageArchive(tiny.images)
    ids = archive.ids  # 62: the last batch has 6
    expected = list(iter_features(archive, ids, cnn, batch=8, workers=1))

    def empty(shape: tuple[int, ...], dtype: torch.dtype, pin_memory: bool) -> Tensor:
        assert pin_memory
        nothing = np.nan if dtype.is_floating_point else 0
        return torch.full(shape, nothing, dtype=dtype).as_subclass(Pinned)

    monkeypatch.setattr(Pinned, "underway", [])
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: self)
    gpu: Any = SlowGPU(cnn)
    made = iter_features(archive, ids, gpu, batch=8, workers=3)
    for number, (ours, theirs) in enumerate(zip(made, expected, strict=True)):
        # The next one is computed, and two behind it, while this one is fetched: never all of them.
        assert gpu.asked == min(number + 4, 8)
        assert ours.finite.all()
        np.testing.assert_array_equal(ours.values, theirs.values)
        np.testing.assert_array_equal(ours.checksums, theirs.checksums)
