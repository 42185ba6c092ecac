"""Format a comparison as text, Markdown or JSON."""

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


def as_text(
    comparison: Comparison, failed: Sequence[str], confidence: float, markdown: bool = False
) -> str:
    """Format for a terminal, or for a pull request: untrusted text cannot become markup."""
    clean = markdown_text if markdown else _plain
    base, head = clean(comparison.base), clean(comparison.head)
    title = f"{base} → {head}"
    strong = "**" if markdown else ""
    lines = [f"### {title}" if markdown else title, ""]
    for reason in comparison.stale:
        lines += [f"{strong}Stale:{strong} {clean(reason)}.", ""]
    lines += [summary(comparison), ""]
    if failed:
        lines += [f"{strong}Not acceptable:{strong} {'; '.join(failed)}.", ""]
    if comparison.params:
        rows = [
            [clean(key), clean(_param_text(a)), clean(_param_text(b))]
            for key, a, b in comparison.params
        ]
        lines += [*_table(["param", base, head], rows, markdown), ""]
    elif comparison.same < comparison.images:
        lines += ["No param differs.", ""]
    header = ["", base, head, "change", f"{100 * confidence:.6g} % interval", "p", ""]
    lines += [*_table(header, [_row(row) for row in comparison.changes], markdown), ""]
    scale = "Scores x100."
    if comparison.seeds != (1, 1):
        tested = any(row.difference for row in comparison.changes)
        test = "; Welch's t-test across them" if tested else ""
        lines.append(f"{scale} Mean ± standard deviation of the runs{test}.")
    else:
        lines += [
            f"{comparison.same:,} of {comparison.images:,} captions are the same.",
            f"{scale} The intervals are over images (paired bootstrap). They do not cover training "
            "seeds: compare groups of runs for that.",
        ]
    for label, examples in (("Better", comparison.better), ("Worse", comparison.worse)):
        if examples:
            lines += ["", f"#### {label}" if markdown else f"{label}:"]
            lines += [line for example in examples for line in _example(example, markdown)]
    if comparison.notes:
        lines += ["", *(f"Note: {clean(note)}." for note in comparison.notes)]
    return "\n".join(lines)


def as_json(comparison: Comparison, failed: Sequence[str], config: CompareConfig) -> str:
    """Format for programs: full precision, and null for a missing value."""
    content = {
        "base": comparison.base,
        "head": comparison.head,
        "revisions": dict(zip(("base", "head"), comparison.revisions, strict=True)),
        "images": comparison.images,
        "confidence": config.confidence,
        "resamples": config.resamples,
        "seed": config.seed,
        "runs": comparison.seeds,
        "summary": summary(comparison),
        "params": [
            {"key": key, "base": _or_none(base), "head": _or_none(head)}
            for key, base, head in comparison.params
        ],
        "metrics": [
            {**asdict(row), "change": row.change, "verdict": row.verdict}
            for row in comparison.changes
        ],
        "same_captions": comparison.same,
        "better": [asdict(example) for example in comparison.better],
        "worse": [asdict(example) for example in comparison.worse],
        "stale": comparison.stale,
        "notes": comparison.notes,
        "failed": failed,
    }
    return json.dumps(content, indent=2, ensure_ascii=True)


def summary(comparison: Comparison) -> str:
    """Summarise the outcome in a sentence or two."""
    parts = []
    for verdict in ("missing", "new"):
        names = [_title(row) for row in comparison.changes if row.verdict == verdict]
        if names:
            parts.append(f"{verdict.capitalize()} in head: {', '.join(names)}.")
    if comparison.seeds == (1, 1) and comparison.same == comparison.images:
        return " ".join([f"No change: all {comparison.images:,} captions are the same.", *parts])
    known = [row for row in comparison.changes if row.change is not None]
    tested = [row for row in known if row.difference is not None]
    for verdict in ("better", "worse"):
        rows = _main_metrics(tested, verdict)
        if rows:
            gains = ", ".join(f"{_title(row)} by {abs(row.gain):.2f}" for row in rows)
            parts.append(f"{verdict.capitalize()}: {gains}.")
    if rows := _main_metrics(tested, "within chance", "no change"):
        parts.append(f"No difference beyond chance: {', '.join(map(_title, rows))}.")
    return " ".join(parts if tested else [*parts, "Nothing could be tested."])


def _main_metrics(changes: Sequence[MetricChange], *verdicts: str) -> list[MetricChange]:
    return [row for row in changes if row.verdict in verdicts and row.metric in TESTED_NAMES]


def _row(row: MetricChange) -> list[str]:
    change, (base_spread, head_spread) = row.change, row.spread
    difference = row.difference if change is not None else None
    return [
        _title(row),
        _number(row.base, base_spread),
        _number(row.head, head_spread),
        "" if change is None else f"{change:+.2f}",
        "" if difference is None else f"{difference.low:+.2f} to {difference.high:+.2f}",
        "" if difference is None else f"{difference.p:.4f}",
        "" if row.higher_is_better is None and row.verdict != "missing" else row.verdict,
    ]


def _number(value: float | None, spread: float | None) -> str:
    if value is None:
        return "—"
    return f"{value:.2f}" + ("" if spread is None else f" ± {spread:.2f}")


def _example(example: Example, markdown: bool) -> list[str]:
    clean = markdown_text if markdown else _plain
    scores = f"CIDEr {example.base_cider:.0f} → {example.head_cider:.0f}"
    start, indent = ("- ", "  - ") if markdown else ("  ", "    ")
    return [
        f"{start}{clean(example.image_id)}: {scores}",
        f"{indent}before: {clean(example.base)}",
        f"{indent}after: {clean(example.head)}",
        *(f"{indent}reference: {clean(reference)}" for reference in example.references),
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


def _title(row: MetricChange) -> str:
    if row.metric in METRICS:
        return METRICS[row.metric].title
    return _plain(row.metric.replace("_", " "))


def _param_text(value: Any) -> str:
    return repr(value) if value is ABSENT else json.dumps(value, default=repr)


def _or_none(value: Any) -> Any:
    return None if value is ABSENT else value


def _plain(text: str) -> str:
    """Return one line without characters that control a terminal."""
    return sanitize(text.replace("\n", " "))


def markdown_text(text: str) -> str:
    """Escape what Markdown or HTML would take for markup."""
    return re.sub(r"([\\`*_{}\[\]()#+!|~@])", r"\\\1", html.escape(_plain(text), quote=False))
