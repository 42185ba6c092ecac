"""The settings of a request: its query parameters, their bounds, and the model's defaults."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from pipeline.captioning.captioner import Captioner
from pipeline.generation.beam_search import BeamSearchConfig
from pipeline.runtime.errors import InputError, sanitize

NUMBER = re.compile(r"-?[0-9]{1,9}(\.[0-9]{1,9})?")
FLAGS = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True)
class Parameter:
    """A query parameter: its type and, of a number, its bounds."""

    kind: type  # int, float or bool
    minimum: float
    maximum: float
    description: str

    def parse(self, name: str, text: str) -> Any:
        """
        Raises:
            InputError: it is not such a value, or is out of bounds.
        """
        if self.kind is bool:
            if text not in FLAGS:
                raise InputError(f"{name} must be true or false")
            return FLAGS[text]
        whole = self.kind is int
        if not NUMBER.fullmatch(text) or (whole and "." in text):
            raise InputError(f"{name} must be a {'whole ' if whole else ''}number")
        value = self.kind(text)
        if not self.minimum <= value <= self.maximum:
            raise InputError(f"{name} must be between {self.minimum:g} and {self.maximum:g}")
        return value


# Tighter than the params of `evaluate`: a stranger's request must not take minutes.
PARAMETERS = {
    "beam_size": Parameter(int, 1, 20, "Number of beams."),
    "length_penalty": Parameter(float, 0, 5, "0: total log-probability; 1: mean per token."),
    "max_length": Parameter(int, 1, 50, "Maximum caption length in tokens."),
    "no_repeat_ngram_size": Parameter(int, 0, 10, "No n-gram of this size twice; 0 allows all."),
    "beam_groups": Parameter(int, 1, 20, "Groups of beams; beam_size must be a multiple."),
    "diversity_penalty": Parameter(float, 0, 10, "Diversity penalty between beam groups."),
    "alternatives": Parameter(int, 0, 9, "Other captions to return; fewer than beam_size."),
    "attention": Parameter(bool, 0, 1, "Whether to return where the model looked, token by token."),
}


@dataclass(frozen=True)
class Settings:
    """What a request asks of the captioner. Requests with equal settings share a batch."""

    search: BeamSearchConfig
    alternatives: int = 0
    attention: bool = False


def parse_settings(query: Iterable[tuple[str, str]], captioner: Captioner) -> Settings:
    """Read a request's settings; what it does not name is the model's default.

    Args:
        query: names and values.

    Raises:
        InputError: a parameter is unknown, repeated or out of bounds, or some do not fit together.
    """
    given: dict[str, Any] = {}
    for name, text in query:
        if name not in PARAMETERS:
            known = ", ".join(PARAMETERS)
            raise InputError(f"there is no parameter '{sanitize(name[:40])}'; there are {known}")
        if name in given:
            raise InputError(f"{name} is given twice")
        given[name] = PARAMETERS[name].parse(name, text)
    alternatives, attention = given.pop("alternatives", 0), given.pop("attention", False)
    search = replace(captioner.search, **given)
    if search.beam_size % search.beam_groups:
        raise InputError(
            f"beam_size {search.beam_size} is not a multiple of beam_groups {search.beam_groups}; "
            "set both"
        )
    if alternatives >= search.beam_size:
        raise InputError(f"{alternatives} alternatives need a beam_size of {alternatives + 1}")
    if attention and not captioner.has_attention:
        raise InputError("this model has no attention to return")
    return Settings(search, alternatives, attention)
