"""Runs that cannot be compared are refused in one line, with exit code 2."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import command, one_line
from tests.helpers.runs import Runs, history_of_runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return history_of_runs(tmp_path_factory.mktemp("runs") / "repository")


def setting(value: Any, *path: str) -> Callable[[dict[str, Any]], object]:
    def change(metrics: dict[str, Any]) -> None:
        for part in path[:-1]:
            metrics = metrics[part][0]
        metrics[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (setting("val (official)", "split"), "not have the same split (test"),
        (setting("9999", "meta", "split_digest"), "not have the same division into splits (0123"),
        (setting("spaces", "meta", "tokenizer"), "not have the same tokeniser (ptb"),
        (setting(1.0, "meta", "scale"), "not have the same scale (100"),
        (setting(4.0, "meta", "references"), "not have the same number of references per image (5"),
        (setting(9.9, "baselines", "cider"), "not have the same baselines ("),
        (setting(9.9, "baselines", "rouge_l"), "not have the same baselines ("),
    ],
)
def test_another_protocol_is_refused(
    runs: Runs, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    runs.write(runs.captions(wrong=0.4), change)
    done = runs.compare("base")
    assert done.returncode == 2
    assert message in one_line(done)
    runs.restore()


def test_other_images_and_other_references_are_refused(runs: Runs) -> None:
    runs.ids[0], before = "new.jpg", runs.ids[0]
    runs.write(runs.captions(wrong=0.4))
    assert "not have the same references" in one_line(runs.compare("base"))
    runs.ids[0] = before
    runs.restore()


def test_a_missing_or_new_metric_is_named_and_never_passes(runs: Runs) -> None:
    runs.write(runs.captions(wrong=0.4), lambda metrics: metrics.pop("repeated"))
    done = runs.compare("base", "workspace")
    assert done.returncode == 0
    assert "\nNo change: all 60 captions are the same. Missing in head: repeated.\n" in done.stdout
    done = runs.compare("base", "workspace", "--fail-on", "tolerance")
    assert done.returncode == 2
    assert "workspace lacks repeated, which base has" in one_line(done)
    runs.write(runs.captions(wrong=0.4), setting(1.0, "spice"))
    assert "New in head: spice." in runs.compare("base", "workspace").stdout
    # A metric that has a rule and is on neither side.
    runs.write(runs.captions(wrong=0.4), lambda metrics: metrics.pop("cider"))
    runs.commit("poor")
    done = runs.compare("poor", "workspace", "--fail-on", "noise")
    assert done.returncode == 2
    assert "cider is missing in workspace" in one_line(done)
    runs.git("tag", "--delete", "poor")
    runs.git("reset", "--quiet", "--hard", "HEAD~1")


@pytest.mark.parametrize(("value", "shown"), [("NaN", "nan"), ("null", "None"), ('"12"', "'12'")])
def test_a_metric_that_is_not_a_number_is_refused(runs: Runs, value: str, shown: str) -> None:
    runs.write(runs.captions(wrong=0.4))
    path = runs.folder / "reports/metrics.json"
    path.write_text(path.read_text().replace('"cider": ', f'"cider": {value}, "was": ', 1))
    runs.lock()
    done = runs.compare("base")
    assert done.returncode == 2
    assert f"cider is {shown}, which is not a number" in one_line(done)
    runs.restore()


HEADER = "image_id,cider,rouge_l,words,closest_reference,matches_1,matches_2,matches_3,matches_4\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.json", "{", "metrics.json of workspace is not valid JSON"),
        ("metrics.json", "{}", "metrics.json of workspace is not a metrics file of this version"),
        ("captions.json", "[]", "is not a list of captions, one per image"),
        ("captions.json", '"text"', "is not a list of captions, one per image"),
        ("scores.csv", "image_id,cider\na,1\n", "has no column 'words'"),
        (
            "scores.csv",
            HEADER + "000.jpg,x,1,1,1,1,1,1,1\n",
            "scores.csv of workspace, cider in line 2 is 'x', which is not a number",
        ),
        (
            "scores.csv",
            HEADER + "000.jpg,1,1,1,1,1,1,1,1\n" * 2,
            "scores.csv of workspace has an image twice",
        ),
        ("scores.csv", "", "scores.csv of workspace has no rows"),
    ],
)
def test_damaged_reports_are_one_line(runs: Runs, name: str, content: str, message: str) -> None:
    runs.write(runs.captions(wrong=0.4))
    (runs.folder / "reports" / name).write_text(content)
    runs.lock()
    done = runs.compare("base")
    assert done.returncode == 2
    assert message in one_line(done)
    runs.restore()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "dvc.lock of workspace is damaged"),
        ("text", "dvc.lock of workspace is damaged"),
        ("stages: []", "dvc.lock of workspace is damaged"),
        ("stages: {}", "is not the one that dvc.lock records"),
        ("stages: {evaluate: {outs: [{md5: x}]}}", "dvc.lock of workspace is damaged"),
    ],
)
def test_a_damaged_lock_is_one_line(runs: Runs, content: str, message: str) -> None:
    (runs.folder / "dvc.lock").write_text(content)
    done = runs.compare("base")
    assert done.returncode == 2
    assert message in one_line(done)
    runs.restore()


def test_a_gate_without_any_rule_is_refused(runs: Runs) -> None:
    text = (runs.folder / "params.yaml").read_text()
    (runs.folder / "params.yaml").write_text(text[: text.index("  tolerance:")] + "  tolerance: {}")
    done = runs.compare("base", "bad", "--fail-on", "tolerance")
    assert done.returncode == 2
    assert "compare.tolerance" in one_line(done)
    runs.restore()


def test_without_git_folders_can_be_compared(runs: Runs, tmp_path: Path) -> None:
    folder = Runs(tmp_path / "alone")
    folder.write(folder.captions(wrong=0.4))
    shutil.rmtree(folder.folder / ".git")
    (folder.folder / ".dvc/config").write_text("[core]\n    no_scm = true\n")
    done = folder.compare()
    assert done.returncode == 2
    assert "is not in git" in one_line(done)
    done = folder.compare(".", str(runs.folder))
    assert "No difference beyond chance" in done.stdout


def test_scores_of_another_run_are_noticed(runs: Runs) -> None:
    """By the digests in dvc.lock, and if those match, by the scores themselves."""
    path = runs.folder / "reports/scores.csv"
    path.write_text(runs.git("show", "good:reports/scores.csv"))
    assert "not the one that dvc.lock records" in one_line(runs.compare("base"))
    runs.lock()
    assert "they are of two evaluations" in one_line(runs.compare("base"))
    runs.restore()


def test_a_bad_path_is_never_reported_as_worse(runs: Runs, tmp_path: Path) -> None:
    """Exit code 1 means that captions got worse, and nothing else."""
    odd = tmp_path / "odd"
    (odd / "reports/metrics.json").mkdir(parents=True)
    for arguments in (["base", str(odd)], ["base", "good", "--params", str(tmp_path)]):
        done = runs.compare(*arguments)
        assert done.returncode == 2
        assert "Is a directory" in one_line(done)
    assert runs.compare("base", "good", "--md", "--json").returncode == 2
    done = runs.compare("base", "nowhere", "--md")
    assert "**Cannot be compared:** there is no commit" in done.stdout


def test_any_folder_of_the_repository_and_any_spelling_of_a_path_work(runs: Runs) -> None:
    for arguments in (["base", "good"], ["base", "good", "--reports", "./reports/"]):
        done = command("compare", *arguments, cwd=runs.folder / "reports")
        assert "Better: BLEU-4" in done.stdout, done.stderr


def test_an_unknown_revision_and_no_repository_are_one_line(runs: Runs, tmp_path: Path) -> None:
    done = runs.compare("nowhere")
    assert done.returncode == 2
    assert "no commit, branch, tag or experiment 'nowhere'" in one_line(done)
    empty = Runs(tmp_path / "empty")
    empty.write(empty.captions(wrong=0.4))
    empty.commit("first")
    (empty.folder / "reports/scores.csv").unlink()
    empty.commit("second")
    done = empty.compare("first", "second")
    assert done.returncode == 2
    assert "second has no reports/scores.csv" in one_line(done)
