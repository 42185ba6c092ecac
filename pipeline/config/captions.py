"""Params of the captions stage."""

from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from pipeline.config import Config

Share = Annotated[float, Field(gt=0, lt=1)]


class CaptionsConfig(Config):
    """How pictures are split where the text archive brings no split lists."""

    group: ClassVar[str] = "captions"
    dev_share: Share
    test_share: Share

    @model_validator(mode="after")
    def _leave_some_to_train_on(self) -> "CaptionsConfig":
        if self.dev_share + self.test_share >= 1:
            raise ValueError("such that dev_share + test_share stay below 1")
        return self
