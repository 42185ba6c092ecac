"""Params of the train stage."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from pipeline.config import Config
from pipeline.decoders.registry import DecoderName, feature_kind

Width = Annotated[int, Field(ge=1, le=16384)]
Probability = Annotated[float, Field(ge=0, lt=1)]


class TrainConfig(Config):
    """The decoder and how it learns."""

    group: ClassVar[str] = "train"
    decoder: DecoderName
    cell: Literal["lstm", "gru"]
    embed_size: Width
    hidden_size: Width
    layers: Annotated[int, Field(ge=1, le=16)]
    heads: Annotated[int, Field(ge=1, le=256)]
    tied: bool
    dropout: Probability
    word_dropout: Probability
    feature_noise: Annotated[float, Field(ge=0, le=10)]
    scheduled_sampling: Probability
    label_smoothing: Probability
    epochs: Annotated[int, Field(ge=1, le=1_000_000)]
    min_epoch_steps: Annotated[int, Field(ge=1, le=1_000_000)]
    patience: Annotated[int, Field(ge=1, le=1_000_000)]
    batch_size: Annotated[int, Field(ge=1, le=65536)]
    learning_rate: Annotated[float, Field(gt=0, le=1)]
    warmup: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: Annotated[float, Field(ge=0, le=1)]
    clip_norm: Annotated[float, Field(gt=0)]
    ema: Probability
    select_by: Literal["cider", "bleu_4"]
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    checkpoint_seconds: Annotated[float, Field(ge=0)]
    device: Literal["auto", "cpu", "cuda"]
    deterministic: bool
    precision: Literal["auto", "float32", "bfloat16"]

    @property
    def layer(self) -> Literal["pooled", "grid"]:
        """The features that the decoder takes."""
        return feature_kind(self.decoder)

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.tied and self.embed_size != self.hidden_size:
            raise ValueError("with tied: true, embed_size must equal hidden_size")
        headless = ("show_and_tell", "soft_attention", "top_down_attention")
        if self.decoder not in headless and self.hidden_size % self.heads:
            raise ValueError(f"hidden_size must be a multiple of heads ({self.heads})")
        if self.decoder in ("soft_attention", "top_down_attention") and self.layers > 1:
            raise ValueError(f"{self.decoder} has one layer: set layers to 1")
        return self
