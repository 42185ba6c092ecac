"""Params of the vocab stage."""

from typing import Annotated, ClassVar

from pydantic import Field

from pipeline.config import Config


class VocabConfig(Config):
    """Which words the decoder may say."""

    group: ClassVar[str] = "vocab"
    min_count: Annotated[int, Field(ge=1, le=1_000_000)]
