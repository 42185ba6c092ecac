"""Where files are looked for, and which Python looks: said where it is not as one thinks."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, Artifacts, command, one_line, write_params
from tests.repository import Repository


@pytest.mark.parametrize(
    ("group", "key", "stage", "options"),
    [
        ("download", "images", "download", ("--images", "i.zip", "--text", "t.zip")),
        ("download", "text", "download", ("--images", "i.zip", "--text", "t.zip")),
        ("backbone", "weights", "backbone", ("--out", "b.safetensors")),
    ],
)
def test_a_relative_path_is_shown_as_it_was_looked_for(
    world: Artifacts, tmp_path: Path, group: str, key: str, stage: str, options: tuple[str, ...]
) -> None:
    given = {"images": str(world.images), "images_md5": None, "text": str(world.text)}
    given = {"download": {**given, "text_md5": None}}
    given.setdefault(group, {})[key] = "given/x.pth"
    write_params(tmp_path / "params.yaml", **given)
    line = one_line(command(stage, *options, cwd=tmp_path))
    path = tmp_path / "given/x.pth"
    assert f"{group}.{key} names given/x.pth, but {path} is not a file; check the path" in line


def test_in_a_temporary_experiment_the_line_says_why_it_is_not_there(
    world: Artifacts, tmp_path: Path
) -> None:
    """DVC runs it in a copy of what git has: neither ../ nor an untracked file leads there."""
    repository = Repository(tmp_path / "repository", world)
    (repository.folder / "mine.zip").write_bytes(world.images.read_bytes())
    repository.write(download={"images": "mine.zip"})
    (repository.folder / ".git/info/exclude").write_text("mine.zip")
    repository.commit()
    result = repository.try_to("dvc", "exp", "run", "--temp")
    assert result.returncode != 0
    said = re.search(r"error: (download\.images names mine\.zip, but .*)", result.stderr)
    assert said, result.stderr
    assert re.search(r"\.dvc/tmp/exps/\S+/mine\.zip is not a file", said[1])
    assert "run in a copy of the repository, so give a path that begins with /" in said[1]


def test_a_python_without_the_packages_says_where_they_are() -> None:
    """`dvc` called by its path runs whatever `python` is: here one that sees no packages."""
    done = subprocess.run(
        [sys.executable, "-S", "-m", "pipeline", "download"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {sys.executable} has no 'typer'; enter the project's")
    assert "source .venv/bin/activate" in done.stderr
