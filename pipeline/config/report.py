"""Params of the report stage."""

from typing import Annotated, ClassVar

from pydantic import Field

from pipeline.config import Config


class ReportConfig(Config):
    """What the page shows of the images, and how its intervals are drawn."""

    group: ClassVar[str] = "report"
    images: Annotated[int, Field(ge=1, le=1_000_000)]
    thumbnail: Annotated[int, Field(ge=16, le=1024)]
    quality: Annotated[int, Field(ge=1, le=95)]
    resamples: Annotated[int, Field(ge=100, le=1_000_000)]
    seed: Annotated[int, Field(ge=0, lt=2**63)]
