"""params.yaml, read once at the edge into frozen, typed configs.

Each group has a module of its own here, so that a new key for one stage does not make DVC rerun
the others, which list only their own group's module among their `deps`.
"""

import difflib
import importlib
import re
import reprlib
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, cast

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationError

from pipeline.runtime.errors import InputError

MERGE = "tag:yaml.org,2002:merge"  # the key <<, which takes over another mapping's keys
GROUPS = (
    *("download", "captions", "backbone", "extract", "vocab", "train", "scst", "evaluate"),
    "report",
    "compare",  # of no stage
)


class Config(BaseModel):
    """One group of params.yaml: every key is required, none other is allowed."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    group: ClassVar[str]


Item = TypeVar("Item")


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def _not_empty(items: tuple[Item, ...]) -> tuple[Item, ...]:
    if not items:
        raise ValueError("one, or a list of some")
    return items


# A key that takes one value, or a list of them where several lie side by side.
OneOrMore = Annotated[
    tuple[Item, ...],
    BeforeValidator(_as_tuple),
    AfterValidator(_not_empty),
]
AnyConfig = TypeVar("AnyConfig", bound=Config)


def read(path: Path, config: type[AnyConfig]) -> AnyConfig:
    """Read one group, once the whole file has been found good.

    All groups are checked, whichever stage asks: a slip in `train` must not come to light after
    an hour of extraction. The other groups cannot change what this one reads, so importing their
    modules by name adds no dependency.

    Raises:
        InputError: the file is absent or no YAML, or a key is unknown, missing, of the wrong type
            or impossible; the line names the key and what is allowed. A GPU is asked for and
            there is none.
    """
    groups = _load(path)
    unknown = [name for name in groups if name not in GROUPS]
    if unknown:
        raise InputError(f"{path}: unknown group '{unknown[0]}'; allowed are {', '.join(GROUPS)}")
    for name in GROUPS:
        importlib.import_module(f"pipeline.config.{name}")
    by_group: dict[str, Any] = {
        kind.group: _check(path, groups, kind) for kind in Config.__subclasses__()
    }
    if any(getattr(one, "device", None) == "cuda" for one in by_group.values()):
        # By name, as above. Before any work, not when the stage comes that wants the GPU.
        importlib.import_module("pipeline.runtime.device").resolve_device("cuda")
    given, taken = by_group["extract"].layer, by_group["train"].layer
    if given != taken:
        raise InputError(
            f"{path}: extract.layer is '{given}', but {by_group['train'].decoder} takes "
            f"'{taken}' features; change one of the two"
        )
    return cast(AnyConfig, by_group[config.group])


def parse_yaml(text: str) -> Any:
    """YAML with the floats of YAML 1.2, as DVC reads them: in PyYAML's 1.1 a plain `1e-4` is text.

    Raises:
        yaml.YAMLError: it is none.
    """
    return yaml.load(text, Loader=_Yaml12Loader)


def _load(path: Path) -> dict[str, Any]:
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; name the file with --params") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, no date
        raise InputError(f"{path} is no valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected the groups {', '.join(GROUPS)}")
    return content


def _check(path: Path, groups: dict[str, Any], config: type[Config]) -> Config:
    values = groups.get(config.group)
    if not isinstance(values, dict):
        raise InputError(f"{path}: the group '{config.group}' is missing; it needs {_keys(config)}")
    try:
        return config(**values)
    except ValidationError as error:
        raise InputError(f"{path}: {_explain(config, error)}") from None
    except TypeError:
        raise InputError(f"{path}: the keys of '{config.group}' must be plain words") from None


def _explain(config: type[Config], error: ValidationError) -> str:
    """The first thing that is wrong, with its key and what is allowed."""
    first = error.errors()[0]
    if not first["loc"]:  # keys that do not fit each other
        return f"{config.group}: {first['msg'].removeprefix('Value error, ')}"
    key = str(first["loc"][0])
    where = f"{config.group}.{key}"
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, config.model_fields, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        return f"unknown key '{where}'; {hint}allowed are {_keys(config)}"
    if first["type"] == "missing":
        return f"'{where}' is missing; {_keys(config)} are all needed"
    # A union (`int | 'auto'`) fails once for each of its members: say all that would do.
    allowed = [
        problem["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
        for problem in error.errors()
        if problem["loc"][:1] == first["loc"][:1]
    ]
    value = "null" if first["input"] is None else _shortened(first["input"])
    return f"{where} is {value}, but must be {' or '.join(dict.fromkeys(allowed))}"


def _shortened(value: Any) -> str:
    """A few lines of YAML can name themselves into gigabytes."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 200
    try:
        return short.repr(value)
    except ValueError:  # Python writes no number of thousands of digits
        return f"a {type(value).__name__} too long to show"


def _keys(config: type[Config]) -> str:
    return ", ".join(config.model_fields)


def _few(merged: yaml.Node) -> bool:
    """Ten of ten of ten … mappings that are merged become gigabytes. One that has been read has
    the keys that it merged; one that has not yet has the merge key."""
    mappings = merged.value if isinstance(merged, yaml.SequenceNode) else [merged]
    keys = [key for one in mappings if isinstance(one, yaml.MappingNode) for key, _ in one.value]
    return len(keys) <= 1000 and not any(key.tag == MERGE for key in keys)


class _Yaml12Loader(yaml.SafeLoader):
    """Safe, with another idea of what a float is, and strict about keys, as DVC is."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set[str]()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # lists and mappings, which `super` refuses
            if key.tag == MERGE and not _few(value):
                raise yaml.constructor.ConstructorError(
                    None, None, "merge keys (<<) of merge keys are too many", key.start_mark
                )
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key.value}' stands there twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Yaml12Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)
