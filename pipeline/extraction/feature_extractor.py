"""From prepared images to features: the one path that extraction and captioning share.

Captions go wrong without an error when features are made otherwise than those that the decoder
learned from. So `preprocess`, CNNs and pooling are told by a `FeatureRecipe` alone.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.backbones.backbone import pool, trunk_for
from pipeline.backbones.weights import BackboneWeights
from pipeline.extraction.fuse import fuse
from pipeline.features.recipe import FeatureRecipe, View
from pipeline.runtime.cuda_graphs import CudaGraphs
from pipeline.runtime.errors import InputError


class FeatureExtractor:
    """One backbone or several that turn prepared images into features, and never learn.

    Where a recipe has several views (CNNs, sizes), their features lie side by side: vectors end to
    end, and grids cell by cell, those of other sizes averaged into the same cells.
    """

    def __init__(
        self,
        backbones: Sequence[BackboneWeights],
        recipe: FeatureRecipe,
        device: torch.device,
        precision: torch.dtype = torch.float32,
        batch: int = 4,
    ) -> None:
        """
        Args:
            batch: how many images it will mostly see at once; any number works, but oneDNN
                lays weights out for this one, and others can take twice the time.

        Raises:
            InputError: the weights do not fit the model, or the recipe is of other backbones.
        """
        self.recipe, self.device, self.precision = recipe, device, precision
        self._views = [
            _ViewEncoder(_backbone_of(view, backbones), view, device, precision, batch)
            for view in recipe.views
        ]
        self._graphs = CudaGraphs(lambda *images: (self._features(*images),))

    @torch.inference_mode()
    def __call__(self, images: Sequence[Tensor]) -> Tensor:
        """For each view uint8 (B, S, S, 3) -> float32 (B, D) pooled, or (B, H, W, D) grid.

        On a GPU the next call overwrites what this one gave.
        """
        there = (part.to(self.device, non_blocking=True) for part in images)
        return self._graphs(*there)[0]

    def _features(self, *images: Tensor) -> Tensor:
        grids = [
            self._encode(view, part) for view, part in zip(self._views, images, strict=True)
        ]  # (B, D, H, W) each
        if self.recipe.layer == "pooled":
            return torch.cat([pool(grid) for grid in grids], dim=1)
        side = self.recipe.grid_size
        cells = (grids[0].shape[2], grids[0].shape[3]) if side is None else (side, side)
        grids = [
            grid if tuple(grid.shape[2:]) == cells else F.adaptive_avg_pool2d(grid, cells)
            for grid in grids
        ]
        return torch.cat(grids, dim=1).permute(0, 2, 3, 1).contiguous()

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """(D,) or (H, W, D)."""
        sizes = [view.preprocessing.size for view in self.recipe.views]
        blank = [torch.zeros(1, size, size, 3, dtype=torch.uint8) for size in sizes]
        return tuple(self(blank).shape[1:])

    def _encode(self, view: "_ViewEncoder", images: Tensor) -> Tensor:
        """uint8 (B, S, S, 3) -> (B, D, H, W)."""
        inputs = view.normalised(images)
        grid = view(inputs)
        # What stands to the left in the mirror image stands to the right in the image.
        return (grid + view(inputs.flip(-1)).flip(-1)) / 2 if self.recipe.hflip else grid


class _ViewEncoder:
    """One trunk, fused for one size of image."""

    def __init__(
        self,
        backbone: BackboneWeights,
        view: View,
        device: torch.device,
        precision: torch.dtype,
        batch: int,
    ) -> None:
        pre = view.preprocessing
        trunk = trunk_for(pre.size, backbone.name, backbone.tensors, backbone.preprocessing.size)
        trunk = trunk.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        example = torch.zeros(batch, 3, pre.size, pre.size, dtype=precision, device=device)
        self._trunk = fuse(trunk, example.to(memory_format=torch.channels_last))
        self._device, self._precision = device, precision
        # Images come as bytes, 0 to 255. A row's worth of each, since a CPU is slow to
        # broadcast over three numbers at a time.
        self._mean, self._std = (
            255 * torch.tensor(rgb, device=device).repeat(pre.size) for rgb in (pre.mean, pre.std)
        )  # (S * 3)

    def normalised(self, images: Tensor) -> Tensor:
        """uint8 (B, S, S, 3) -> (B, 3, S, S), channels last."""
        rows = images.flatten(2).float().sub_(self._mean).div_(self._std)  # (B, S, S * 3)
        rows = rows.to(self._precision) if self._device.type == "cuda" else rows
        return rows.view(images.shape).permute(0, 3, 1, 2)

    def __call__(self, inputs: Tensor) -> Tensor:
        """(B, 3, S, S) -> float32 (B, D, H, W)."""
        if self._device.type == "cuda":  # weights and inputs have the precision themselves
            return self._trunk(inputs).float()
        with torch.autocast(
            self._device.type, self._precision, enabled=self._precision != torch.float32
        ):
            return self._trunk(inputs).float()


def _backbone_of(view: View, backbones: Sequence[BackboneWeights]) -> BackboneWeights:
    for backbone in backbones:
        if (backbone.name, backbone.digest) == (view.backbone, view.weights_digest):
            return backbone
    have = ", ".join(f"{one.name} ({one.weights}, {one.digest})" for one in backbones)
    raise InputError(
        f"the backbone {have} is not the one that the features came from: {view.label}, "
        f"{view.weights_digest}"
    )
