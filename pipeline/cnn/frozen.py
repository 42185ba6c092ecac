"""From prepared pictures to features: the one path that extraction and captioning share.

Captions go wrong without an error when features are made otherwise than those that the decoder
learned from. So `prepare`, CNN and pooling are told by a `FeatureRecipe` alone.
"""

import torch
from torch import Tensor

from pipeline.cnn.fuse import fuse
from pipeline.cnn.trunk import build_trunk, pool
from pipeline.errors import InputError
from pipeline.store.recipe import FeatureRecipe
from pipeline.store.weights import Backbone


class FrozenCNN:
    """A backbone that turns prepared pictures into features, and never learns."""

    def __init__(
        self,
        backbone: Backbone,
        recipe: FeatureRecipe,
        device: torch.device,
        precision: torch.dtype = torch.float32,
        batch: int = 4,
    ) -> None:
        """
        Args:
            batch: how many pictures it will mostly see at once; any number works, but oneDNN
                lays weights out for this one, and others can take twice the time.

        Raises:
            InputError: the weights do not fit the model, or the recipe is of another backbone.
        """
        if backbone.digest != recipe.weights_digest or backbone.name != recipe.backbone:
            raise InputError(
                f"the backbone {backbone.name} ({backbone.weights}, {backbone.digest}) is not the "
                f"one that the features came from: {recipe.label}, {recipe.weights_digest}"
            )
        pre = recipe.preprocessing
        trunk = build_trunk(backbone.name, input_size=pre.size)
        try:
            trunk.load_state_dict(backbone.tensors)
        except RuntimeError as error:
            raise InputError(
                f"the weights do not fit {backbone.name} at {pre.size} px ({error})"
            ) from None
        trunk = trunk.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        example = torch.zeros(batch, 3, pre.size, pre.size, dtype=precision, device=device)
        self._trunk = fuse(trunk, example.to(memory_format=torch.channels_last))
        self._grid = recipe.layer == "grid"
        self.recipe, self.device, self.precision = recipe, device, precision
        # Pictures come as bytes, 0 to 255. A row's worth of each, since a CPU is slow to
        # broadcast over three numbers at a time.
        self._mean, self._std = (
            255 * torch.tensor(rgb, device=device).repeat(pre.size) for rgb in (pre.mean, pre.std)
        )  # (S * 3)

    @torch.inference_mode()
    def __call__(self, pictures: Tensor) -> Tensor:
        """uint8 (B, S, S, 3) -> float32 (B, D) pooled, or (B, H, W, D) grid."""
        if self.device.type == "cuda" and pictures.device.type == "cpu":
            pictures = pictures.pin_memory()
        pictures = pictures.to(self.device, non_blocking=True)
        rows = pictures.flatten(2).float().sub_(self._mean).div_(self._std)  # (B, S, S * 3)
        inputs = rows.view(pictures.shape).permute(0, 3, 1, 2)  # (B, 3, S, S), channels last
        with torch.autocast(
            self.device.type, self.precision, enabled=self.precision != torch.float32
        ):
            grid = self._trunk(inputs).float()  # (B, D, H, W)
        return grid.permute(0, 2, 3, 1).contiguous() if self._grid else pool(grid)
