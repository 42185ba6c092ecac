"""Whether a difference is real: over images by a paired bootstrap, over seeds by a t-test."""

import json
import math
import random
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline.comparison.paired_bootstrap import TestResult, compare_scores
from pipeline.metrics.scores import bleu
from tests.conftest import one_line
from tests.runs import BOTH, Runs, history_of_runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return history_of_runs(tmp_path_factory.mktemp("runs") / "repository")


@pytest.fixture
def metric(runs: Runs) -> Callable[..., dict[str, Any]]:
    def find(name: str, *revisions: str) -> dict[str, Any]:
        (found,) = (one for one in runs.json(*revisions)["metrics"] if one["metric"] == name)
        return dict(found)

    return find


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


def differences(runs: Runs, *tags: str) -> dict[str, TestResult]:
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
    rng, draws = random.Random(0), []
    for _ in range(200):
        drawn = rng.choices(range(60), k=60)
        refs = [runs.references[i] for i in drawn]
        scores = [bleu([side[i] for i in drawn], refs)[3] for side in (base, head)]
        draws.append(scores[1] - scores[0])
    found = differences(runs, "base", "other")["bleu_4"]
    pick_evenly = statistics.stdev(draws)
    low, high = statistics.quantiles(draws, n=40)[0], statistics.quantiles(draws, n=40)[-1]
    assert found.low == pytest.approx(low, abs=0.5 * pick_evenly)
    assert found.high == pytest.approx(high, abs=0.5 * pick_evenly)


def test_pairs_count(runs: Runs) -> None:
    """Were images drawn for each run apart, what is hard for both would widen the interval."""
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
    before, after = ([one[side] for one in single] for side in ("base", "head"))
    assert cider["difference"]["p"] == pytest.approx(students_p(before, after), rel=1e-3)
    alone = runs.json("base-0", sides[1])
    assert all(one["difference"] is None for one in alone["metrics"])
    assert "no test across seeds" in alone["notes"][0]
    done = runs.compare("base-0", sides[1], "--fail-on", "noise")
    assert done.returncode == 2
    assert "nothing could be tested" in one_line(done)
    # One run under two names would pass for two that agree.
    runs.git("tag", "again", "base-0")
    done = runs.compare("base-0,again", sides[1])
    assert done.returncode == 2
    assert "'base-0' and 'again' are the same run" in one_line(done)
    runs.write(runs.captions(0.15), lambda metrics: metrics.pop("cider"))
    lacking = runs.compare(sides[0], f"{sides[1]},workspace")
    assert re.search(r"CIDEr .* — .* missing", lacking.stdout)
    assert runs.compare(sides[0], f"{sides[1]},workspace", *BOTH).returncode == 2


def students_p(base: list[float], head: list[float]) -> float:
    """Welch's test by the textbook, the tail of Student's density summed up in small steps."""
    parts = [statistics.variance(side) / len(side) for side in (base, head)]
    t = abs(statistics.fmean(head) - statistics.fmean(base)) / sum(parts) ** 0.5
    freedom = sum(parts) ** 2 / sum(part**2 / 2 for part in parts)  # three runs a side
    scale = math.gamma((freedom + 1) / 2) / math.gamma(freedom / 2) / (freedom * math.pi) ** 0.5
    steps = np.linspace(0, t, 100_001)
    density = scale * (1 + steps**2 / freedom) ** (-(freedom + 1) / 2)
    return float(1 - 2 * np.trapezoid(density, steps))
