"""Decoders by name."""

from pipeline.decoders.decoder import Decoder, DecoderConfig
from pipeline.decoders.input_feeding import SoftAttention, TopDownAttention
from pipeline.decoders.recurrent import AdaptiveAttention, ShowAndTell, SpatialAttention
from pipeline.decoders.registry import DecoderName, feature_kind
from pipeline.decoders.transformer import TransformerDecoder

DECODERS: dict[DecoderName, type[Decoder]] = {
    "show_and_tell": ShowAndTell,
    "spatial_attention": SpatialAttention,
    "adaptive_attention": AdaptiveAttention,
    "soft_attention": SoftAttention,
    "top_down_attention": TopDownAttention,
    "transformer": TransformerDecoder,
}


def build_decoder(config: DecoderConfig) -> Decoder:
    """A decoder with fresh weights.

    Raises:
        ValueError: no such decoder, or its sizes do not fit each other.
    """
    if config.decoder not in DECODERS:
        raise ValueError(f"there is no decoder {config.decoder!r}")
    if len(config.feature_shape) != (1 if feature_kind(config.decoder) == "pooled" else 3):
        raise ValueError(f"{config.decoder} does not take features {config.feature_shape}")
    return DECODERS[config.decoder](config)
