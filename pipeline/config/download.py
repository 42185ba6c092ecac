"""Params of the download stage."""

from typing import Annotated, ClassVar

from pydantic import Field

from pipeline.config import Config

Md5 = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class DownloadConfig(Config):
    """Where the two archives come from, and how hard to try."""

    group: ClassVar[str] = "download"
    images: Annotated[str, Field(min_length=1)]
    images_md5: Md5 | None
    text: Annotated[str, Field(min_length=1)] | None
    text_md5: Md5 | None
    retries: Annotated[int, Field(ge=0, le=100)]
    timeout: Annotated[float, Field(gt=0, le=3600)]
