"""The decoders by name: the one table that the params, the docs and the tests read.

It imports no torch until a decoder is built, so that params can be checked without it.
"""

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pipeline.decoders.decoder import Decoder, DecoderConfig

FeatureKind = Literal["pooled", "grid"]  # vectors (P, D), or grids (P, height, width, D)


@dataclass(frozen=True)
class DecoderSpec:
    """Where a decoder is defined, and which params it uses."""

    module: str  # in this package
    class_name: str
    features: FeatureKind
    has_heads: bool = False  # whether it reads `num_heads`
    single_layer: bool = False  # whether `num_layers` must be 1


DECODERS = {
    "show_and_tell": DecoderSpec("recurrent", "ShowAndTell", "pooled"),
    "spatial_attention": DecoderSpec("recurrent", "SpatialAttention", "grid", has_heads=True),
    "adaptive_attention": DecoderSpec("recurrent", "AdaptiveAttention", "grid", has_heads=True),
    "soft_attention": DecoderSpec("input_feeding", "SoftAttention", "grid", single_layer=True),
    "top_down_attention": DecoderSpec(
        "input_feeding", "TopDownAttention", "grid", single_layer=True
    ),
    "transformer": DecoderSpec("transformer", "TransformerDecoder", "grid", has_heads=True),
}


def build_decoder(config: "DecoderConfig") -> "Decoder":
    """Build a decoder with fresh weights.

    Raises:
        ValueError: there is no such decoder, or its sizes do not fit each other.
    """
    if config.decoder not in DECODERS:
        raise ValueError(f"there is no decoder {config.decoder!r}")
    spec = DECODERS[config.decoder]
    if len(config.feature_shape) != (1 if spec.features == "pooled" else 3):
        raise ValueError(f"{config.decoder} does not take features {config.feature_shape}")
    module = importlib.import_module(f"pipeline.decoders.{spec.module}")
    decoder: Decoder = getattr(module, spec.class_name)(config)
    return decoder
