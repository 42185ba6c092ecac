"""Compare two runs: what changed, and whether it is worse."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pipeline.comparison.paired_bootstrap import SignificanceResult, compare_scores
from pipeline.comparison.run_reports import RunReports
from pipeline.config.schema import CompareConfig
from pipeline.evaluation.reports import Evaluation
from pipeline.metrics.registry import METRICS
from pipeline.runtime.errors import InputError


class FailOn(StrEnum):
    """What counts as worse: a loss beyond a tolerance, or beyond noise."""

    TOLERANCE = "tolerance"
    NOISE = "noise"


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


def compare(base: RunReports, head: RunReports, config: CompareConfig, examples: int) -> Comparison:
    """Compare two runs.

    Args:
        examples: how many captions to show at most, of the better and of the worse ones.

    Raises:
        InputError: the runs were evaluated in different ways.
    """
    require_comparable([base, head])
    before, after = base.evaluation, head.evaluation
    scores, new_scores = before.scores, after.scores.loc[before.scores.index]
    tested: dict[str, SignificanceResult] = {}
    notes = collect_notes([base], [head])
    if len(scores) < MIN_IMAGES:
        notes.append(f"{len(scores)} images are too few to tell a difference from chance")
    else:
        tested = compare_scores(
            scores, new_scores, config.resamples, config.confidence, config.seed
        )
    gains = (new_scores["cider"] - scores["cider"]).sort_values(kind="stable")
    changed = [key for key in gains.index if before.captions[key] != after.captions[key]]
    worse = [key for key in changed if gains[key] < 0][:examples]
    better = [key for key in reversed(changed) if gains[key] > 0][:examples]
    return Comparison(
        base=base.name,
        head=head.name,
        images=len(scores),
        params=changed_params([base], [head]),
        changes=_changes(base.metrics, head.metrics, tested),
        same=len(scores) - len(changed),
        better=[_example(before, after, image_id) for image_id in better],
        worse=[_example(before, after, image_id) for image_id in worse],
        notes=notes,
        seeds=(1, 1),
        stale=stale_runs([head]),
        revisions=([base.revision], [head.revision]),
    )


def stale_runs(runs: Sequence[RunReports]) -> list[str]:
    """Return a message for each run whose reports do not belong to the params beside them."""
    return [run.stale for run in runs if run.stale]


def collect_notes(base: Sequence[RunReports], head: Sequence[RunReports]) -> list[str]:
    """Return caveats that do not prevent a comparison, such as a stale base: its scores hold."""
    notes = [note for run in (*base, *head) for note in run.notes]
    return list(dict.fromkeys([*notes, *stale_runs(base)]))


def require_comparable(runs: Sequence[RunReports]) -> None:
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


def changed_params(
    base: Sequence[RunReports], head: Sequence[RunReports]
) -> list[tuple[str, Any, Any]]:
    """Return (key, base, head) of each param that differs; all values of a side whose own runs
    differ, as their seeds do."""
    keys = sorted({key for run in (*base, *head) for key in run.params})
    rows = [(key, _param(base, key), _param(head, key)) for key in keys]
    return [row for row in rows if row[1] != row[2]]


def _param(runs: Sequence[RunReports], key: str) -> Any:
    values = [run.params.get(key, ABSENT) for run in runs]
    return values[0] if all(value == values[0] for value in values) else values


def _changes(
    base: Mapping[str, float], head: Mapping[str, float], tested: Mapping[str, SignificanceResult]
) -> list[MetricChange]:
    names = [*base, *(name for name in head if name not in base)]
    return [MetricChange(name, base.get(name), head.get(name), tested.get(name)) for name in names]


def _example(base: Evaluation, head: Evaluation, image_id: str) -> Example:
    return Example(
        image_id=image_id,
        base=base.captions[image_id],
        head=head.captions[image_id],
        base_cider=float(base.scores.loc[image_id, "cider"]),
        head_cider=float(head.scores.loc[image_id, "cider"]),
        references=base.references[image_id],
    )


def failures(
    comparison: Comparison, rules: Sequence[FailOn], tolerance: Mapping[str, float]
) -> list[str]:
    """Return what is worse by these rules, a line for each metric.

    `tolerance`: a metric lost more than its tolerance. `noise`: the whole interval of a tested
    metric is below no change; metrics that are never tested, such as `unique_captions`, are held
    to their tolerance.

    Raises:
        InputError: the rules cannot be applied: a run is stale, head lacks a metric that base has,
            a metric with a tolerance is missing, or nothing was tested.
    """
    if not rules:
        return []
    if comparison.stale:
        raise InputError(f"cannot compare: {comparison.stale[0]}")
    if missing := [row.metric for row in comparison.changes if row.verdict == "missing"]:
        raise InputError(
            f"cannot compare: {comparison.head} lacks {', '.join(missing)}, which "
            f"{comparison.base} has; evaluate again"
        )
    if FailOn.NOISE in rules and all(row.difference is None for row in comparison.changes):
        raise InputError(
            "cannot compare beyond noise: nothing could be tested; evaluate on more images, or "
            "give each side two or more runs with different seeds"
        )
    lines, changes = [], {row.metric: row for row in comparison.changes}
    for metric, allowed in tolerance.items():
        change = changes.get(metric) or MetricChange(metric, None, None, None)
        if change.change is None:
            side = comparison.head if change.head is None else comparison.base
            raise InputError(
                f"cannot compare: {metric} is missing in {side}, and compare.tolerance has a rule "
                "for it; evaluate again, or remove the rule"
            )
        by_noise = FailOn.NOISE in rules and change.difference is not None
        by_tolerance = FailOn.TOLERANCE in rules or (
            FailOn.NOISE in rules and change.difference is None
        )
        if by_noise and change.verdict == "worse":
            lines.append(f"{metric} {-change.gain:.2f} worse, beyond chance")
        elif by_tolerance and -change.gain > allowed:
            lines.append(f"{metric} {-change.gain:.2f} worse, more than {allowed:g}")
    return lines
