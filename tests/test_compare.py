"""`showtell compare`: is one run better than another, and is the difference real?"""

import json
import random
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipeline.comparison.bootstrap import Difference, compare_scores
from pipeline.scoring.metrics import bleu
from tests.conftest import one_line
from tests.runs import Runs

BOTH = ("--fail-on", "tolerance", "--fail-on", "noise")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Tags: `base`; `good` and `bad`, plainly better and worse; `other`, as good by other words."""
    made = Runs(tmp_path_factory.mktemp("runs") / "repository")
    made.write(made.captions(wrong=0.4))
    made.commit("base")
    made.write(made.captions(wrong=0.15), train={"cell": "gru"})
    made.commit("good")
    made.write(made.captions(wrong=0.7))
    made.commit("bad")
    made.write(made.captions(wrong=0.4, seed=1))
    made.commit("other")
    return made


@pytest.fixture
def metric(runs: Runs) -> Callable[..., dict[str, Any]]:
    def find(name: str, *revisions: str) -> dict[str, Any]:
        (found,) = (one for one in runs.json(*revisions)["metrics"] if one["metric"] == name)
        return dict(found)

    return find


def test_no_change_is_said_in_words(runs: Runs) -> None:
    done = runs.compare("base", "base", *BOTH)
    assert done.returncode == 0
    assert "No change: all 60 captions are the same." in done.stdout


def test_better_is_better(runs: Runs) -> None:
    done = runs.compare("base", "good", *BOTH)
    assert done.returncode == 0, done.stderr
    assert "Better: BLEU-4 by" in done.stdout
    assert "train.cell" in done.stdout
    better = done.stdout.split("Better:")[2]
    assert "before: " in better
    assert better.count("of: ") >= 5  # the references of each picture


@pytest.mark.parametrize("rule", ["tolerance", "noise"])
def test_worse_is_one_line_and_exit_code_1(runs: Runs, rule: str) -> None:
    done = runs.compare("base", "bad", "--fail-on", rule)
    assert done.returncode == 1
    assert "worse: bleu_4" in one_line(done)
    assert "Not acceptable: bleu_4" in done.stdout
    assert runs.compare("base", "bad").returncode == 0  # no rule was asked for


def test_what_chance_does_is_no_failure_beyond_noise(runs: Runs) -> None:
    done = runs.compare("base", "other", "--fail-on", "noise")
    assert done.returncode == 0, done.stderr
    assert "No difference beyond chance: BLEU-4, CIDEr, ROUGE-L." in done.stdout


def test_a_small_drop_is_worse_only_beyond_its_tolerance(runs: Runs, tmp_path: Path) -> None:
    changes = {one["metric"]: one["change"] for one in runs.json("base", "other")["metrics"]}
    sides = ("base", "other") if changes["cider"] < 0 else ("other", "base")
    lost = abs(changes["cider"])
    assert lost > 0.01
    for allowed, code in ((lost + 0.01, 0), (lost - 0.01, 1)):
        runs.write_params(compare={"tolerance": {"cider": allowed}})
        assert runs.compare(*sides, "--fail-on", "tolerance").returncode == code
    runs.git("checkout", "--quiet", ".")


def test_more_repetition_is_worse_and_less_is_better(runs: Runs) -> None:
    again = [[*caption, *caption[:2], *caption[:2]] for caption in runs.captions(wrong=0.4)]
    runs.write(again)
    (found,) = (one for one in runs.json("base")["metrics"] if one["metric"] == "repeated")
    assert found["change"] > 50
    assert "repeated" in one_line(runs.compare("base", "--fail-on", "tolerance"))
    runs.git("checkout", "--quiet", ".")


def test_json_has_all_of_it(runs: Runs) -> None:
    shown = runs.json("base", "good")
    assert (shown["base"], shown["head"], shown["pictures"]) == ("base", "good", 60)
    assert shown["params"] == [{"key": "train.cell", "base": "lstm", "head": "gru"}]
    cider = next(one for one in shown["metrics"] if one["metric"] == "cider")
    assert cider["change"] == pytest.approx(cider["head"] - cider["base"])
    assert cider["difference"]["low"] < cider["change"] < cider["difference"]["high"]
    assert cider["verdict"] == "better"
    assert cider["difference"]["p"] < 0.01
    gains = [one["head_cider"] - one["base_cider"] for one in shown["better"]]
    assert gains == sorted(gains, reverse=True)
    assert len(shown["better"]) == 3


def test_the_same_question_gets_the_same_answer(runs: Runs) -> None:
    assert runs.compare("base", "good").stdout == runs.compare("base", "good").stdout


def test_against_the_workspace_by_default_and_params_of_the_run_not_of_the_file(
    runs: Runs,
) -> None:
    runs.write_params(train={"dropout": 0.7})  # edited since, not run
    shown = runs.json("other")
    assert shown["head"] == "workspace"
    assert shown["params"] == []
    (note,) = shown["notes"]
    assert "params.yaml has changed since the run (train.dropout)" in note
    runs.git("checkout", "--quiet", ".")


# Statistics


def test_the_change_is_that_of_the_metrics(metric: Callable[..., dict[str, Any]]) -> None:
    for name in ("bleu_4", "cider", "rouge_l"):
        found = metric(name, "base", "good")
        assert found["difference"]["change"] == pytest.approx(found["change"], abs=2e-3)


def of(runs: Runs, tag: str) -> tuple[list[list[str]], pd.DataFrame]:
    captions = json.loads(runs.git("show", f"{tag}:reports/captions.json"))
    runs.git("checkout", "--quiet", tag, "--", "reports")
    scores = pd.read_csv(runs.folder / "reports/scores.csv")
    runs.git("checkout", "--quiet", "HEAD", "--", "reports")
    return [one["caption"].split() for one in captions], scores


def differences(runs: Runs, *tags: str) -> dict[str, Difference]:
    base, head = (of(runs, tag)[1] for tag in tags)
    return compare_scores(base, head, resamples=20_000, confidence=0.95, seed=3)


def test_the_interval_of_a_mean_is_the_textbooks(runs: Runs) -> None:
    gains = of(runs, "other")[1]["cider"] - of(runs, "base")[1]["cider"]
    error = 1.96 * gains.std(ddof=0) / len(gains) ** 0.5
    found = differences(runs, "base", "other")["cider"]
    assert found.low == pytest.approx(gains.mean() - error, abs=0.15 * error)
    assert found.high == pytest.approx(gains.mean() + error, abs=0.15 * error)


def test_bleu_is_that_of_the_drawn_captions(runs: Runs) -> None:
    """Against drawing captions and scoring them with the scorer itself."""
    base, head = (of(runs, tag)[0] for tag in ("base", "other"))
    chance, draws = random.Random(0), []
    for _ in range(200):
        drawn = chance.choices(range(60), k=60)
        refs = [runs.references[i] for i in drawn]
        scores = [bleu([side[i] for i in drawn], refs)[3] for side in (base, head)]
        draws.append(scores[1] - scores[0])
    found = differences(runs, "base", "other")["bleu_4"]
    spread = statistics.stdev(draws)
    low, high = statistics.quantiles(draws, n=40)[0], statistics.quantiles(draws, n=40)[-1]
    assert found.low == pytest.approx(low, abs=0.5 * spread)
    assert found.high == pytest.approx(high, abs=0.5 * spread)


def test_pairs_count(runs: Runs) -> None:
    """Were pictures drawn for each run apart, what is hard for both would widen the interval."""
    captions = of(runs, "base")[0]
    runs.write([*runs.captions(wrong=0.0)[:2], *captions[2:]])
    cider = next(one for one in runs.json("base")["metrics"] if one["metric"] == "cider")
    scores = [side["cider"] for side in (of(runs, "base")[1], of(runs, "HEAD")[1])]
    apart = 1.96 * sum(side.var() / len(side) for side in scores) ** 0.5
    half = (cider["difference"]["high"] - cider["difference"]["low"]) / 2
    assert half < 0.6 * apart
    runs.git("checkout", "--quiet", ".")


def test_groups_of_seeds(tmp_path: Path) -> None:
    runs = Runs(tmp_path / "repository")
    for seed in range(3):
        for name, wrong in (("base", 0.4), ("good", 0.15)):
            runs.write(runs.captions(wrong, seed), train={"seed": seed})
            runs.commit(f"{name}-{seed}")
    sides = ["base-0,base-1,base-2", "good-0,good-1,good-2"]
    shown = runs.json(*sides)
    cider = next(one for one in shown["metrics"] if one["metric"] == "cider")
    single = [
        next(m for m in runs.json(f"base-{s}", f"good-{s}")["metrics"] if m["metric"] == "cider")
        for s in range(3)
    ]
    for side, i in (("base", 0), ("head", 1)):
        values = [one[side] for one in single]
        assert cider[side] == pytest.approx(statistics.fmean(values))
        assert cider["spread"][i] == pytest.approx(statistics.stdev(values))
    assert cider["difference"]["p"] < 0.05
    assert cider["difference"]["low"] < cider["change"] < cider["difference"]["high"]
    assert cider["verdict"] == "better"
    assert runs.compare(*sides, *BOTH).returncode == 0
    assert runs.compare(*reversed(sides), "--fail-on", "noise").returncode == 1
    alone = runs.json("base-0", sides[1])
    assert all(one["difference"] is None for one in alone["metrics"])
    assert "no test across seeds" in alone["notes"][0]


# What cannot be compared


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


def test_other_pictures_and_other_references_are_refused(runs: Runs, tmp_path: Path) -> None:
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


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("metrics.json", "{", "metrics.json of workspace is damaged"),
        ("metrics.json", "{}", "lack something"),
        ("captions.json", "[]", "are not of one run"),
        ("captions.json", '"text"', "lack something"),
        ("scores.csv", "image_id,cider\na,1\n", "has no column 'words'"),
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


# What is shown where


def test_text_from_outside_is_no_markup_and_steers_no_terminal(tmp_path: Path) -> None:
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
