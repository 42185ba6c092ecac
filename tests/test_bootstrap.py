"""Whether a difference is real: a paired bootstrap over images, a t-test over seeds."""

import json
import math
import random
import re
import statistics
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.comparison.paired_bootstrap import SignificanceResult, compare_scores
from pipeline.evaluation import bootstrap
from pipeline.evaluation.bootstrap import resample_counts, score_intervals
from pipeline.metrics.registry import TESTED_NAMES
from pipeline.metrics.scores import bleu
from tests.conftest import one_line
from tests.helpers.runs import BOTH_RULES, Runs, history_of_runs, metric_of


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return history_of_runs(tmp_path_factory.mktemp("runs") / "repository")


def test_a_resample_draws_as_many_images_as_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(resample_counts(7, 50, seed=3)))
    assert whole.shape == (50, 7)
    assert (whole.sum(axis=1) == 7).all()
    monkeypatch.setattr(bootstrap, "MAX_CELLS", 20)  # two rows per chunk
    assert (np.concatenate(list(resample_counts(7, 50, seed=3))) == whole).all()


def test_intervals_of_means_match_the_normal_distribution() -> None:
    rng = np.random.default_rng(0)
    means = np.round(rng.normal(50, 10, (400, 1)), 4)
    counts = np.tile([10, 10, 8, 5, 3, 1], (400, 1))
    *bleu, (low, high) = score_intervals(counts, means, resamples=4000, seed=0)
    assert (low + high) / 2 == pytest.approx(means.mean(), abs=0.1)
    assert high - low == pytest.approx(2 * 1.96 * means.std() / 20, rel=0.05)
    assert all(low == pytest.approx(high) for low, high in bleu)  # all captions are equal


def test_the_change_is_that_of_the_metrics(runs: Runs) -> None:
    comparison = runs.json("base", "good")
    for name in TESTED_NAMES:
        row = metric_of(comparison, name)
        assert row["difference"]["change"] == pytest.approx(row["change"], abs=2e-3)


def reports_of(runs: Runs, tag: str) -> tuple[list[list[str]], pd.DataFrame]:
    captions = json.loads(runs.git("show", f"{tag}:reports/captions.json"))
    runs.git("checkout", "--quiet", tag, "--", "reports")
    scores = pd.read_csv(runs.folder / "reports/scores.csv")
    runs.git("checkout", "--quiet", "HEAD", "--", "reports")
    return [row["caption"].split() for row in captions], scores


def differences(runs: Runs, *tags: str) -> dict[str, SignificanceResult]:
    base, head = (reports_of(runs, tag)[1] for tag in tags)
    return compare_scores(base, head, resamples=20_000, confidence=0.95, seed=3)


def test_the_interval_of_a_mean_is_the_textbooks(runs: Runs) -> None:
    gains = reports_of(runs, "other")[1]["cider"] - reports_of(runs, "base")[1]["cider"]
    error = 1.96 * gains.std(ddof=0) / len(gains) ** 0.5
    cider = differences(runs, "base", "other")["cider"]
    assert cider.low == pytest.approx(gains.mean() - error, abs=0.15 * error)
    assert cider.high == pytest.approx(gains.mean() + error, abs=0.15 * error)


def test_bleu_is_that_of_the_drawn_captions(runs: Runs) -> None:
    """Compare with drawing captions and scoring them with the scorer itself."""
    base, head = (reports_of(runs, tag)[0] for tag in ("base", "other"))
    rng, changes = random.Random(0), []
    for _ in range(200):
        drawn = rng.choices(range(60), k=60)
        refs = [runs.references[i] for i in drawn]
        scores = [bleu([side[i] for i in drawn], refs)[3] for side in (base, head)]
        changes.append(scores[1] - scores[0])
    bleu_4 = differences(runs, "base", "other")["bleu_4"]
    spread = statistics.stdev(changes)
    quantiles = statistics.quantiles(changes, n=40)
    assert bleu_4.low == pytest.approx(quantiles[0], abs=0.5 * spread)
    assert bleu_4.high == pytest.approx(quantiles[-1], abs=0.5 * spread)


