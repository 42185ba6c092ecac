"""Params of the extract stage."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pipeline.config import Config, OneOrMore


class ExtractConfig(Config):
    """What the frozen CNN is shown, and what is kept of its answer."""

    group: ClassVar[str] = "extract"
    layer: Literal["pooled", "grid"]
    framing: Literal["crop", "squash"]
    image_size: OneOrMore[Annotated[int, Field(ge=32, le=4096)] | None]
    mirrored: bool
    cells: Annotated[int, Field(ge=1, le=256)] | None
    dtype: Literal["float16", "float32"]
    batch_size: Annotated[int, Field(ge=1, le=65536)] | Literal["auto"]
    workers: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"]
    device: Literal["auto", "cpu", "cuda"]
    deterministic: bool
    jpeg_decoder: Literal["auto", "pillow", "nvjpeg"]
    precision: Literal["auto", "float32", "float16", "bfloat16"]
    checkpoint_seconds: Annotated[float, Field(ge=0)]
