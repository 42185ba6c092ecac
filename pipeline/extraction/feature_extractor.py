"""From preprocessed images to features: the one path that extraction and captioning share.

If features differ from those that the decoder was trained on, captions are wrong without an error.
So a `FeatureRecipe` alone determines preprocessing, CNNs and pooling.
"""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.backbones.backbone import global_avg_pool, load_backbone
from pipeline.backbones.weights import BackboneWeights
from pipeline.extraction.fuse import fuse
from pipeline.features.recipe import FeatureRecipe, View
from pipeline.runtime.cuda_graphs import CudaGraphs
from pipeline.runtime.errors import InputError


class FeatureExtractor:
    """One or several frozen backbones that turn preprocessed images into features.

    The features of several views (CNNs, sizes) are concatenated: vectors end to end; grids cell by
    cell, after average pooling to one grid size.
    """

    def __init__(
        self,
        backbones: Sequence[BackboneWeights],
        recipe: FeatureRecipe,
        device: torch.device,
        precision: torch.dtype = torch.float32,
        batch: int | None = None,
    ) -> None:
        """
        Args:
            batch: the usual batch size, by default `default_batch_size`; oneDNN lays weights out
                for it, and other sizes can take twice the time.

        Raises:
            InputError: the weights do not fit the model, or the recipe has other backbones.
        """
        self.recipe, self.device, self.precision = recipe, device, precision
        encoder = Encoder(backbones, recipe, device, precision)
        encoder.fuse(batch or default_batch_size(recipe, device))
        self._graphs = CudaGraphs(lambda *images: (encoder(*images),))

    @torch.inference_mode()
    def __call__(self, images: Sequence[Tensor]) -> Tensor:
        """Per view uint8 (B, S, S, 3) -> float32 (B, D) pooled, or (B, H, W, D) grid.

        On a GPU the next call overwrites the output.
        """
        return self._graphs(*(view.to(self.device, non_blocking=True) for view in images))[0]

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """(D,) or (H, W, D)."""
        sizes = [view.preprocessing.size for view in self.recipe.views]
        blank = [torch.zeros(1, size, size, 3, dtype=torch.uint8) for size in sizes]
        return tuple(self(blank).shape[1:])


def default_batch_size(recipe: FeatureRecipe, device: torch.device) -> int:
    """Return a batch size that keeps all cores of a GPU busy, or that suits a CPU's cache.

    Small batches also stay below the size at which glibc maps fresh memory for every allocation.
    """
    if device.type != "cpu":
        return 128
    largest = max(view.preprocessing.size for view in recipe.views)
    return min(4, max(1, round(4 * (224 / largest) ** 2)))


class Encoder(nn.Module):
    """The backbones of a recipe as one module, from preprocessed images to features."""

    def __init__(
        self,
        backbones: Sequence[BackboneWeights],
        recipe: FeatureRecipe,
        device: torch.device,
        precision: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.recipe = recipe
        self.views = nn.ModuleList(
            _ViewEncoder(view, backbones, recipe, device, precision) for view in recipe.views
        )
        self.eval()

    def fuse(self, batch: int) -> None:
        """Make it faster for batches of this size, in place."""
        for view in self.views:
            cast(_ViewEncoder, view).fuse(batch)

    def forward(self, *images: Tensor) -> Tensor:
        """Per view uint8 (B, S, S, 3) -> float32 (B, D) pooled, or (B, H, W, D) grid."""
        views = zip(self.views, images, strict=True)
        grids = [encode(view) for encode, view in views]  # (B, D, H, W) each
        if self.recipe.layer == "pooled":
            return torch.cat([global_avg_pool(grid) for grid in grids], dim=1)
        size = self.recipe.grid_size
        shape = (grids[0].shape[2], grids[0].shape[3]) if size is None else (size, size)
        grids = [
            grid if tuple(grid.shape[2:]) == shape else F.adaptive_avg_pool2d(grid, shape)
            for grid in grids
        ]
        return torch.cat(grids, dim=1).permute(0, 2, 3, 1).contiguous()


class _ViewEncoder(nn.Module):
    """One backbone for one image size."""

    def __init__(
        self,
        view: View,
        backbones: Sequence[BackboneWeights],
        recipe: FeatureRecipe,
        device: torch.device,
        precision: torch.dtype,
    ) -> None:
        super().__init__()
        pre = view.preprocessing
        class_token = recipe.pooling == "class_token"
        model = load_backbone(_find_backbone(view, backbones), pre.size, class_token)
        self._model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._size, self._hflip = pre.size, recipe.hflip
        self._device, self._precision = device, precision
        # For pixel values of 0 to 255. Repeated for a whole row, since a CPU is slow to broadcast
        # over three numbers at a time.
        self._mean, self._std = (
            255 * torch.tensor(rgb, device=device).repeat(pre.size) for rgb in (pre.mean, pre.std)
        )  # (S * 3)

    def fuse(self, batch: int) -> None:
        shape = (batch, 3, self._size, self._size)
        example = torch.zeros(shape, dtype=self._precision, device=self._device)
        self._model = fuse(self._model, example.to(memory_format=torch.channels_last))

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (B, S, S, 3) -> float32 (B, D, H, W)."""
        rows = images.flatten(2).float().sub_(self._mean).div_(self._std)  # (B, S, S * 3)
        rows = rows.to(self._precision) if self._device.type == "cuda" else rows
        inputs = rows.view(images.shape).permute(0, 3, 1, 2)  # (B, 3, S, S), channels last
        grid = self._run(inputs)
        if self._hflip:  # the mean with the mirror image's grid, unmirrored
            grid = (grid + self._run(inputs.flip(-1)).flip(-1)) / 2
        return grid

    def _run(self, inputs: Tensor) -> Tensor:
        # On a GPU weights and inputs already have the precision.
        if self._device.type == "cuda" or self._precision == torch.float32:
            return self._model(inputs).float()
        with torch.autocast(self._device.type, self._precision):
            return self._model(inputs).float()


def _find_backbone(view: View, backbones: Sequence[BackboneWeights]) -> BackboneWeights:
    for backbone in backbones:
        if (backbone.name, backbone.digest) == (view.backbone, view.weights_digest):
            return backbone
    given = ", ".join(
        f"{backbone.name} ({backbone.weights}, {backbone.digest})" for backbone in backbones
    )
    raise InputError(
        f"the backbone {given} is not the one that the features came from: {view.label}, "
        f"{view.weights_digest}"
    )
