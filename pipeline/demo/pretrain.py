"""`showtell demo-pretrain`: the demo's CNN learns to see before anyone learns to caption.

As ImageNet is to Flickr8k, so is this task to the demo's: another task on the same world, with no
words. The CNN is shown one to three shapes and says which of the 30 kinds are there and, of those,
in which half of the image from left to right and from top to bottom.
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

from pipeline.backbones.backbone import build_trunk, pool
from pipeline.demo.shapes import KINDS, SIDE, draw, random_things
from pipeline.runtime.device import seed_everything
from pipeline.runtime.files import atomic_write
from pipeline.runtime.progress import progress_bar

log = logging.getLogger(__name__)

BACKBONE = "shufflenet_v2_x0_5"
SIZE = 96  # pixels a side that the CNN sees
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH = 64


def draw_examples(count: int, rng: random.Random) -> tuple[Tensor, Tensor, Tensor]:
    """Images uint8 (N, 3, SIDE, SIDE), presence (N, kinds), halves (N, kinds, 2) as 0 or 1."""
    images = torch.empty(count, 3, SIDE, SIDE, dtype=torch.uint8)
    presence = torch.zeros(count, len(KINDS))
    halves = torch.zeros(count, len(KINDS), 2)
    for row in progress_bar(range(count), label="draw", unit="image"):
        things = random_things(rng, rng.randint(1, 3))
        images[row] = torch.from_numpy(np.array(draw(things, rng))).permute(2, 0, 1)
        for thing in things:
            kind = KINDS.index((thing.colour, thing.shape))
            presence[row, kind] = 1
            halves[row, kind] = torch.tensor([thing.x > 0.5, thing.y > 0.5]).float()
    return images, presence, halves


def normalised(images: Tensor) -> Tensor:
    """uint8 (B, 3, SIDE, SIDE) -> float (B, 3, SIZE, SIZE), as extraction prepares them."""
    small = F.interpolate(images.float(), size=SIZE, mode="bilinear", antialias=True)
    mean, std = (255 * torch.tensor(value).view(3, 1, 1) for value in (MEAN, STD))
    return ((small - mean) / std).contiguous(memory_format=torch.channels_last)


def pretrain(out: Path, images: int, epochs: int, seed: int) -> float:
    """Train the CNN and write its trunk to `out` (float16); the share of kinds named right.

    Right means that, in an image held out, all kinds that are there are named and none other.
    """
    seed_everything(seed)
    shown, presence, halves = draw_examples(images, random.Random(seed))
    trunk = build_trunk(BACKBONE).train().requires_grad_(True)
    trunk = trunk.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    features = pool(trunk(normalised(shown[:2]))).shape[1]
    head = nn.Linear(features, len(KINDS) * 3)
    held_out = max(1, images // 20)
    train_rows = images - held_out
    weights = [*trunk.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=4e-3, weight_decay=0.02)
    steps = train_rows // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=4e-3, total_steps=epochs * steps, pct_start=0.15
    )
    for epoch in range(1, epochs + 1):
        trunk.train()
        order = torch.randperm(train_rows)[: steps * BATCH].view(steps, BATCH)
        for rows in progress_bar(order, label=f"epoch {epoch}", unit="batch"):
            answer = head(pool(trunk(normalised(shown[rows])))).view(BATCH, -1, 3)
            there = presence[rows]
            loss = F.binary_cross_entropy_with_logits(answer[..., 0], there, reduction="sum")
            where = F.binary_cross_entropy_with_logits(
                answer[..., 1:], halves[rows], weight=there.unsqueeze(-1), reduction="sum"
            )
            optimizer.zero_grad()
            ((loss + 0.5 * where) / BATCH).backward()
            optimizer.step()
            schedule.step()
        right, placed = _test(trunk, head, shown, presence, halves, train_rows)
        log.info(
            "epoch %d/%d: loss %.3f, named %.3f, placed %.3f",
            epoch,
            epochs,
            loss.detach() / BATCH,
            right,
            placed,
        )
    tensors = {
        name: tensor.half().contiguous() if tensor.is_floating_point() else tensor
        for name, tensor in trunk.state_dict().items()
    }
    with atomic_write(out) as scratch:
        scratch.write_bytes(save(tensors))
    return right


@torch.inference_mode()
def _test(
    trunk: nn.Module, head: nn.Module, shown: Tensor, presence: Tensor, halves: Tensor, begin: int
) -> tuple[float, float]:
    """Share of held-out images named right, and of things placed in the right halves."""
    trunk.eval()
    answer = torch.cat(
        [head(pool(trunk(normalised(part)))) for part in shown[begin:].split(BATCH)]
    ).view(len(shown) - begin, -1, 3)
    there = presence[begin:].bool()
    named = ((answer[..., 0] > 0) == there).all(dim=1).float().mean()
    placed = ((answer[..., 1:] > 0) == halves[begin:].bool()).all(dim=-1)[there].float().mean()
    return float(named), float(placed)


def main(
    out: Annotated[Path, typer.Option(help="Where to write the weights (safetensors).")] = Path(
        "pipeline/demo/shapes.safetensors"
    ),
    images: Annotated[int, typer.Option(min=100, help="Images to draw.")] = 20000,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over them.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Of the images and the training.")] = 0,
) -> None:
    """Train the demo's small CNN to name shapes."""
    right = pretrain(out, images, epochs, seed)
    log.info("wrote %s: %.1f %% of held-out images named right", out, 100 * right)