def test_both_runs_draw_the_same_images(runs: Runs) -> None:
    """If each run drew its own images, those that are hard for both would widen the interval."""
    captions = reports_of(runs, "base")[0]
    runs.write([*runs.captions(wrong=0.0)[:2], *captions[2:]])
    cider = metric_of(runs.json("base"), "cider")
    scores = [reports_of(runs, tag)[1]["cider"] for tag in ("base", "HEAD")]
    unpaired = 1.96 * sum(side.var() / len(side) for side in scores) ** 0.5
    half = (cider["difference"]["high"] - cider["difference"]["low"]) / 2
    assert half < 0.6 * unpaired
    runs.restore()


def test_groups_of_seeds(tmp_path: Path) -> None:
    runs = Runs(tmp_path / "repository")
    for seed in range(3):
        for name, wrong in (("base", 0.4), ("good", 0.15)):
            runs.write(runs.captions(wrong, seed), train={"seed": seed})
            runs.commit(f"{name}-{seed}")
    sides = ["base-0,base-1,base-2", "good-0,good-1,good-2"]
    cider = metric_of(runs.json(*sides), "cider")
    pairs = [metric_of(runs.json(f"base-{i}", f"good-{i}"), "cider") for i in range(3)]
    for side, i in (("base", 0), ("head", 1)):
        values = [row[side] for row in pairs]
        assert cider[side] == pytest.approx(statistics.fmean(values))
        assert cider["spread"][i] == pytest.approx(statistics.stdev(values))
    assert cider["difference"]["p"] < 0.05
    assert cider["difference"]["low"] < cider["change"] < cider["difference"]["high"]
    assert cider["verdict"] == "better"
    assert runs.compare(*sides, *BOTH_RULES).returncode == 0
    assert runs.compare(*reversed(sides), "--fail-on", "noise").returncode == 1
    before, after = ([row[side] for row in pairs] for side in ("base", "head"))
    assert cider["difference"]["p"] == pytest.approx(students_p(before, after), rel=1e-3)
    single = runs.json("base-0", sides[1])
    assert all(row["difference"] is None for row in single["metrics"])
    assert "no test across seeds" in single["notes"][0]
    done = runs.compare("base-0", sides[1], "--fail-on", "noise")
    assert done.returncode == 2
    assert "nothing could be tested" in one_line(done)
    # One run under two names would count as two that agree.
    runs.git("tag", "again", "base-0")
    done = runs.compare("base-0,again", sides[1])
    assert done.returncode == 2
    assert "'base-0' and 'again' are the same run" in one_line(done)
    runs.write(runs.captions(0.15), lambda metrics: metrics.pop("cider"))
    lacking = runs.compare(sides[0], f"{sides[1]},workspace")
    assert re.search(r"CIDEr .* — .* missing", lacking.stdout)
    assert runs.compare(sides[0], f"{sides[1]},workspace", *BOTH_RULES).returncode == 2


def students_p(base: list[float], head: list[float]) -> float:
    """Welch's test by the textbook, with the tail of Student's density summed in small steps."""
    parts = [statistics.variance(side) / len(side) for side in (base, head)]
    t = abs(statistics.fmean(head) - statistics.fmean(base)) / sum(parts) ** 0.5
    dof = sum(parts) ** 2 / sum(part**2 / 2 for part in parts)  # three runs per side
    scale = math.gamma((dof + 1) / 2) / math.gamma(dof / 2) / (dof * math.pi) ** 0.5
    steps = np.linspace(0, t, 100_001)
    density = scale * (1 + steps**2 / dof) ** (-(dof + 1) / 2)
    return float(1 - 2 * np.trapezoid(density, steps))
