"""Load params.yaml, once, at the edge: one group of it as a frozen config."""

import difflib
import re
import reprlib
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from pydantic import ValidationError

from pipeline.config.renamed import RENAMED
from pipeline.config.schema import GROUPS, Config, ExtractConfig, TrainConfig
from pipeline.runtime.errors import InputError

MERGE = "tag:yaml.org,2002:merge"  # the key <<, which takes over another mapping's keys
AnyConfig = TypeVar("AnyConfig", bound=Config)


def load_params(path: Path, config: type[AnyConfig]) -> AnyConfig:
    """Load one group after validating the whole file.

    All groups are validated, whichever stage asks: a typo in `train` must not surface after an
    hour of extraction.

    Raises:
        InputError: the file is missing or not YAML, or a key is unknown, missing, of the wrong
            type or impossible; the message names the key and what is allowed. Or a group asks for
            a GPU and there is none.
    """
    groups = _load_yaml(path)
    for name in groups:
        if name not in GROUPS:
            hint = f"it is called '{RENAMED[name]}' now; " if name in RENAMED else ""
            raise InputError(
                f"{path}: unknown group '{name}'; {hint}allowed are {', '.join(GROUPS)}"
            )
    configs = {name: _validate(path, groups, schema) for name, schema in GROUPS.items()}
    if any(getattr(group, "device", None) == "cuda" for group in configs.values()):
        # Fail before any work, not when the first stage needs the GPU. Imports torch.
        from pipeline.runtime.device import resolve_device

        resolve_device("cuda")
    extract, train = cast(ExtractConfig, configs["extract"]), cast(TrainConfig, configs["train"])
    if extract.layer != train.feature_kind:
        raise InputError(
            f"{path}: extract.layer is '{extract.layer}', but {train.decoder} takes "
            f"'{train.feature_kind}' features; change one of the two"
        )
    return cast(AnyConfig, configs[config.group()])


def parse_yaml(text: str) -> Any:
    """YAML with the floats of YAML 1.2, as DVC reads them: in PyYAML's 1.1 a plain `1e-4` is text.

    Raises:
        yaml.YAMLError: it is none.
    """
    return yaml.load(text, Loader=_Yaml12Loader)


def _load_yaml(path: Path) -> dict[str, Any]:
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; name the file with --params") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, no date
        raise InputError(f"{path} is no valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected the groups {', '.join(GROUPS)}")
    return content


def _validate(path: Path, groups: dict[str, Any], config: type[Config]) -> Config:
    values = groups.get(config.group())
    if not isinstance(values, dict):
        raise InputError(
            f"{path}: the group '{config.group()}' is missing; it needs {_keys(config)}"
        )
    try:
        return config(**values)
    except ValidationError as error:
        raise InputError(f"{path}: {_explain(config, error)}") from None
    except TypeError:
        raise InputError(f"{path}: the keys of '{config.group()}' must be plain words") from None


def _explain(config: type[Config], error: ValidationError) -> str:
    """One error, with its key and what is allowed: an unknown key before a missing one."""
    errors = error.errors()
    first = next((one for one in errors if one["type"] == "extra_forbidden"), errors[0])
    if not first["loc"]:  # keys that do not fit each other
        return f"{config.group()}: {first['msg'].removeprefix('Value error, ')}"
    key = str(first["loc"][0])
    where = f"{config.group()}.{key}"
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, config.model_fields, n=1)
        if where in RENAMED:
            hint = f"it is called {RENAMED[where]} now; "
        else:
            hint = f"did you mean '{near[0]}'? " if near else ""
        return f"unknown key '{where}'; {hint}allowed are {_keys(config)}"
    if first["type"] == "missing":
        return f"'{where}' is missing; {_keys(config)} are all needed"
    # A union (`int | 'auto'`) fails once for each of its members: say all that would do.
    allowed = [
        problem["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
        for problem in errors
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
