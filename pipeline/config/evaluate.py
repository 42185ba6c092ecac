"""Params of the evaluate stage."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from pipeline.config import Config


class EvaluateConfig(Config):
    """How captions are searched for, and on which split they are scored."""

    group: ClassVar[str] = "evaluate"
    split: Literal["val", "test"]
    beam: Annotated[int, Field(ge=1, le=100)]
    length_penalty: Annotated[float, Field(ge=0, le=5)]
    max_length: Annotated[int, Field(ge=1, le=1000)] | Literal["auto"]
    block_ngram: Annotated[int, Field(ge=0, le=10)]
    allow_unk: bool
    groups: Annotated[int, Field(ge=1, le=100)]
    diversity: Annotated[float, Field(ge=0, le=100)]
    batch_size: Annotated[int, Field(ge=1, le=65536)] | Literal["auto"]
    device: Literal["auto", "cpu", "cuda"]
    deterministic: bool

    @model_validator(mode="after")
    def _groups_are_alike(self) -> Self:
        if self.beam % self.groups:
            raise ValueError(f"beam must be a multiple of groups ({self.groups})")
        return self
