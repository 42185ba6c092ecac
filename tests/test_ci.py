"""The scripts of the CI workflow, run as it runs them, on better, worse and equal commits."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from tests.helpers.repository import Checkout
from tests.helpers.runs import FILES, Runs

WORKFLOWS = {
    path.stem: path.read_text(encoding="utf-8")
    for path in sorted((ROOT / ".github/workflows").glob("*.yml"))
}
WORKFLOW = WORKFLOWS["ci"]


def run_script(name: str, repository: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ROOT / ".ci" / name), *arguments],
        cwd=repository,
        env={**os.environ, "PYTHON": sys.executable, "DEMO_IMAGES": "440"},
        capture_output=True,
        text=True,
        check=False,
    )


class Project(Checkout):
    """A copy of the project with its own git history."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        folder.mkdir()
        self.run("git", "init", "--quiet")
        # The new repository's git: the project itself may not be in git, as in GitHub's ZIP.
        work = ("git", f"--git-dir={folder}/.git", f"--work-tree={ROOT}")
        listed = (*work, "ls-files", "--others", "--exclude-standard")
        names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout
        for name in names.splitlines():
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, folder / name)

    def tag(self, name: str) -> None:
        self.commit()
        self.run("git", "tag", name)

    def edit(self, name: str, old: str, new: str) -> None:
        text = (self.folder / name).read_text()
        assert old in text
        (self.folder / name).write_text(text.replace(old, new))


def test_the_demo_at_two_commits(tmp_path: Path) -> None:
    """The second commit's captions are cut off after three words."""
    project = Project(tmp_path / "checkout")
    project.tag("whole")
    project.edit("pipeline/commands/demo.py", '"max_length": 16', '"max_length": 3')
    project.tag("cut")
    # As in the workflow: the folder is relative to the caller's.
    done = run_script("compare-demo", project.folder, "whole", "cut", "build/plots")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "**Not acceptable:** bleu_4" in done.stdout
    assert "| evaluate.max\\_length | 16 | 3 |" in done.stdout
    assert (
        done.stderr.count("Running stage 'train'") == 1
    )  # what has not changed does not run again
    plots = project.folder / "build/plots"
    page = (plots / "index.html").read_text()
    assert '"rev": "base"' in page
    assert '"rev": "head"' in page
    assert '<th scope="col">base</th>' in (plots / "report.html").read_text()
    assert project.run("git", "worktree", "list").count("\n") == 1
    assert project.run("git", "status", "--porcelain") == ""


def test_a_demo_that_fails_does_not_pass(tmp_path: Path) -> None:
    project = Project(tmp_path / "checkout")
    (project.folder / "dvc.yaml").unlink()
    project.tag("broken")
    done = run_script("compare-demo", project.folder, "broken", "broken")
    assert done.returncode == 2
    assert "**The demo fails at base:**" in done.stdout
    assert re.search(r"^    error: .* has no dvc\.yaml", done.stdout, re.M)
    done = run_script("compare-demo", project.folder, "nowhere", "broken")
    assert (done.returncode, done.stdout) == (2, "There is no commit nowhere here.\n")
    assert run_script("compare-demo", project.folder).returncode == 2


# A demo whose results are committed files, to test what the script does with them.
PREPARED_DEMO = """
import shutil
from pathlib import Path


def main(workspace: Path = Path("."), images: int = 0) -> None:
    shutil.copytree("results", workspace, dirs_exist_ok=True)
"""


