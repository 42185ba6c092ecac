"""`showtell demo-pretrain`: pretrain the demo's CNN.

The task stands in for ImageNet: the same kind of images, but no captions. From images of one to
three shapes, the CNN predicts which of the 30 kinds are present, and whether each is in the left or
right and in the upper or lower half.
"""

import logging
import random
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from safetensors.torch import save
from torch import Tensor, nn

from pipeline.backbones.backbone import build_backbone, global_avg_pool
from pipeline.demo.shapes import KINDS, SIDE, random_shapes, render
from pipeline.runtime.device import seed_everything
from pipeline.runtime.files import atomic_write
from pipeline.runtime.progress import progress_bar

log = logging.getLogger(__name__)

BACKBONE = "shufflenet_v2_x0_5"
SIZE = 96  # the side of the CNN's input in pixels
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH = 64


def make_examples(count: int, rng: random.Random) -> tuple[Tensor, Tensor, Tensor]:
    """Return images uint8 (N, 3, SIDE, SIDE), presence (N, kinds), halves (N, kinds, 2)."""
    images = torch.empty(count, 3, SIDE, SIDE, dtype=torch.uint8)
    presence = torch.zeros(count, len(KINDS))
    halves = torch.zeros(count, len(KINDS), 2)
    for row in progress_bar(range(count), label="draw", unit="image"):
        scene = random_shapes(rng, rng.randint(1, 3))
        images[row] = torch.from_numpy(np.array(render(scene, rng))).permute(2, 0, 1)
        for shape in scene:
            kind = KINDS.index((shape.colour, shape.shape))
            presence[row, kind] = 1
            halves[row, kind] = torch.tensor([shape.x > 0.5, shape.y > 0.5]).float()
    return images, presence, halves


def normalize(images: Tensor) -> Tensor:
    """uint8 (B, 3, SIDE, SIDE) -> float (B, 3, SIZE, SIZE), as in extraction."""
    small = F.interpolate(images.float(), size=SIZE, mode="bilinear", antialias=True)
    mean, std = (255 * torch.tensor(value).view(3, 1, 1) for value in (MEAN, STD))
    return ((small - mean) / std).contiguous(memory_format=torch.channels_last)


class ShapeClassifier(nn.Module):
    """The backbone, and a linear head for the presence and the halves of each kind."""

    def __init__(self, examples: Tensor) -> None:
        super().__init__()
        backbone = build_backbone(BACKBONE).train().requires_grad_(True)
        self.backbone = backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.head = nn.Linear(self.backbone(normalize(examples)).shape[1], len(KINDS) * 3)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, SIDE, SIDE) -> logits (B, kinds, 3)."""
        vectors = global_avg_pool(self.backbone(normalize(images)))
        return self.head(vectors).view(len(images), -1, 3)


def pretrain(out: Path, images: int, epochs: int, seed: int) -> float:
    """Train the CNN and write its backbone to `out` (float16).

    Returns:
        The fraction of held-out images in which exactly the present kinds are predicted.
    """
    seed_everything(seed)
    examples, presence, halves = make_examples(images, random.Random(seed))
    model = ShapeClassifier(examples[:2])
    train_images = images - max(1, images // 20)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.02)
    steps = train_images // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=4e-3, total_steps=epochs * steps, pct_start=0.15
    )
    for epoch in range(1, epochs + 1):
        model.train()
        order = torch.randperm(train_images)[: steps * BATCH].view(steps, BATCH)
        for rows in progress_bar(order, label=f"epoch {epoch}", unit="batch"):
            logits, present = model(examples[rows]), presence[rows]
            kind_loss = F.binary_cross_entropy_with_logits(logits[..., 0], present, reduction="sum")
            half_loss = F.binary_cross_entropy_with_logits(
                logits[..., 1:], halves[rows], weight=present.unsqueeze(-1), reduction="sum"
            )
            optimizer.zero_grad()
            ((kind_loss + 0.5 * half_loss) / BATCH).backward()
            optimizer.step()
            schedule.step()
        held_out = (examples[train_images:], presence[train_images:], halves[train_images:])
        accuracy = _evaluate(model, *held_out)
        message = "epoch %d/%d: loss %.3f, kinds %.3f, halves %.3f"
        log.info(message, epoch, epochs, kind_loss.detach() / BATCH, *accuracy)
    tensors = {
        name: tensor.half().contiguous() if tensor.is_floating_point() else tensor
        for name, tensor in model.backbone.state_dict().items()
    }
    with atomic_write(out) as scratch:
        scratch.write_bytes(save(tensors))
    return accuracy[0]


@torch.inference_mode()
def _evaluate(
    model: nn.Module, images: Tensor, presence: Tensor, halves: Tensor
) -> tuple[float, float]:
    """Return the fraction of images with all kinds right, and of shapes with both halves right."""
    model.eval()
    predicted = torch.cat([model(batch) for batch in images.split(BATCH)]) > 0
    present = presence.bool()
    kinds_right = (predicted[..., 0] == present).all(dim=1).float().mean()
    halves_right = (predicted[..., 1:] == halves.bool()).all(dim=-1)[present].float().mean()
    return float(kinds_right), float(halves_right)


def main(
    out: Annotated[Path, typer.Option(help="Where to write the weights (safetensors).")] = Path(
        "pipeline/demo/shapes.safetensors"
    ),
    images: Annotated[int, typer.Option(min=100, help="Images to draw.")] = 20000,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over them.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Seed of images and training.")] = 0,
) -> None:
    """Train the demo's small CNN to recognise shapes."""
    right = pretrain(out, images, epochs, seed)
    log.info("wrote %s: all shapes right in %.1f %% of the held-out images", out, 100 * right)
