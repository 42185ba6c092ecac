"""The decoders by name, and which features each takes; free of torch, for the params to import."""

from typing import Literal

DecoderName = Literal[
    "show_and_tell",
    "spatial_attention",
    "adaptive_attention",
    "soft_attention",
    "top_down_attention",
    "transformer",
]


def feature_kind(decoder: DecoderName) -> Literal["pooled", "grid"]:
    """Vectors (P, D) or grids (P, height, width, D)."""
    return "pooled" if decoder == "show_and_tell" else "grid"
