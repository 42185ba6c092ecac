"""The project in unusual git setups: below git's root, without git, or owned by another user."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, command, one_line
from tests.helpers.runs import BOTH_RULES, FILES, Runs
from tests.test_ci import PREPARED_DEMO, record, run_script


@pytest.fixture(scope="module")
def nested(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The project two folders below git's root, with the tags `base` and `good`."""
    top = tmp_path_factory.mktemp("large") / "repository"
    runs = Runs(top / "models/captions", top=top)
    (top / "reports").mkdir()
    (top / "reports/metrics.json").write_text("not ours")
    (runs.folder / "dvc.yaml").write_text(
        "stages: {evaluate: {cmd: 'false', params: [evaluate], outs: ["
        + ", ".join(f"{{reports/{name}: {{cache: false}}}}" for name in FILES)
        + "]}}"
    )
    for tag, wrong in (("base", 0.4), ("good", 0.15)):
        runs.write(runs.captions(wrong))
        record(runs)
        runs.commit(tag)
    return runs


@pytest.mark.parametrize("below", [".", "reports"])
def test_commits_are_compared_from_any_depth(nested: Runs, below: str) -> None:
    for sides in (["base", "good"], ["base", "workspace"], ["base"]):
        done = command("compare", *sides, *BOTH_RULES, cwd=nested.folder / below)
        assert done.returncode == 0, done.stderr
        assert "Better: BLEU-4" in done.stdout
    done = command("compare", "base", "--reports", "elsewhere", cwd=nested.folder / below)
    assert "base has no elsewhere/metrics.json; commit the reports" in one_line(done)


@pytest.mark.parametrize("below", [".", "reports"])
def test_the_gate_on_committed_results_works_from_any_depth(nested: Runs, below: str) -> None:
    done = run_script("compare-results", nested.folder / below, "base", "good")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "The committed results match the code and params." in done.stdout
    assert "Better: BLEU-4" in done.stdout


def test_the_gate_on_the_demo_works_from_a_subfolder(tmp_path: Path) -> None:
    top, runs = tmp_path / "large", Runs(tmp_path / "runs")
    project = top / "captions"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "pipeline", project / "pipeline", ignore=ignored)
    shutil.copytree(ROOT / ".dvc/plots", project / ".dvc/plots")
    for name in (".dvc/config", "params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, project / name)
    (project / "pipeline/commands/demo.py").write_text(PREPARED_DEMO)
    git = ("git", "-C", str(top), "-c", "user.name=t", "-c", "user.email=t@example.com")
    subprocess.run(["git", "init", "--quiet", str(top)], check=True)
    for tag, wrong in (("base", 0.4), ("good", 0.15)):
        runs.write(runs.captions(wrong))
        for name in ("reports", "params.yaml", "dvc.lock"):
            target = project / "results" / name
            target.parent.mkdir(exist_ok=True)
            if (runs.folder / name).is_dir():
                shutil.copytree(runs.folder / name, target, dirs_exist_ok=True)
            else:
                shutil.copy(runs.folder / name, target)
        subprocess.run([*git, "add", "--all"], check=True)
        subprocess.run([*git, "commit", "--quiet", "--message", tag], check=True)
        subprocess.run([*git, "tag", tag], check=True)
    done = run_script("compare-demo", project, "base", "good")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Better: BLEU-4" in done.stdout


def test_make_page_finds_the_base_in_a_subfolder(nested: Runs) -> None:
    """Run the recipe's own line as make would pass it to the shell."""
    printed = subprocess.run(
        ["make", "--dry-run", "page", "BASE=base"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    (line,) = (text for text in printed.splitlines() if text.startswith("git show"))
    shown = subprocess.run(
        line.split(" > ")[0].split(), cwd=nested.folder, capture_output=True, text=True, check=True
    )
    assert '"cider"' in shown.stdout


def test_without_git_folders_are_compared_and_a_commit_is_one_line(tmp_path: Path) -> None:
    """As in GitHub's ZIP: `.dvc` and no `.git`."""
    runs = Runs(tmp_path / "from-zip")
    runs.write(runs.captions(wrong=0.4))
    shutil.copytree(runs.folder, tmp_path / "earlier")
    runs.write(runs.captions(wrong=0.15))
    shutil.rmtree(runs.folder / ".git")
    done = runs.compare()
    assert done.returncode == 2
    assert "is not in git, so it has no 'HEAD'; name folders (./one ../other)" in one_line(done)
    for script in ("compare-results", "compare-demo"):
        gate = run_script(script, runs.folder, "HEAD", "HEAD")
        assert gate.returncode == 2
        assert "not a git repository" in gate.stderr
    for head in (".", "workspace"):
        done = runs.compare("../earlier", head)
        assert "Better: BLEU-4" in done.stdout, done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_checkout_of_another_user_is_one_line_with_the_fix(tmp_path: Path) -> None:
    """As in a container with a mounted folder."""
    runs = Runs(tmp_path / "theirs")
    runs.write(runs.captions(wrong=0.4))
    runs.commit("base")
    for path in (runs.folder, *runs.folder.rglob("*")):
        os.chown(path, 12345, 12345)

    def compare(**variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pipeline", "compare", "base"],
            cwd=runs.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path), **variables},
            capture_output=True,
            text=True,
            check=False,
        )

    line = one_line(compare())
    assert f"{runs.folder} belongs to another user, so git does not trust it" in line
    fix = line.split("if you do: ")[1]
    subprocess.run(fix.split(), env={**os.environ, "HOME": str(tmp_path)}, check=True)
    done = compare()
    assert "No change" in done.stdout, done.stderr
