"""Params of the download stage."""

import re
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field

from pipeline.config import Config


def _as_md5(text: str) -> str:
    if not re.fullmatch("[0-9a-f]{32}", text):
        raise ValueError("32 hexadecimal digits, or null")
    return text


Md5 = Annotated[str, AfterValidator(_as_md5)]


class DownloadConfig(Config):
    """Where the two archives come from, and how hard to try."""

    group: ClassVar[str] = "download"
    images: Annotated[str, Field(min_length=1)]
    images_md5: Md5 | None
    text: Annotated[str, Field(min_length=1)] | None
    text_md5: Md5 | None
    retries: Annotated[int, Field(ge=0, le=100)]
    timeout: Annotated[float, Field(gt=0, le=3600)]
