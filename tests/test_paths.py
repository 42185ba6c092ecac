"""Errors about paths of params, and about the wrong Python."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, Artifacts, command, one_line, write_params
from tests.helpers.repository import Repository


@pytest.mark.parametrize(
    ("group", "key", "stage", "options"),
    [
        ("download", "images", "download", ("--images", "i.zip", "--text", "t.zip")),
        ("download", "text", "download", ("--images", "i.zip", "--text", "t.zip")),
        ("backbone", "weights", "backbone", ("--out", "b.safetensors")),
    ],
)
def test_a_relative_path_is_reported_as_an_absolute_one(
    world: Artifacts, tmp_path: Path, group: str, key: str, stage: str, options: tuple[str, ...]
) -> None:
    given = {"images": str(world.images), "images_md5": None, "text": str(world.text)}
    given = {"download": {**given, "text_md5": None}}
    given.setdefault(group, {})[key] = "given/x.pth"
    write_params(tmp_path / "params.yaml", **given)
    line = one_line(command(stage, *options, cwd=tmp_path))
    path = tmp_path / "given/x.pth"
    assert f"{group}.{key} names given/x.pth, but {path} does not exist; check the path" in line


def test_in_a_temporary_experiment_the_error_explains_the_missing_file(
    world: Artifacts, tmp_path: Path
) -> None:
    """DVC runs it in a copy of what git tracks, without untracked files."""
    repository = Repository(tmp_path / "repository", world)
    (repository.folder / "mine.zip").write_bytes(world.images.read_bytes())
    repository.write(download={"images": "mine.zip"})
    (repository.folder / ".git/info/exclude").write_text("mine.zip")
    repository.commit()
    result = repository.try_to("dvc", "exp", "run", "--temp")
    assert result.returncode != 0
    message = re.search(r"error: (download\.images names mine\.zip, but .*)", result.stderr)
    assert message, result.stderr
    assert re.search(r"\.dvc/tmp/exps/\S+/mine\.zip does not exist", message[1])
    assert "run in a copy of the repository; use an absolute path" in message[1]


def test_a_python_without_the_packages_is_reported() -> None:
    """`dvc` called by its path runs another environment's `python`: here one without packages."""
    done = subprocess.run(
        [sys.executable, "-S", "-m", "pipeline", "download"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {sys.executable} has no 'typer'; activate the proj")
    assert "source .venv/bin/activate" in done.stderr
