"""Backbones: image models of torchvision and timm without their heads, fused, and their
preprocessing."""

from dataclasses import replace

import pytest
import torch
import torchvision

from pipeline.backbones.backbone import build_backbone, global_avg_pool, library_of
from pipeline.backbones.torchvision_models import default_preprocessing, remove_head
from pipeline.backbones.weights import BackboneWeights
from pipeline.extraction.feature_extractor import FeatureExtractor
from pipeline.extraction.fuse import fuse
from pipeline.features.recipe import FeatureRecipe, View

CPU = torch.device("cpu")

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


# Of timm: grids in either memory layout, and tokens with none, one or several in front.
TIMM_FAMILIES = {
    "timm/cait_xxs24_224": (192, 14, 14),
    "timm/convnext_atto": (320, 7, 7),
    "timm/deit_tiny_distilled_patch16_224": (192, 14, 14),
    "timm/edgenext_xx_small": (168, 8, 8),
    "timm/efficientvit_b0": (128, 7, 7),
    "timm/eva02_tiny_patch14_224": (192, 16, 16),
    "timm/fastvit_t8": (768, 8, 8),
    "timm/ghostnet_050": (480, 7, 7),
    "timm/hgnetv2_b0": (1024, 7, 7),
    "timm/levit_128s": (384, 4, 4),
    "timm/mambaout_femto": (288, 7, 7),
    "timm/mixer_s32_224": (512, 7, 7),
    "timm/mobilenetv3_small_050": (288, 7, 7),
    "timm/pvt_v2_b0": (256, 7, 7),
    "timm/regnetx_002": (368, 7, 7),
    "timm/repvgg_a0": (1280, 7, 7),
    "timm/resnet10t": (512, 6, 6),
    "timm/swin_tiny_patch4_window7_224": (768, 7, 7),
    "timm/tf_efficientnet_lite0": (1280, 7, 7),
    "timm/vit_tiny_patch16_224": (192, 14, 14),
    "timm/xcit_nano_12_p16_224": (128, 14, 14),
}


@pytest.mark.parametrize("name", [*FAMILIES, *TIMM_FAMILIES])
def test_the_backbone_of_every_family_gives_the_same_grid_in_extraction_and_captioning(
    name: str,
) -> None:
    """Extraction runs batches with one thread each, captioning an image with all threads.

    Libraries below torch choose their kernels by batch size, threads and processor, so some models
    differ by rounding.
    """
    torch.manual_seed(0)
    backbone = build_backbone(name)
    preprocessing = library_of(name).default_preprocessing(name, "random:0")
    if name in FAMILIES:
        preprocessing = replace(preprocessing, size=224)
    weights = BackboneWeights(name, "random:0", preprocessing, backbone.state_dict())
    view = View(name, "random:0", weights.digest, preprocessing)
    recipe = FeatureRecipe("grid", "mean", "center", False, None, (view,))
    size = preprocessing.size
    images = torch.randint(0, 256, (2, size, size, 3), dtype=torch.uint8)
    grids = FeatureExtractor([weights], recipe, CPU)([images])
    assert tuple(grids.permute(0, 3, 1, 2).shape) == (2, *{**FAMILIES, **TIMM_FAMILIES}[name])
    torch.set_num_threads(2)
    alone = FeatureExtractor([weights], recipe, CPU)([images[1:]])
    torch.set_num_threads(1)
    assert (alone[0] - grids[1]).abs().max() < 1e-5 * grids.abs().max()
    inputs = images[:1].permute(0, 3, 1, 2) / 255 - torch.tensor(preprocessing.mean)[:, None, None]
    with torch.inference_mode():
        plain = backbone(inputs / torch.tensor(preprocessing.std)[:, None, None])
    error = (grids[0].permute(2, 0, 1) - plain[0]).abs().max()
    assert error < 1e-3 * plain.abs().max()


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
