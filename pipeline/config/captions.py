"""Params of the captions stage."""

from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from pipeline.config import Config

Share = Annotated[float, Field(gt=0, lt=1)]


class CaptionsConfig(Config):
    """How images are split where the text archive brings no split lists."""

    group: ClassVar[str] = "captions"
    val_fraction: Share
    test_fraction: Share

    @model_validator(mode="after")
    def _leave_some_to_train_on(self) -> "CaptionsConfig":
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError("such that val_fraction + test_fraction stay below 1")
        return self
