"""Load a group of params.yaml as a frozen config."""

import difflib
import re
import reprlib
from collections.abc import Collection
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from pydantic import ValidationError

from pipeline.config.renamed import RENAMED
from pipeline.config.schema import GROUPS, ExtractConfig, TrainConfig
from pipeline.config.types import Config
from pipeline.runtime.errors import InputError

MERGE = "tag:yaml.org,2002:merge"  # the key <<, which merges another mapping's keys
AnyConfig = TypeVar("AnyConfig", bound=Config)


def load_params(path: Path, config: type[AnyConfig]) -> AnyConfig:
    """Load one group after validating the whole file.

    Every stage validates all groups: a typo in `train` must not surface after an hour of
    extraction.

    Raises:
        InputError: the file is missing or not YAML; a key is unknown, missing or invalid (the
            message names it and what is allowed); or a group needs a GPU and there is none.
    """
    return cast(AnyConfig, check_params(path, parse_params(path))[config.group()])


def check_params(path: Path, groups: dict[str, Any]) -> dict[str, Config]:
    """Return the configs of all groups; errors name the file `path`.

    Raises:
        InputError: as `load_params`.
    """
    for name in groups:
        if name not in GROUPS:
            raise InputError(f"{path}: unknown group '{name}'; {_hint(name, name, GROUPS)}")
    configs = {name: _validate(path, groups, schema) for name, schema in GROUPS.items()}
    if any(getattr(group, "device", None) == "cuda" for group in configs.values()):
        # Fail before any work, not when the first stage needs the GPU.
        from pipeline.runtime.device import resolve_device  # imports torch

        resolve_device("cuda")
    extract, train = cast(ExtractConfig, configs["extract"]), cast(TrainConfig, configs["train"])
    if extract.layer != train.feature_kind:
        raise InputError(
            f"{path}: extract.layer is '{extract.layer}', but {train.decoder} takes "
            f"'{train.feature_kind}' features; change one of the two"
        )
    return configs


def parse_yaml(text: str) -> Any:
    """Parse YAML with the floats of YAML 1.2, as DVC does: in PyYAML's 1.1, `1e-4` is a string."""
    return yaml.load(text, Loader=_Yaml12Loader)


def parse_params(path: Path) -> dict[str, Any]:
    """Read a params file as plain groups; an InputError unless it is YAML of groups."""
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{path} does not exist; run this in the project's folder, or pass --params"
        ) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{path}, line {mark.line + 1}, column {mark.column + 1}" if mark else path
        raise InputError(f"{where}: not valid YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, bad date
        raise InputError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected the groups {', '.join(GROUPS)}")
    return content


def _validate(path: Path, groups: dict[str, Any], config: type[Config]) -> Config:
    values = groups.get(config.group())
    if not isinstance(values, dict):
        keys = ", ".join(config.model_fields)
        raise InputError(f"{path}: the group '{config.group()}' is missing; it needs {keys}")
    try:
        return config(**values)
    except ValidationError as error:
        raise InputError(f"{path}: {_explain(config, error)}") from None
    except TypeError:
        raise InputError(f"{path}: the keys of '{config.group()}' must be strings") from None


def _explain(config: type[Config], error: ValidationError) -> str:
    """Describe one error, with its key and what is allowed: an unknown key before a missing one."""
    errors = error.errors()
    first = next((detail for detail in errors if detail["type"] == "extra_forbidden"), errors[0])
    if not first["loc"]:  # keys that contradict each other
        return f"{config.group()}: {first['msg'].removeprefix('Value error, ')}"
    key = str(first["loc"][0])
    where = f"{config.group()}.{key}"
    if first["type"] == "extra_forbidden":
        return f"unknown key '{where}'; {_hint(where, key, config.model_fields)}"
    if first["type"] == "missing":
        return f"'{where}' is missing; every key is required (docs/params.md)"
    # A union (`int | 'auto'`) has one error per member: list all allowed values.
    allowed = [
        detail["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
        for detail in errors
        if detail["loc"][:1] == first["loc"][:1]
    ]
    value = "null" if first["input"] is None else _short_repr(first["input"])
    return f"{where} is {value}, but must be {' or '.join(dict.fromkeys(allowed))}"


def _hint(name: str, key: str, allowed: Collection[str]) -> str:
    """The new name of a renamed key, a similar one, or all that are allowed."""
    if name in RENAMED:
        return f"it was renamed to {RENAMED[name]}"
    similar = difflib.get_close_matches(key, allowed, n=1)
    return f"did you mean '{similar[0]}'?" if similar else f"allowed are {', '.join(allowed)}"


def _short_repr(value: Any) -> str:
    """Return a short repr: with YAML aliases, a few lines can stand for gigabytes."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 200
    try:
        return short.repr(value)
    except ValueError:  # Python refuses to convert numbers of thousands of digits
        return f"a {type(value).__name__} too long to show"


def _is_small(merged: yaml.Node) -> bool:
    """Whether a merge adds few keys: nested merges of merges could grow to gigabytes.

    A mapping that is already constructed has the keys that it merged; any other has the merge key.
    """
    nodes = merged.value if isinstance(merged, yaml.SequenceNode) else [merged]
    keys = [key for node in nodes if isinstance(node, yaml.MappingNode) for key, _ in node.value]
    return len(keys) <= 1000 and not any(key.tag == MERGE for key in keys)


class _Yaml12Loader(yaml.SafeLoader):
    """A safe loader with YAML 1.2's floats, strict about duplicate keys, as DVC is."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set[str]()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # lists and mappings, which `super` rejects
            if key.tag == MERGE and not _is_small(value):
                raise yaml.constructor.ConstructorError(
                    None, None, "too many nested merge keys (<<)", key.start_mark
                )
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key.value}' appears twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Yaml12Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)
