"""Params of the scst stage."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pipeline.config import Config


class ScstConfig(Config):
    """How a trained decoder goes on learning from the scores of its own captions."""

    group: ClassVar[str] = "scst"
    epochs: Annotated[int, Field(ge=0, le=1_000_000)]
    patience: Annotated[int, Field(ge=1, le=1_000_000)]
    images: Annotated[int, Field(ge=1, le=65536)]
    samples: Annotated[int, Field(ge=2, le=64)]
    bleu: Annotated[float, Field(ge=0, le=100)]
    temperature: Annotated[float, Field(gt=0, le=2)]
    learning_rate: Annotated[float, Field(gt=0, le=1)]
    clip_norm: Annotated[float, Field(gt=0)]
    dropout: bool
    ema: Annotated[float, Field(ge=0, lt=1)]
    cross_entropy: Annotated[float, Field(ge=0, le=10)]
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    checkpoint_seconds: Annotated[float, Field(ge=0)]
    device: Literal["auto", "cpu", "cuda"]
    deterministic: bool
    precision: Literal["auto", "float32", "bfloat16"]
