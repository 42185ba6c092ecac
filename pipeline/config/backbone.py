"""Params of the backbone stage."""

from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from pipeline.config import Config, OneOrMore


class BackboneConfig(Config):
    """Which frozen CNN, or CNNs side by side, and where the weights of each come from."""

    group: ClassVar[str] = "backbone"
    name: OneOrMore[Annotated[str, Field(min_length=1)]]
    weights: OneOrMore[Annotated[str, Field(min_length=1)]]
    seed: Annotated[int, Field(ge=0, lt=2**63)]

    @model_validator(mode="after")
    def _weights_of_each(self) -> Self:
        if len(self.name) != len(self.weights):
            raise ValueError(
                f"{len(self.name)} names need as many weights, not {len(self.weights)}"
            )
        return self
