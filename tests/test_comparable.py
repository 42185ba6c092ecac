"""What cannot be compared is refused, in one line and with an exit code of its own."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import one_line
from tests.runs import Runs, history_of_runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return history_of_runs(tmp_path_factory.mktemp("runs") / "repository")


def named(value: Any, *path: str) -> Callable[[dict[str, Any]], object]:
    def change(metrics: dict[str, Any]) -> None:
        for part in path[:-1]:
            metrics = metrics[part][0]
        metrics[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (named("dev (official)", "split"), "another split"),
        (named("9999", "about", "split_digest"), "another division into splits"),
        (named("spaces", "about", "tokenizer"), "another tokeniser"),
        (named(1.0, "about", "scale"), "another scale"),
        (named(4.0, "about", "references"), "another references a picture"),
        (named(9.9, "yardsticks", "cider"), "another yardsticks"),
    ],
)
def test_other_terms_are_refused(
    runs: Runs, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    runs.write(runs.captions(wrong=0.4), change)
    done = runs.compare("base")
    assert done.returncode == 2
    assert f"cannot compare: {said}" in one_line(done)
    runs.git("checkout", "--quiet", ".")


def test_other_pictures_and_other_references_are_refused(runs: Runs) -> None:
    runs.ids[0], before = "new.jpg", runs.ids[0]
    runs.write(runs.captions(wrong=0.4))
    assert "another references" in one_line(runs.compare("base"))
    runs.ids[0] = before
    runs.git("checkout", "--quiet", ".")


def test_a_metric_that_is_missing_or_new_is_said_and_never_passes(runs: Runs) -> None:
    runs.write(runs.captions(wrong=0.4), lambda metrics: metrics.pop("repeated"))
    done = runs.compare("base", "workspace")
    assert done.returncode == 0
    assert "missing" in done.stdout
    done = runs.compare("base", "workspace", "--fail-on", "tolerance")
    assert done.returncode == 2
    assert "repeated is missing in workspace" in one_line(done)
    runs.write(runs.captions(wrong=0.4), named(1.0, "spice"))
    assert "new" in runs.compare("base", "workspace").stdout
    runs.git("checkout", "--quiet", ".")


def test_a_metric_that_is_no_number_is_refused(runs: Runs) -> None:
    runs.write(runs.captions(wrong=0.4))
    path = runs.folder / "reports/metrics.json"
    path.write_text(path.read_text().replace('"cider": ', '"cider": NaN, "was": ', 1))
    runs.lock()
    done = runs.compare("base")
    assert done.returncode == 2
    assert "cider is nan" in one_line(done)
    runs.git("checkout", "--quiet", ".")


HEADER = "image_id,cider,rouge_l,words,closest_reference,matches_1,matches_2,matches_3,matches_4\n"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("metrics.json", "{", "metrics.json of workspace is damaged"),
        ("metrics.json", "{}", "lack something"),
        ("captions.json", "[]", "are not of one run"),
        ("captions.json", '"text"', "lack something"),
        ("scores.csv", "image_id,cider\na,1\n", "has no column 'words'"),
        ("scores.csv", HEADER + "000.jpg,x,1,1,1,1,1,1,1\n", "are not of one run"),
        ("scores.csv", HEADER + "000.jpg,1,1,1,1,1,1,1,1\n" * 2, "two rows of one picture"),
        ("scores.csv", "", "scores.csv of workspace is damaged"),
    ],
)
def test_damaged_reports_are_one_line(runs: Runs, name: str, content: str, said: str) -> None:
    runs.write(runs.captions(wrong=0.4))
    (runs.folder / "reports" / name).write_text(content)
    runs.lock()
    done = runs.compare("base")
    assert done.returncode == 2
    assert said in one_line(done)
    runs.git("checkout", "--quiet", ".")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[", "dvc.lock of workspace is damaged"),
        ("text", "lack something"),
        ("stages: []", "lack something"),
        ("stages: {}", "is not the one that dvc.lock records"),
        ("stages: {evaluate: {outs: [{md5: x}]}}", "lack something"),
    ],
)
def test_a_damaged_lock_is_one_line(runs: Runs, content: str, said: str) -> None:
    (runs.folder / "dvc.lock").write_text(content)
    done = runs.compare("base")
    assert done.returncode == 2
    assert said in one_line(done)
    runs.git("checkout", "--quiet", ".")


def test_a_gate_without_any_rule_is_refused(runs: Runs) -> None:
    text = (runs.folder / "params.yaml").read_text()
    (runs.folder / "params.yaml").write_text(text[: text.index("  tolerance:")] + "  tolerance: {}")
    done = runs.compare("base", "bad", "--fail-on", "tolerance")
    assert done.returncode == 2
    assert "compare.tolerance" in one_line(done)
    runs.git("checkout", "--quiet", ".")


def test_where_there_is_no_git_folders_can_be_compared(runs: Runs, tmp_path: Path) -> None:
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
    """By the digests in dvc.lock, and where those were made to fit, by the scores themselves."""
    path = runs.folder / "reports/scores.csv"
    path.write_text(runs.git("show", "good:reports/scores.csv"))
    assert "not the one that dvc.lock records" in one_line(runs.compare("base"))
    runs.lock()
    assert "are not of one run" in one_line(runs.compare("base"))
    runs.git("checkout", "--quiet", ".")


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
