"""From pictures to features: the one path that extraction and captioning share.

Captions go wrong without an error when a picture is prepared otherwise than those that the decoder
learned from. So preparation, CNN and pooling are here, and are told by a `FeatureRecipe` alone.
"""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.cnn.fuse import fuse
from pipeline.cnn.trunk import build_trunk, pool
from pipeline.errors import InputError
from pipeline.store.recipe import FeatureRecipe
from pipeline.store.weights import Backbone


def prepare(picture: Image.Image, recipe: FeatureRecipe) -> Tensor:
    """Resize (and crop) as the recipe says: an RGB picture -> uint8 (3, S, S)."""
    pre = recipe.preprocessing
    resample = Image.Resampling[pre.interpolation.upper()]
    if recipe.framing == "squash":
        picture = picture.resize((pre.size, pre.size), resample)
    else:
        # As torchvision's Resize and CenterCrop: the longer side's fraction is cut off.
        short = min(picture.size)
        width, height = (int(pre.resize * side / short) for side in picture.size)
        picture = picture.resize((width, height), resample)
        left, top = round((width - pre.size) / 2), round((height - pre.size) / 2)
        picture = picture.crop((left, top, left + pre.size, top + pre.size))
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


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
        self.recipe, self.device = recipe, device
        self._precision = precision
        # Pictures come as bytes, 0 to 255.
        self._mean = 255 * torch.tensor(pre.mean, device=device).view(3, 1, 1)
        self._std = 255 * torch.tensor(pre.std, device=device).view(3, 1, 1)

    @torch.inference_mode()
    def __call__(self, pictures: Tensor) -> Tensor:
        """uint8 (B, 3, S, S) -> float32 (B, D) pooled, or (B, H, W, D) grid."""
        if self.device.type == "cuda":
            pictures = pictures.pin_memory()
        pictures = pictures.to(self.device, non_blocking=True)
        inputs = ((pictures - self._mean) / self._std).contiguous(memory_format=torch.channels_last)
        with torch.autocast(
            self.device.type, self._precision, enabled=self._precision != torch.float32
        ):
            grid = self._trunk(inputs).float()  # (B, D, H, W)
        return grid.permute(0, 2, 3, 1).contiguous() if self._grid else pool(grid)
