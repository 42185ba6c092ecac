"""Params of `showtell compare`; no stage depends on them."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pipeline.config import Config

MetricName = Literal[
    "bleu_1",
    "bleu_2",
    "bleu_3",
    "bleu_4",
    "cider",
    "rouge_l",
    "distinct",
    "repeated",
    "dangling",
]


class CompareConfig(Config):
    """How sure to be, and how much worse is too much."""

    group: ClassVar[str] = "compare"
    resamples: Annotated[int, Field(ge=1000, le=1_000_000)]
    confidence: Annotated[float, Field(gt=0.5, lt=1)]
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    # A gate without any would pass everything.
    tolerance: Annotated[dict[MetricName, Annotated[float, Field(ge=0)]], Field(min_length=1)]
