"""`showtell recipe`: params of named recipes, as options: dvc exp run $(showtell recipe NAME)."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.config.load import check_params, parse_params
from pipeline.runtime.errors import InputError


def read_recipe(folder: Path, name: str) -> dict[str, dict[str, Any]]:
    """Return the params, by group, that a recipe changes.

    Raises:
        InputError: there is no recipe of that name, or it is not YAML of groups of params.
    """
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(one.stem for one in folder.glob("*.yaml"))) or "none"
        raise InputError(f"there is no recipe '{name}' in {folder}; there are: {known}")
    groups = parse_params(path)
    for group, values in groups.items():
        if not isinstance(values, dict) or not values:
            raise InputError(f"{path}: the group '{group}' must have params")
    return groups


def combine(folder: Path, names: Sequence[str], params: Path) -> dict[str, Any]:
    """Return the params of several recipes by their full names; the last one wins.

    Raises:
        InputError: a recipe cannot be used, or the params with these changes are not valid.
    """
    groups = parse_params(params)
    check_params(params, groups)
    changes: dict[str, Any] = {}
    for name in names:
        for group, values in read_recipe(folder, name).items():
            groups[group] = {**groups.get(group, {}), **values}
            changes |= {f"{group}.{key}": value for key, value in values.items()}
    check_params(folder / f"{'+'.join(names)}.yaml", groups)
    return changes


def main(
    names: Annotated[
        list[str] | None, typer.Argument(help="Recipes, the last one wins. Without: list all.")
    ] = None,
    recipes: Annotated[Path, typer.Option(help="The folder of recipes.")] = Path("recipes"),
    params: Annotated[Path, typer.Option(help="The params that they change.")] = Path(
        "params.yaml"
    ),
) -> None:
    """List the recipes, or print the params of some as options."""
    if not names:
        paths = sorted(recipes.glob("*.yaml"))
        if not paths:
            raise InputError(f"there are no recipes in {recipes}; run it in the project's folder")
        width = max(len(path.stem) for path in paths)
        for path in paths:
            title = path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
            print(f"{path.stem:<{width}}  {title}")
        return
    changes = combine(recipes, names, params)
    options = [f"{key}={_as_yaml(value)}" for key, value in changes.items()]
    for option in options:
        if len(option.split()) > 1:  # the shell splits the output into words
            raise InputError(f"{option} has a space; set it in params.yaml")
    print(" ".join(f"-S {option}" for option in options))


def _as_yaml(value: Any) -> str:
    """The value as DVC reads it: a string as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
