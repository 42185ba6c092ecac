"""The scripts of the CI workflow, as it runs them, on commits that help, harm and do neither."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from tests.conftest import ROOT
from tests.repository import Checkout
from tests.runs import Runs

WORKFLOW = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")


def run_script(name: str, repository: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ROOT / ".ci" / name), *arguments],
        cwd=repository,
        env={**os.environ, "PYTHON": sys.executable, "DEMO_PICTURES": "440"},
        capture_output=True,
        text=True,
        check=False,
    )


class Project(Checkout):
    """A copy of the project with a history of its own."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        listed = ("git", "ls-files", "--cached", "--others", "--exclude-standard")
        names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout
        for name in names.splitlines():
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, folder / name)
        self.run("git", "init", "--quiet")

    def tag(self, name: str) -> None:
        self.commit()
        self.run("git", "tag", name)

    def edit(self, name: str, old: str, new: str) -> None:
        text = (self.folder / name).read_text()
        assert old in text
        (self.folder / name).write_text(text.replace(old, new))


def test_the_demo_at_two_commits(tmp_path: Path) -> None:
    """The second one's captions break off after three words."""
    project = Project(tmp_path / "checkout")
    project.tag("whole")
    project.edit("pipeline/demo/run.py", '"max_length": 16', '"max_length": 3')
    project.tag("cut")
    done = run_script("compare-demo", project.folder, "whole", "cut", str(tmp_path / "plots"))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "**Not acceptable:** bleu_4" in done.stdout
    assert "| evaluate.max\\_length | 16 | 3 |" in done.stdout
    assert done.stderr.count("Running stage 'train'") == 1  # what has not changed is not run again
    page = (tmp_path / "plots/index.html").read_text()
    assert '"rev": "base"' in page
    assert '"rev": "head"' in page
    assert '<th scope="col">base</th>' in (tmp_path / "plots/report.html").read_text()
    assert project.run("git", "worktree", "list").count("\n") == 1
    assert project.run("git", "status", "--porcelain") == ""


def test_a_demo_that_does_not_run_is_no_pass(tmp_path: Path) -> None:
    project = Project(tmp_path / "checkout")
    (project.folder / "dvc.yaml").unlink()
    project.tag("broken")
    done = run_script("compare-demo", project.folder, "broken", "broken")
    assert done.returncode == 2
    assert "the demo fails at broken" in done.stdout
    assert run_script("compare-demo", project.folder, "nowhere", "broken").returncode == 2


def test_committed_results_that_are_better_worse_the_same_lacking_and_stale(tmp_path: Path) -> None:
    runs = Runs(tmp_path / "repository")
    (runs.folder / "dvc.yaml").write_text(
        yaml.safe_dump(
            {
                "stages": {
                    "evaluate": {
                        "cmd": "false",
                        "params": ["evaluate"],
                        "outs": [{f"reports/{name}": {"cache": False}} for name in OUTS],
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
    runs.commit("silent")
    runs.write_params(evaluate={"beam": 9})
    runs.commit("stale")
    for base, head, code, said in (
        ("base", "good", 0, "Better: BLEU-4"),
        ("base", "base", 0, "No change: all 60 captions are the same."),
        ("base", "silent", 2, "cider is missing in silent"),
        ("base", "bad", 1, "**Not acceptable:** bleu_4"),
        ("nothing", "base", 0, "No results are committed at nothing"),
        ("base", "stale", 2, "**Stale:**"),
    ):
        done = run_script("compare-results", runs.folder, base, head)
        assert done.returncode == code, done.stdout + done.stderr
        assert said in done.stdout + done.stderr


OUTS = ("captions.json", "metrics.json", "references.json", "scores.csv")


def record(runs: Runs) -> None:
    """dvc.lock of this state, from DVC itself."""
    (runs.folder / "dvc.lock").unlink()
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "commit", "--force"],
        cwd=runs.folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_workflow_is_pinned_and_may_do_little() -> None:
    workflow = yaml.safe_load(WORKFLOW)
    used = re.findall(r"uses: (\S+)", WORKFLOW)
    assert used
    assert all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", one) for one in used), used
    assert workflow["permissions"] == {"contents": "read"}
    may_write = [name for name, job in workflow["jobs"].items() if "permissions" in job]
    assert may_write == ["comment"]
    assert "secrets." not in WORKFLOW
    assert "pull_request_target" not in WORKFLOW
    for line in re.findall(r"run: .*", WORKFLOW):  # what a pull request is named is not code
        assert "${{" not in line, line


def test_the_workflows_commands_exist() -> None:
    scripts = set(re.findall(r"(\.ci/[\w-]+)", WORKFLOW))
    assert scripts == {".ci/compare-demo", ".ci/compare-results"}
    assert all(os.access(ROOT / name, os.X_OK) for name in scripts)
    targets = set(re.findall(r"run: make ([\w-]+)", WORKFLOW))
    assert all(re.search(rf"^{one}:", (ROOT / "Makefile").read_text(), re.M) for one in targets)
    assert json.dumps(sorted(targets)) == '["install", "test"]'
