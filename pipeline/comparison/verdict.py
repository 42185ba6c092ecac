"""From two runs' results to what changed, and whether it is worse."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import pandas as pd

from pipeline.comparison.paired_bootstrap import TestResult, compare_scores
from pipeline.comparison.run_reports import RunReports
from pipeline.config.schema import CompareConfig
from pipeline.metrics.registry import METRICS
from pipeline.runtime.errors import InputError


class FailOn(StrEnum):
    """What counts as worse: by more than a tolerance, or by more than noise."""

    TOLERANCE = "tolerance"
    NOISE = "noise"


FEWEST = 6  # images: of fewer, all get better by chance more often than once in 20 times


@dataclass(frozen=True)
class MetricChange:
    """One metric on both sides; None where a side does not have it."""

    metric: str
    base: float | None
    head: float | None
    difference: TestResult | None  # where it could be tested
    # Standard deviations, of a side with several seeds.
    spread: tuple[float | None, float | None] = (None, None)

    @property
    def higher_is_better(self) -> bool | None:
        known = METRICS.get(self.metric)
        return None if known is None else known.higher_is_better

    @property
    def change(self) -> float | None:
        return None if self.base is None or self.head is None else self.head - self.base

    @property
    def verdict(self) -> str:
        """In words."""
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
        """The change, positive where it is for the better."""
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
    """All that is shown."""

    base: str
    head: str
    images: int
    params: Sequence[tuple[str, Any, Any]]  # key, base's, head's; ABSENT where a side lacks it
    changes: Sequence[MetricChange]
    same: int  # captions that are the same on both sides
    better: Sequence[Example]  # the most improved first
    worse: Sequence[Example]
    notes: Sequence[str]
    seeds: tuple[int, int]  # runs a side
    stale: Sequence[str]  # runs of head that are not of the params that lie beside them
    revisions: tuple[Sequence[str], Sequence[str]]  # commits or folders, of base and head


class _Absent:
    def __repr__(self) -> str:
        return "(none)"


ABSENT = _Absent()


def compare(base: RunReports, head: RunReports, config: CompareConfig, examples: int) -> Comparison:
    """Two runs.

    Args:
        examples: how many captions to show at most, better ones and worse ones.

    Raises:
        InputError: they were not measured alike.
    """
    require_comparable([base, head])
    ids = list(base.scores.index)
    theirs, ours = base.scores, head.scores.loc[ids]
    tested: dict[str, TestResult] = {}
    notes = notes_of([base], [head])
    if len(ids) < FEWEST:
        notes.append(f"{len(ids)} images are too few to tell a difference from chance")
    else:
        tested = compare_scores(theirs, ours, config.resamples, config.confidence, config.seed)
    gains = (ours["cider"] - theirs["cider"]).sort_values(kind="stable")
    changed = [one for one in gains.index if base.captions[one] != head.captions[one]]
    worse = [one for one in changed if gains[one] < 0][:examples]
    better = [one for one in reversed(changed) if gains[one] > 0][:examples]
    return Comparison(
        *(base.name, head.name, len(ids)),
        params=params_that_differ([base], [head]),
        changes=_changes(base.metrics, head.metrics, tested),
        same=len(ids) - len(changed),
        better=[_example(base, head, one) for one in better],
        worse=[_example(base, head, one) for one in worse],
        notes=notes,
        seeds=(1, 1),
        stale=stale([head]),
        revisions=([base.revision], [head.revision]),
    )


def stale(runs: Sequence[RunReports]) -> list[str]:
    return [run.stale for run in runs if run.stale]


def notes_of(base: Sequence[RunReports], head: Sequence[RunReports]) -> list[str]:
    """What is no ground to refuse: that base is stale takes nothing from what was measured."""
    own = [note for run in (*base, *head) for note in run.notes]
    return list(dict.fromkeys([*own, *stale(base)]))


def require_comparable(runs: Sequence[RunReports]) -> None:
    """
    Raises:
        InputError: two of them were not measured by the same yardstick.
    """
    first = runs[0]
    for other in runs[1:]:
        unlike = [name for name, value in first.terms.items() if other.terms[name] != value]
        if unlike:
            name = unlike[0]
            raise InputError(
                f"cannot compare: {first.name} and {other.name} have not the same {name} "
                f"({_brief(first.terms[name])}; {_brief(other.terms[name])}); evaluate both alike"
            )
        if set(first.scores.index) != set(other.scores.index):
            raise InputError(
                f"cannot compare: {first.name} and {other.name} captioned other images; "
                "evaluate both on the same"
            )


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else str(value)
    return text if len(text) <= 160 else f"{text[:160]}…"


def params_that_differ(
    base: Sequence[RunReports], head: Sequence[RunReports]
) -> list[tuple[str, Any, Any]]:
    """By key; where a side's own runs differ (seeds do), all of its values."""
    keys = sorted({key for run in (*base, *head) for key in run.params})
    sides = [(key, _values(base, key), _values(head, key)) for key in keys]
    return [one for one in sides if one[1] != one[2]]


