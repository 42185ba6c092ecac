"""Git and DVC repositories with the project's graph, for tests that run DVC as users do."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import ROOT, Artifacts, command, params

PAGE = "reports/report.html"
# The stages' outs in the cache, besides `data/images.zip` and `data/text.zip`.
OUTS = (
    "data/unreadable_images.csv",
    "data/excluded.csv",
    "data/captions.csv",
    "data/captions.json",
    "data/vocabulary.json",
    "features/features.h5",
    "models/backbone.safetensors",
    "models/trained.safetensors",
    "models/captioner.safetensors",
    "models/neighbors.safetensors",
    "models/confidence.json",
    PAGE,
)


class Checkout:
    """A folder with the project, and the commands that users type there."""

    def __init__(self, folder: Path, **variables: str) -> None:
        """Create it.

        Args:
            variables: of the environment, for all commands.
        """
        self.folder, self.variables = folder, variables

    @property
    def environment(self) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return {**os.environ, "PATH": path, **self.variables}

    def try_to(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment | variables,
            capture_output=True,
            text=True,
            check=False,
        )

    def run(self, *command: str) -> str:
        result = self.try_to(*command)
        assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
        return result.stdout

    def commit(self) -> None:
        self.run("git", "add", "--all")
        user = ("-c", "user.name=test", "-c", "user.email=test@example.com")
        self.run("git", *user, "commit", "--quiet", "--message", "state")

    def repro(self) -> set[str]:
        """Run `dvc repro` and return the stages that ran."""
        return set(re.findall(r"Running stage '(\w+)'", self.run("dvc", "repro")))

    def clone(self, folder: Path) -> "Checkout":
        """Clone what is committed into `folder`, without any data."""
        self.run("git", "clone", "--quiet", str(self.folder), str(folder))
        return Checkout(folder, **self.variables)

    @property
    def lock(self) -> str:
        return (self.folder / "dvc.lock").read_text()


class Repository(Checkout):
    """A git and DVC repository with the project's graph and code, and tiny params."""

    def __init__(
        self, folder: Path, world: Artifacts, variables: dict[str, str] | None = None
    ) -> None:
        super().__init__(folder, **(variables or {}))
        folder.mkdir()
        for name in ("pipeline", "data", "features", "models", "reports"):
            ignored = shutil.ignore_patterns(
                "__pycache__", "*.zip", "*.csv", "*.json", "*.h5", "report.html"
            )
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        for name in ("dvc.yaml", ".dvcignore", ".gitignore"):
            shutil.copyfile(ROOT / name, folder / name)
        (folder / ".dvc").mkdir()
        for name in ("config", ".gitignore"):
            shutil.copyfile(ROOT / ".dvc" / name, folder / ".dvc" / name)
        shutil.copytree(ROOT / ".dvc/plots", folder / ".dvc/plots")
        self.params: dict[str, Any] = params(
            download={
                "images": str(world.images),
                "images_md5": None,
                "text": str(world.text),
                "text_md5": None,
            }
        )
        self.write()
        self.run("git", "init", "--quiet")
        self.commit()

    def write(self, **changes: dict[str, Any]) -> None:
        groups = {name: values | changes.get(name, {}) for name, values in self.params.items()}
        (self.folder / "params.yaml").write_text(yaml.safe_dump(groups, sort_keys=False))

    def take_over(self, tiny: Artifacts) -> None:
        """Commit outs that the stages wrote elsewhere, as if `dvc repro` had written them here.

        This saves the half minute of a run. The params that matter are the same, and test_repro
        tests a run through DVC.
        """
        archives = ("data/images.zip", "data/text.zip")
        reports = [f"reports/{path.name}" for path in tiny.reports.iterdir()]
        for name in (*archives, *(name for name in OUTS if name != PAGE), *reports):
            target = self.folder / name
            if not target.exists():
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(tiny.folder / name, target)
        # The page shows the params of this repository.
        done = command("report", cwd=self.folder)
        assert done.returncode == 0, done.stderr
        self.run("dvc", "commit", "--force", "--quiet")
        self.commit()
