"""Recipes: named params that fit the schema and reach params.yaml through DVC."""

import shutil
from pathlib import Path

import pytest
from dvc.utils.hydra import apply_overrides

from pipeline.commands.recipe import combine
from pipeline.config.load import check_params, parse_params
from tests.conftest import ROOT, command, one_line

RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_fits_the_schema_and_dvc_applies_it(name: str, tmp_path: Path) -> None:
    params = Path(shutil.copy(ROOT / "params.yaml", tmp_path))
    before = parse_params(params)
    result = command("recipe", name)
    assert result.returncode == 0, result.stderr
    options = result.stdout.split()
    assert options[::2] == ["-S"] * (len(options) // 2)
    apply_overrides(params, options[1::2])
    after = parse_params(params)
    changes = combine(ROOT / "recipes", [name], ROOT / "params.yaml")
    for key, value in changes.items():
        group, _, own = key.partition(".")
        assert after[group][own] == value
        before[group][own] = value
    assert after == before
    check_params(params, after)


def test_without_a_name_all_are_listed_with_what_they_are() -> None:
    lines = command("recipe").stdout.splitlines()
    assert [line.split()[0] for line in lines] == RECIPES
    assert all(len(line.split()) > 3 for line in lines)


def test_of_several_recipes_the_last_wins() -> None:
    options = command("recipe", "show_and_tell", "cross_entropy").stdout
    assert "scst.epochs=0" in options
    assert "scst.epochs=4" not in options


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no recipe 'own' in"),
        ("train: {hiden_size: 3}", "unknown key 'train.hiden_size'; did you mean 'hidden_size'?"),
        ("train: {decoder: show_and_tell}", "show_and_tell takes 'pooled' features"),
        ("train: 3", "the group 'train' must have params"),
        ("download: {images: my photos}", "download.images=my photos has a space; set it in"),
    ],
)
def test_a_recipe_that_cannot_be_used_is_refused(
    content: str | None, message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "own.yaml").write_text(content)
    assert message in one_line(command("recipe", "own", "--recipes", tmp_path))


def test_without_recipes_the_folder_is_named(tmp_path: Path) -> None:
    assert "there are no recipes in" in one_line(command("recipe", "--recipes", tmp_path))
