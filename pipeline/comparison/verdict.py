"""Compare two runs, or groups of runs: what changed, and whether it is worse."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.comparison.paired_bootstrap import SignificanceResult, compare_scores
from pipeline.comparison.run_reports import RunReports
from pipeline.comparison.welch import welch_test
from pipeline.config.schema import CompareConfig
from pipeline.evaluation.reports import Evaluation
from pipeline.metrics.registry import METRICS
from pipeline.runtime.errors import InputError

Runs = Sequence[RunReports]  # of one side
MIN_IMAGES = 6  # with fewer, all of them get better by chance more often than 1 in 20 times


@dataclass(frozen=True)
class MetricChange:
    """A metric on both sides; None where a side lacks it."""

    metric: str
    base: float | None
    head: float | None
    difference: SignificanceResult | None  # None if it is not tested
    spread: tuple[float | None, float | None] = (None, None)  # standard deviations over seeds

    @property
    def higher_is_better(self) -> bool | None:
        return METRICS[self.metric].higher_is_better if self.metric in METRICS else None

    @property
    def change(self) -> float | None:
        return None if self.base is None or self.head is None else self.head - self.base

    @property
    def verdict(self) -> str:
        """Describe the change in a word or two."""
        if self.change is None:
            return "new" if self.base is None else "missing"
        if self.change == 0 and (self.difference is None or self.difference.p == 1):
            return "no change"
        if self.difference is None:
            return "not tested" if self.higher_is_better is not None else ""
        if self.difference.low <= 0 <= self.difference.high:
            return "within chance"
        return "better" if self.gain > 0 else "worse"

    @property
    def gain(self) -> float:
        """The change, positive if it is an improvement."""
        sign = -1 if self.higher_is_better is False else 1
        return sign * (self.change or 0.0)


@dataclass(frozen=True)
class Example:
    """An image whose caption changed."""

    image_id: str
    base: str
    head: str
    base_cider: float
    head_cider: float
    references: Sequence[str]


@dataclass(frozen=True)
class Comparison:
    """The outcome of a comparison."""

    base: str
    head: str
    images: int
    params: Sequence[tuple[str, Any, Any]]  # key, base's, head's; ABSENT where a side lacks it
    changes: Sequence[MetricChange]
    same: int  # images with the same caption on both sides
    better: Sequence[Example]  # the most improved first
    worse: Sequence[Example]
    notes: Sequence[str]
    seeds: tuple[int, int]  # the number of runs on each side
    stale: Sequence[str]  # messages on runs of head whose reports do not belong to their params
    revisions: tuple[Sequence[str], Sequence[str]]  # commits or folders, of base and head


class _Absent:
    def __repr__(self) -> str:
        return "(none)"


ABSENT = _Absent()


def compare(base: Runs, head: Runs, config: CompareConfig, examples: int) -> Comparison:
    """Compare two runs by the paired bootstrap over images, or groups of runs by Welch's t-test.

    Args:
        examples: how many captions of two runs to show at most, of the better and of the worse.

    Raises:
        InputError: the runs were evaluated in different ways.
    """
    runs = [*base, *head]
    _require_comparable(runs)
    images = len(runs[0].evaluation.captions)
    stale_base, stale_head = ([run.stale for run in side if run.stale] for side in (base, head))
    # A stale base does not prevent a comparison: its scores hold.
    notes = list(dict.fromkeys([*(note for run in runs for note in run.notes), *stale_base]))
    same, better, worse = 0, list[Example](), list[Example]()
    tested: dict[str, SignificanceResult] = {}
    is_pair = len(runs) == 2
    if is_pair:
        before, after = base[0].evaluation, head[0].evaluation
        same, better, worse = _compare_captions(before, after, examples)
        if images < MIN_IMAGES:
            notes.append(f"{images} images are too few to tell a difference from chance")
        else:
            tested = compare_scores(
                before.scores,
                after.scores.loc[before.scores.index],
                config.resamples,
                config.confidence,
                config.seed,
            )
    changes = []
    for name in dict.fromkeys(name for run in runs for name in run.metrics):
        old, new = _values(name, base), _values(name, head)
        difference = tested.get(name) if is_pair else welch_test(old, new, config.confidence)
        spread = _stdev(old), _stdev(new)
        changes.append(MetricChange(name, _mean(old), _mean(new), difference, spread))
    if not is_pair and min(len(base), len(head)) < 2:
        notes.append("a side with one run has no variance: no test across seeds")
    elif not is_pair and any(row.change and row.difference is None for row in changes):
        notes.append("a metric that is the same in all runs of each side cannot be tested")
    return Comparison(
        base=", ".join(run.name for run in base),
        head=", ".join(run.name for run in head),
        images=images,
        params=_changed_params(base, head),
        changes=changes,
        same=same,
        better=better,
        worse=worse,
        notes=notes,
        seeds=(len(base), len(head)),
        stale=stale_head,
        revisions=([run.revision for run in base], [run.revision for run in head]),
    )


def _compare_captions(
    base: Evaluation, head: Evaluation, examples: int
) -> tuple[int, list[Example], list[Example]]:
    """Return the number of equal captions, the most improved captions, and the worst."""
    gains = head.scores.loc[base.scores.index, "cider"] - base.scores["cider"]
    gains = gains.sort_values(kind="stable")
    changed = [key for key in gains.index if base.captions[key] != head.captions[key]]
    worse = [key for key in changed if gains[key] < 0][:examples]
    better = [key for key in reversed(changed) if gains[key] > 0][:examples]
    return (
        len(gains) - len(changed),
        [_example(base, head, image_id) for image_id in better],
        [_example(base, head, image_id) for image_id in worse],
    )


def _values(name: str, runs: Runs) -> list[float]:
    """Return a metric of all runs; of none if one lacks it, because that is another group."""
    values = [run.metrics[name] for run in runs if name in run.metrics]
    return values if len(values) == len(runs) else []


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _stdev(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _require_comparable(runs: Runs) -> None:
    """Check that all runs were evaluated in the same way on the same images.

    Raises:
        InputError: two of them were not.
    """
    first = runs[0]
    for other in runs[1:]:
        for name, value in first.protocol.items():
            if other.protocol[name] != value:
                raise InputError(
                    f"cannot compare: {first.name} and {other.name} do not have the same {name} "
                    f"({_brief(value)}; {_brief(other.protocol[name])}); evaluate both in the "
                    "same way"
                )
        if set(first.evaluation.captions) != set(other.evaluation.captions):
            raise InputError(
                f"cannot compare: {first.name} and {other.name} captioned different images; "
                "evaluate both on the same"
            )


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else str(value)
    return text if len(text) <= 160 else f"{text[:160]}…"


def _changed_params(base: Runs, head: Runs) -> list[tuple[str, Any, Any]]:
    """Return (key, base, head) of each param that differs; all values of a side whose own runs
    differ, as their seeds do."""
    keys = sorted({key for run in (*base, *head) for key in run.params})
    rows = [(key, _param(base, key), _param(head, key)) for key in keys]
    return [row for row in rows if row[1] != row[2]]


def _param(runs: Runs, key: str) -> Any:
    values = [run.params.get(key, ABSENT) for run in runs]
    return values[0] if all(value == values[0] for value in values) else values


def _example(base: Evaluation, head: Evaluation, image_id: str) -> Example:
    return Example(
        image_id=image_id,
        base=base.captions[image_id],
        head=head.captions[image_id],
        base_cider=float(base.scores.loc[image_id, "cider"]),
        head_cider=float(head.scores.loc[image_id, "cider"]),
        references=base.references[image_id],
    )
