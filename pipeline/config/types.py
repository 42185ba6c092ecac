"""Types of params: a Python type with the range that pydantic checks."""

import difflib
import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from pipeline.config.renamed import RENAMED
from pipeline.decoders.registry import DECODERS
from pipeline.metrics.registry import METRICS

Item = TypeVar("Item")


class Config(BaseModel):
    """One group of params.yaml: every key is required, no other is allowed."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @classmethod
    def group(cls) -> str:
        """The group's name in params.yaml: `train` for `TrainConfig`."""
        return cls.__name__.removesuffix("Config").lower()


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def _not_empty(items: tuple[Item, ...]) -> tuple[Item, ...]:
    if not items:
        raise ValueError("one value, or a list that is not empty")
    return items


def _as_md5(text: str) -> str:
    if not re.fullmatch("[0-9a-f]{32}", text):
        raise ValueError("32 hexadecimal digits, or null")
    return text


def _known_decoder(name: str) -> str:
    if name not in DECODERS:
        similar = difflib.get_close_matches(name, DECODERS, n=1)
        hint = f" (did you mean {similar[0]!r}?)" if similar else ""
        raise ValueError(" or ".join(map(repr, DECODERS)) + hint)
    return name


def _known_metrics(tolerance: dict[str, float]) -> dict[str, float]:
    for name in tolerance:
        if name not in METRICS or METRICS[name].higher_is_better is None:
            known = [key for key in METRICS if METRICS[key].higher_is_better is not None]
            new = RENAMED.get(f"compare.tolerance.{name}")
            hint = f" (it was renamed to {new})" if new else ""
            raise ValueError(
                f"of metrics that can get worse, not '{name}'{hint}: {', '.join(known)}"
            )
    return tolerance


# One value, or a list of values whose features are concatenated.
OneOrMore = Annotated[tuple[Item, ...], BeforeValidator(_as_tuple), AfterValidator(_not_empty)]
Md5 = Annotated[str, AfterValidator(_as_md5)]
Text = Annotated[str, Field(min_length=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Size = Annotated[int, Field(ge=1, le=16384)]
BatchSize = Annotated[int, Field(ge=1, le=65536)]
Seconds = Annotated[float, Field(ge=0)]
DeviceName = Literal["auto", "cpu", "cuda"]
Decoder = Annotated[str, AfterValidator(_known_decoder)]
Tolerance = Annotated[
    dict[str, Annotated[float, Field(ge=0)]],
    Field(min_length=1),  # if empty, `--fail-on tolerance` would always pass
    AfterValidator(_known_metrics),
]