def test_the_verdict_on_better_worse_equal_incomplete_and_loosened_commits(tmp_path: Path) -> None:
    project = Project(tmp_path / "checkout")
    demo = project.folder / "pipeline/commands/demo.py"
    demo.write_text(PREPARED_DEMO)
    runs = Runs(tmp_path / "runs")

    def commit(tag: str, wrong: float, lacking: str = "") -> None:
        runs.write(runs.captions(wrong), lambda metrics: metrics.pop(lacking, None))
        for name in ("reports", "params.yaml", "dvc.lock"):
            source = runs.folder / name
            target = project.folder / "results" / name
            target.parent.mkdir(exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, dirs_exist_ok=True)
            else:
                shutil.copy(source, target)
        project.tag(tag)

    commit("base", 0.4)
    commit("good", 0.15)
    commit("incomplete", 0.4, lacking="cider")
    project.edit("params.yaml", "cider: ", "cider: 9")  # tolerates any loss
    project.edit("params.yaml", "  dropout: 0.5", "  dropout: 0.9")
    commit("loose", 0.7)
    for head, code, message in (
        ("good", 0, "Better: BLEU-4"),
        ("base", 0, "No change: all 60 captions are the same."),
        ("incomplete", 2, "**Cannot be compared:** cannot compare: ./head lacks cider"),
        ("loose", 1, "**Not acceptable:** bleu_4"),
    ):
        done = run_script("compare-demo", project.folder, "base", head)
        assert done.returncode == code, done.stdout + done.stderr
        assert message in done.stdout.replace("\\", "")
    assert re.search(r"cider [\d.]+ worse", done.stdout)  # by base's rule
    assert "    +  dropout: 0.9" in done.stdout  # the demo does not use it


def test_committed_results_that_are_better_worse_equal_incomplete_and_stale(tmp_path: Path) -> None:
    runs = Runs(tmp_path / "repository")
    (runs.folder / "dvc.yaml").write_text(
        yaml.safe_dump(
            {
                "stages": {
                    "evaluate": {
                        "cmd": "false",
                        "params": ["evaluate"],
                        "outs": [{f"reports/{name}": {"cache": False}} for name in FILES],
                    }
                }
            }
        )
    )
    runs.commit("nothing")
    done = run_script("compare-results", runs.folder, "nothing", "nothing")
    assert (done.returncode, "No results" in done.stdout) == (0, True)
    for tag, wrong in (("base", 0.4), ("good", 0.15), ("bad", 0.7)):
        runs.write(runs.captions(wrong))
        record(runs)
        runs.commit(tag)
    runs.write(runs.captions(wrong=0.4), lambda metrics: metrics.pop("cider"))
    record(runs)
    runs.commit("incomplete")
    runs.write_params(evaluate={"beam_size": 9})
    runs.commit("stale")
    (runs.folder / "dvc.lock").unlink()
    runs.commit("gone")
    for base, head, code, message in (
        ("base", "good", 0, "Better: BLEU-4"),
        ("base", "base", 0, "No change: all 60 captions are the same."),
        ("base", "incomplete", 2, "lacks cider, which"),
        ("base", "bad", 1, "**Not acceptable:** bleu_4"),
        ("nothing", "base", 0, "No results are committed at "),
        ("base", "stale", 2, "evaluate: evaluate"),
        ("base", "gone", 2, "**Removed:**"),
        ("base", "nowhere", 2, "There is no commit nowhere"),
        ("nowhere", "base", 2, "There is no commit nowhere"),
    ):
        done = run_script("compare-results", runs.folder, base, head)
        assert done.returncode == code, done.stdout + done.stderr
        assert message in done.stdout


def record(runs: Runs) -> None:
    """Let DVC write dvc.lock for the workspace."""
    (runs.folder / "dvc.lock").unlink()
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "commit", "--force"],
        cwd=runs.folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_is_pinned_and_has_few_permissions(name: str) -> None:
    text = WORKFLOWS[name]
    workflow = yaml.safe_load(text)
    actions = re.findall(r"uses: (\S+)", text)
    assert actions
    assert all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", action) for action in actions), actions
    assert workflow["permissions"] == {"contents": "read"}
    with_permissions = [name for name, job in workflow["jobs"].items() if "permissions" in job]
    assert with_permissions == ["comment"] * (name == "ci")
    assert "secrets." not in text
    assert "pull_request_target" not in text
    for line in re.findall(r"run: .*", text):  # the name of a pull request must not run as code
        assert "${{" not in line, line


def test_the_workflows_commands_exist() -> None:
    scripts = set(re.findall(r"(\.ci/[\w-]+)", WORKFLOW))
    assert scripts == {".ci/compare-demo", ".ci/compare-results"}
    assert all(os.access(ROOT / name, os.X_OK) for name in scripts)
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"run: make ([\w-]+)", "".join(WORKFLOWS.values())))
    assert all(re.search(rf"^{name}:", makefile, re.M) for name in targets)
    assert json.dumps(sorted(targets)) == '["install", "newest", "test"]'
