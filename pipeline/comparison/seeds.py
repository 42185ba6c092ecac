"""Groups of runs that differ by their seed: is a group better, whichever seed one had drawn?"""

import statistics
from collections.abc import Sequence

from pipeline.comparison.bootstrap import Difference
from pipeline.comparison.judge import Change, Comparison, params_that_differ, require_alike
from pipeline.comparison.results import Results
from pipeline.config.compare import CompareConfig


def compare_groups(
    base: Sequence[Results], head: Sequence[Results], config: CompareConfig
) -> Comparison:
    """The means of two groups, and Welch's t-test (Biometrika 1947) across the runs of each.

    With one run on a side there is nothing to test: the scatter of seeds is not known there.

    Raises:
        InputError: the runs were not measured alike.
    """
    require_alike([*base, *head])
    names = [name for name in base[0].metrics if all(name in run.metrics for run in (*base, *head))]
    notes = [note for run in (*base, *head) for note in run.notes]
    if min(len(base), len(head)) < 2:
        notes.append("a side with one run has no scatter: no test across seeds")
    return Comparison(
        base=", ".join(run.name for run in base),
        head=", ".join(run.name for run in head),
        pictures=len(base[0].scores),
        params=params_that_differ(base, head),
        changes=[_change(name, base, head, config.confidence) for name in names],
        same=0,
        better=[],
        worse=[],
        notes=list(dict.fromkeys(notes)),
        seeds=(len(base), len(head)),
    )


def _change(
    name: str, base: Sequence[Results], head: Sequence[Results], confidence: float
) -> Change:
    before, after = ([run.metrics[name] for run in side] for side in (base, head))
    means = statistics.fmean(before), statistics.fmean(after)
    if min(len(before), len(after)) < 2:
        return Change(name, *means, difference=None)
    spread = statistics.stdev(before), statistics.stdev(after)
    return Change(name, *means, _welch(before, after, confidence), spread)


def _welch(base: Sequence[float], head: Sequence[float], confidence: float) -> Difference:
    from scipy.stats import ttest_ind  # late: it takes a second

    change = statistics.fmean(head) - statistics.fmean(base)
    if len({*base}) == len({*head}) == 1:  # no scatter at all: t is not defined
        return Difference(change, change, change, 1.0 if change == 0 else 0.0)
    test = ttest_ind(head, base, equal_var=False)
    interval = test.confidence_interval(confidence)
    return Difference(change, float(interval.low), float(interval.high), float(test.pvalue))
