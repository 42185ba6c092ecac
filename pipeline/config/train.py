"""Params of the train stage."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pipeline.config import Config

Width = Annotated[int, Field(ge=1, le=16384)]
Probability = Annotated[float, Field(ge=0, lt=1)]


class TrainConfig(Config):
    """The decoder and how it learns."""

    group: ClassVar[str] = "train"
    cell: Literal["lstm", "gru"]
    embed_size: Width
    hidden_size: Width
    layers: Annotated[int, Field(ge=1, le=16)]
    dropout: Probability
    label_smoothing: Probability
    epochs: Annotated[int, Field(ge=1)]
    patience: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=1)]
    learning_rate: Annotated[float, Field(gt=0, le=1)]
    warmup: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: Annotated[float, Field(ge=0, le=1)]
    clip_norm: Annotated[float, Field(gt=0)]
    select_by: Literal["cider", "bleu_4"]
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    device: Literal["auto", "cpu", "cuda"]
    precision: Literal["auto", "float32", "bfloat16"]
