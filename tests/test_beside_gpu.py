"""Extraction beside a GPU, which a stand-in is here: what it computes lands late."""

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.cnn.frozen import FrozenCNN
from pipeline.config import read
from pipeline.config.extract import ExtractConfig
from pipeline.extract import features_of, make_recipe
from pipeline.store.pictures import PictureArchive
from pipeline.store.weights import read_backbones
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

    def __init__(self, cnn: FrozenCNN) -> None:
        self._cnn, self.recipe, self.asked = cnn, cnn.recipe, 0

    def __call__(self, pictures: list[Tensor]) -> Tensor:
        self.asked += 1
        return self._cnn(pictures)


def test_beside_a_gpu_a_batch_is_computed_while_the_one_before_it_is_fetched(
    tiny: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbones = read_backbones(tiny.backbone)
    cnn = FrozenCNN(
        backbones, make_recipe(backbones, read(tiny.params, ExtractConfig)), CPU, batch=8
    )
    ids = PictureArchive(tiny.images).ids  # 62: the last batch has 6
    expected = torch.cat(list(features_of(tiny.images, ids, cnn, batch=8, workers=1)))

    def empty(shape: tuple[int, ...], pin_memory: bool) -> Tensor:
        assert pin_memory
        return torch.full(shape, np.nan).as_subclass(Pinned)

    monkeypatch.setattr(Pinned, "underway", [])
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch, "empty", empty)
    gpu, made = SlowGPU(cnn), []
    for number, part in enumerate(features_of(tiny.images, ids, gpu, batch=8, workers=3)):  # type: ignore[arg-type]
        made.append(part.as_subclass(Tensor).clone())
        assert gpu.asked == min(number + 2, 8)
    torch.testing.assert_close(torch.cat(made), expected, rtol=0, atol=0)
