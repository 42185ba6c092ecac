"""Backbones: torchvision's classifiers without their heads, fused, and their preprocessing."""

import pytest
import torch
import torchvision

from pipeline.backbones.backbone import build_backbone, global_avg_pool, remove_head
from pipeline.extraction.fuse import fuse
from pipeline.stages.backbone import default_preprocessing

# Models of each family, with their grid's shape (D, H, W) for 224 px.
FAMILIES = {
    "alexnet": (256, 6, 6),
    "convnext_tiny": (768, 7, 7),
    "densenet121": (1024, 7, 7),
    "efficientnet_b0": (1280, 7, 7),
    "efficientnet_v2_s": (1280, 7, 7),
    "googlenet": (1024, 7, 7),
    "inception_v3": (2048, 5, 5),
    "maxvit_t": (512, 7, 7),
    "mnasnet0_5": (1280, 7, 7),
    "mobilenet_v2": (1280, 7, 7),
    "mobilenet_v3_small": (576, 7, 7),
    "regnet_x_400mf": (400, 7, 7),
    "regnet_y_400mf": (440, 7, 7),
    "resnet18": (512, 7, 7),
    "resnet50": (2048, 7, 7),
    "resnext50_32x4d": (2048, 7, 7),
    "shufflenet_v2_x0_5": (1024, 7, 7),
    "squeezenet1_1": (512, 13, 13),
    "swin_t": (768, 7, 7),
    "swin_v2_t": (768, 7, 7),
    "vgg11": (512, 7, 7),
    "vgg16_bn": (512, 7, 7),
    "vit_b_32": (768, 7, 7),
    "wide_resnet50_2": (2048, 7, 7),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_backbone_of_every_family_outputs_its_last_grid(name: str) -> None:
    backbone = build_backbone(name)
    with torch.inference_mode():
        images = torch.randn(1, 3, 224, 224)
        grid = backbone(images)
        fused = fuse(backbone, images)(images)
    assert tuple(grid.shape) == (1, *FAMILIES[name])
    torch.testing.assert_close(fused, grid, rtol=1e-3, atol=1e-4 * float(grid.abs().max()))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "convnext_tiny"])
def test_a_fused_backbone_in_bfloat16_keeps_the_direction(name: str) -> None:
    """With oneDNN's convolutions if the processor supports them, else with autocast."""
    backbone = build_backbone(name)
    images = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        expected = backbone(images).mean(dim=(2, 3))
        fused = fuse(backbone, images.bfloat16())
        with torch.autocast("cpu", torch.bfloat16):
            features = fused(images).float().mean(dim=(2, 3))
    assert torch.cosine_similarity(features, expected).min() > 0.999


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("resnet18", "fc"),
        ("regnet_x_400mf", "fc"),
        ("shufflenet_v2_x0_5", "fc"),
        ("densenet121", "classifier"),
        ("mobilenet_v2", "classifier"),
        ("mobilenet_v3_small", "classifier"),
        ("efficientnet_b0", "classifier"),
        ("swin_t", "head"),
    ],
)
def test_head_and_pooled_vector_give_the_classifiers_logits(name: str, head: str) -> None:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval()
    images = torch.randn(1, 3, 128, 128)
    with torch.inference_mode():
        expected = model(images)
        logits = getattr(model, head)(global_avg_pool(remove_head(model, name)(images)))
    torch.testing.assert_close(logits, expected)


def test_preprocessing_is_that_of_the_weights() -> None:
    default = default_preprocessing("resnet50", "DEFAULT")
    assert (default.resize, default.size, default.interpolation) == (232, 224, "bilinear")
    assert default_preprocessing("resnet50", "IMAGENET1K_V1").resize == 256
    assert default_preprocessing("inception_v3", "DEFAULT").mean == (0.5, 0.5, 0.5)
