"""A comparison for a terminal, for Markdown and as JSON."""

import html
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pipeline.comparison.verdict import ABSENT, Comparison, Example, MetricChange
from pipeline.config.schema import CompareConfig
from pipeline.metrics.registry import METRICS, TESTED_NAMES
from pipeline.runtime.errors import sanitize


def as_text(comparison: Comparison, failed: Sequence[str], confidence: float) -> str:
    """For a terminal."""
    return "\n".join(_lines(comparison, failed, confidence, markdown=False))


def as_markdown(comparison: Comparison, failed: Sequence[str], confidence: float) -> str:
    """For a pull request or a step summary; text from outside cannot become markup."""
    return "\n".join(_lines(comparison, failed, confidence, markdown=True))


def as_json(comparison: Comparison, failed: Sequence[str], config: CompareConfig) -> str:
    """For programs: numbers as they are, null where there is none."""
    content = {
        "base": comparison.base,
        "head": comparison.head,
        "revisions": {
            side: list(runs)
            for side, runs in zip(("base", "head"), comparison.revisions, strict=True)
        },
        "images": comparison.images,
        "confidence": config.confidence,
        "resamples": config.resamples,
        "seed": config.seed,
        "runs": list(comparison.seeds),
        "summary": summary(comparison),
        "params": [
            {"key": key, "base": _known(base), "head": _known(head)}
            for key, base, head in comparison.params
        ],
        "metrics": [
            {**asdict(one), "change": one.change, "verdict": one.verdict}
            for one in comparison.changes
        ],
        "same_captions": comparison.same,
        "better": [asdict(one) for one in comparison.better],
        "worse": [asdict(one) for one in comparison.worse],
        "stale": list(comparison.stale),
        "notes": list(comparison.notes),
        "failed": list(failed),
    }
    return json.dumps(content, indent=2, ensure_ascii=True)


def summary(comparison: Comparison) -> str:
    """The outcome in a sentence or two."""
    parts = []
    for verdict in ("missing", "new"):
        names = [_name(one) for one in comparison.changes if one.verdict == verdict]
        if names:
            parts.append(f"{verdict.capitalize()} in head: {', '.join(names)}.")
    if comparison.seeds == (1, 1) and comparison.same == comparison.images:
        return " ".join([f"No change: all {comparison.images:,} captions are the same.", *parts])
    known = [one for one in comparison.changes if one.change is not None]
    tested = [one for one in known if one.difference is not None]
    for verdict in ("better", "worse"):
        names = [f"{_name(one)} by {abs(one.gain):.2f}" for one in _headline(tested, verdict)]
        if names:
            parts.append(f"{verdict.capitalize()}: {', '.join(names)}.")
    rng = [_name(one) for one in _headline(tested, "within chance", "no change")]
    if rng:
        parts.append(f"No difference beyond chance: {', '.join(rng)}.")
    return " ".join(parts if tested else [*parts, "Nothing could be tested."])


def _headline(changes: Sequence[MetricChange], *verdicts: str) -> list[MetricChange]:
    return [one for one in changes if one.verdict in verdicts and one.metric in TESTED_NAMES]


def _lines(
    comparison: Comparison, failed: Sequence[str], confidence: float, markdown: bool
) -> list[str]:
    clean = markdown_text if markdown else _plain
    base, head = clean(comparison.base), clean(comparison.head)
    title = f"{base} → {head}"
    strong = "**" if markdown else ""
    lines = [f"### {title}" if markdown else title, ""]
    for why in comparison.stale:
        lines += [f"{strong}Stale:{strong} {clean(why)}.", ""]
    lines += [summary(comparison), ""]
    if failed:
        lines += [f"{strong}Not acceptable:{strong} {'; '.join(failed)}.", ""]
    if comparison.params:
        rows = [[clean(key), clean(_shown(a)), clean(_shown(b))] for key, a, b in comparison.params]
        lines += [*_table(["param", base, head], rows, markdown), ""]
    elif comparison.same < comparison.images:
        lines += ["No param differs.", ""]
    across = comparison.seeds != (1, 1)
    tests = f"{100 * confidence:.6g} % interval"
    header = ["", base, head, "change", tests, "p", ""]
    lines += [*_table(header, [_row(one) for one in comparison.changes], markdown), ""]
    scale = "Scores x100."
    if across:
        tested = any(one.difference for one in comparison.changes)
        test = "; Welch's t-test across them" if tested else ""
        lines.append(f"{scale} Mean ± standard deviation of the runs{test}.")
    else:
        lines += [
            f"{comparison.same:,} of {comparison.images:,} captions are the same.",
            f"{scale} The intervals are over images (paired bootstrap). What another seed would "
            "change they do not say: compare groups of runs for that.",
        ]
    for label, examples in (("Better", comparison.better), ("Worse", comparison.worse)):
        if examples:
            lines += ["", f"#### {label}" if markdown else f"{label}:"]
            lines += [line for one in examples for line in _example(one, markdown)]
    lines += ["", *(f"Note: {clean(note)}." for note in comparison.notes)]
    return lines if comparison.notes else lines[:-1]


def _row(one: MetricChange) -> list[str]:
    change = one.change
    difference = one.difference if change is not None else None
    return [
        _name(one),
        *(_number(value, by) for value, by in zip((one.base, one.head), one.spread, strict=True)),
        "" if change is None else f"{change:+.2f}",
        "" if difference is None else f"{difference.low:+.2f} to {difference.high:+.2f}",
        "" if difference is None else f"{difference.p:.4f}",
        "" if one.higher_is_better is None and one.verdict != "missing" else one.verdict,
    ]


def _number(value: float | None, spread: float | None) -> str:
    if value is None:
        return "—"
    return f"{value:.2f}" + ("" if spread is None else f" ± {spread:.2f}")


def _example(one: Example, markdown: bool) -> list[str]:
    clean = markdown_text if markdown else _plain
    scores = f"CIDEr {one.base_cider:.0f} → {one.head_cider:.0f}"
    start, under = ("- ", "  - ") if markdown else ("  ", "    ")
    return [
        f"{start}{clean(one.image_id)}: {scores}",
        f"{under}before: {clean(one.base)}",
        f"{under}after: {clean(one.head)}",
        *(f"{under}of: {clean(reference)}" for reference in one.references),
    ]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], markdown: bool) -> list[str]:
    if markdown:
        rule = [":--", *["--:"] * (len(header) - 1)]
        return ["| " + " | ".join(row) + " |" for row in (header, rule, *rows)]
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    return [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (header, *rows)
    ]


def _name(one: MetricChange) -> str:
    if one.metric in METRICS:
        return METRICS[one.metric].title
    return _plain(one.metric.replace("_", " "))


def _shown(value: Any) -> str:
    return repr(value) if value is ABSENT else json.dumps(value, default=repr)


def _known(value: Any) -> Any:
    return None if value is ABSENT else value


def _plain(text: str) -> str:
    """One line, without what would steer a terminal."""
    return sanitize(text.replace("\n", " "))


def markdown_text(text: str) -> str:
    """Without what Markdown or HTML would take for markup."""
    return re.sub(r"([\\`*_{}\[\]()#+!|~@])", r"\\\1", html.escape(_plain(text), quote=False))
