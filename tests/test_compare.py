"""`showtell compare`: is one run better than another, and is the difference real?"""

from pathlib import Path

import pytest

from tests.conftest import one_line
from tests.helpers.runs import BOTH_RULES, Runs, history_of_runs, metric_of


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return history_of_runs(tmp_path_factory.mktemp("runs") / "repository")


def test_no_change_is_stated(runs: Runs) -> None:
    done = runs.compare("base", "base", *BOTH_RULES)
    assert done.returncode == 0
    assert "No change: all 60 captions are the same." in done.stdout


def test_better_is_better(runs: Runs) -> None:
    done = runs.compare("base", "good", *BOTH_RULES)
    assert done.returncode == 0, done.stderr
    assert "Better: BLEU-4 by" in done.stdout
    assert "train.rnn_type" in done.stdout
    better = done.stdout.split("Better:")[2]
    assert "before: " in better
    assert better.count("reference: ") >= 5  # the references of each image


@pytest.mark.parametrize("rule", ["tolerance", "noise"])
def test_worse_is_one_line_and_exit_code_1(runs: Runs, rule: str) -> None:
    done = runs.compare("base", "bad", "--fail-on", rule)
    assert done.returncode == 1
    assert "worse: bleu_4" in one_line(done)
    assert "Not acceptable: bleu_4" in done.stdout
    assert runs.compare("base", "bad").returncode == 0  # without a rule


def test_a_difference_within_chance_passes(runs: Runs) -> None:
    done = runs.compare("base", "other", "--fail-on", "noise")
    assert done.returncode == 0, done.stderr
    assert "No difference beyond chance: BLEU-4, CIDEr, ROUGE-L." in done.stdout


def test_a_small_drop_is_worse_only_beyond_its_tolerance(runs: Runs, tmp_path: Path) -> None:
    change = metric_of(runs.json("base", "other"), "cider")["change"]
    sides = ("base", "other") if change < 0 else ("other", "base")
    lost = abs(change)
    assert lost > 0.01
    for allowed, code in ((lost + 0.01, 0), (lost - 0.01, 1)):
        runs.write_params(compare={"tolerance": {"cider": allowed}})
        assert runs.compare(*sides, "--fail-on", "tolerance").returncode == code
    runs.restore()


def test_more_repetition_is_worse(runs: Runs) -> None:
    repeating = [[*caption, *caption[:2], *caption[:2]] for caption in runs.captions(wrong=0.4)]
    runs.write(repeating)
    assert metric_of(runs.json("base"), "repeated")["change"] > 50
    assert "repeated" in one_line(runs.compare("base", "--fail-on", "tolerance"))
    runs.restore()


def test_json_has_everything(runs: Runs) -> None:
    shown = runs.json("base", "good")
    assert (shown["base"], shown["head"], shown["images"]) == ("base", "good", 60)
    assert shown["params"] == [{"key": "train.rnn_type", "base": "lstm", "head": "gru"}]
    cider = metric_of(shown, "cider")
    assert cider["change"] == pytest.approx(cider["head"] - cider["base"])
    assert cider["difference"]["low"] < cider["change"] < cider["difference"]["high"]
    assert cider["verdict"] == "better"
    assert cider["difference"]["p"] < 0.01
    gains = [example["head_cider"] - example["base_cider"] for example in shown["better"]]
    assert gains == sorted(gains, reverse=True)
    assert len(shown["better"]) == 3


def test_a_comparison_is_deterministic(runs: Runs) -> None:
    assert runs.compare("base", "good").stdout == runs.compare("base", "good").stdout


def test_the_default_is_the_workspace_with_the_params_of_its_run(runs: Runs) -> None:
    runs.write_params(train={"dropout": 0.7})  # edited since, not run
    shown = runs.json("other")
    assert shown["head"] == "workspace"
    assert shown["params"] == []
    (reason,) = shown["stale"]
    assert "params.yaml of workspace has changed since the run (train.dropout)" in reason
    assert "\nStale: params.yaml of workspace" in runs.compare("other").stdout
    done = runs.compare("other", "--fail-on", "noise")  # params without a run cannot pass
    assert done.returncode == 2
    assert "has changed since the run" in one_line(done)
    assert runs.compare("workspace", "other", "--fail-on", "noise").returncode == 0
    runs.restore()


def test_a_float_is_the_same_however_it_is_written(runs: Runs) -> None:
    """A user writes params.yaml, and DVC writes dvc.lock."""
    path = runs.folder / "params.yaml"
    path.write_text(path.read_text().replace("learning_rate: 0.01", "learning_rate: 1e-2"))
    assert "1e-2" in path.read_text()
    assert runs.json("other")["stale"] == []
    runs.restore()


def test_untrusted_text_is_neither_markup_nor_terminal_control(tmp_path: Path) -> None:
    runs = Runs(tmp_path / "repository")
    runs.ids[0] = "<img src=x>|`.jpg"
    first, second = runs.captions(wrong=0.1), runs.captions(wrong=0.1)
    first[0] = ["\x1b[2J", "<script>", "x|y", "@someone"]
    second[0] = runs.references[0][0]
    runs.write(first)
    runs.commit("first")
    runs.write(second)
    markdown = runs.compare("first", "--md").stdout
    assert "\\|\\`.jpg" in markdown
    assert "<img" not in markdown
    assert "<script>" not in markdown
    assert "@someone" not in markdown.replace("\\@someone", "")
    assert "\x1b" not in runs.compare("first").stdout + markdown


def test_markdown_has_tables(runs: Runs) -> None:
    lines = runs.compare("base", "good", "--md").stdout.splitlines()
    assert lines[0] == "### base → good"
    assert "| param | base | good |" in lines
    assert any(line.startswith("| CIDEr | ") and line.endswith(" better |") for line in lines)