def _values(runs: Sequence[RunReports], key: str) -> Any:
    values = [run.params.get(key, ABSENT) for run in runs]
    alike = all(value == values[0] for value in values)
    return values[0] if alike else values


def _changes(
    base: Mapping[str, float], head: Mapping[str, float], tested: Mapping[str, TestResult]
) -> list[MetricChange]:
    names = [*base, *(name for name in head if name not in base)]
    return [MetricChange(name, base.get(name), head.get(name), tested.get(name)) for name in names]


def _example(base: RunReports, head: RunReports, one: str) -> Example:
    scores: list[pd.DataFrame] = [base.scores, head.scores]
    before, after = (float(side.loc[one, "cider"]) for side in scores)
    return Example(one, base.captions[one], head.captions[one], before, after, base.references[one])


def failures(
    comparison: Comparison, rules: Sequence[FailOn], tolerance: Mapping[str, float]
) -> list[str]:
    """What is worse by these rules, a line each.

    `tolerance`: a metric that has one lost more than it. `noise`: the interval of a tested metric
    lies below no change as a whole; metrics that are never tested
    (`unique_captions`, say) are held to their tolerance.

    Raises:
        InputError: the rules cannot be applied: a run is stale, head lacks a metric that base has,
            a metric that has a tolerance is missing, or nothing could be tested.
    """
    if not rules:
        return []
    if comparison.stale:
        raise InputError(f"cannot compare: {comparison.stale[0]}")
    if lost := [one.metric for one in comparison.changes if one.verdict == "missing"]:
        raise InputError(
            f"cannot compare: {comparison.head} lacks {', '.join(lost)}, which {comparison.base} "
            "has; evaluate again"
        )
    if FailOn.NOISE in rules and all(one.difference is None for one in comparison.changes):
        raise InputError(
            "cannot compare beyond noise: nothing could be tested; evaluate on more images, or "
            "give each side two runs or more, of other seeds"
        )
    found, changes = [], {one.metric: one for one in comparison.changes}
    for metric, allowed in tolerance.items():
        change = changes.get(metric) or MetricChange(metric, None, None, None)
        if change.change is None:
            side = comparison.head if change.head is None else comparison.base
            raise InputError(
                f"cannot compare: {metric} is missing in {side}, and compare.tolerance has a rule "
                "for it; evaluate again, or take the rule out"
            )
        by_noise = FailOn.NOISE in rules and change.difference is not None
        by_tolerance = FailOn.TOLERANCE in rules or (
            FailOn.NOISE in rules and change.difference is None
        )
        if by_noise and change.verdict == "worse":
            found.append(f"{metric} {-change.gain:.2f} worse, beyond chance")
        elif by_tolerance and -change.gain > allowed:
            found.append(f"{metric} {-change.gain:.2f} worse, more than {allowed:g}")
    return found
