"""Params of the backbone stage."""

from typing import Annotated, ClassVar

from pydantic import Field

from pipeline.config import Config


class BackboneConfig(Config):
    """Which frozen CNN, and where its weights come from."""

    group: ClassVar[str] = "backbone"
    name: Annotated[str, Field(min_length=1)]
    weights: Annotated[str, Field(min_length=1)]
    seed: Annotated[int, Field(ge=0, lt=2**63)]
