"""Lines and bars as SVG that stands in a page: its colours are the style sheet's, by class.

Series are told apart by dash and mark as well as by colour. Every chart has a title and a
description for those who do not see it, and `figure` puts the numbers themselves below.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, HEIGHT = 460.0, 256.0
LEFT, RIGHT, TOP, BOTTOM = 40.0, 12.0, 36.0, 36.0  # margins around what is drawn
ACROSS, DOWN = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM


@dataclass(frozen=True)
class Series:
    """One value for each x; None where there is none."""

    name: str
    values: Sequence[float | None]
    colour: str  # a class of the style sheet: ours, theirs, other


@dataclass(frozen=True)
class Chart:
    """What is drawn, and what stands around it."""

    key: str  # unique in a page
    title: str
    x_label: str
    y_label: str
    x: Sequence[float]
    series: Sequence[Series]
    note: str = ""
    mark: tuple[float, str] | None = None  # an x to point at, and why
    from_zero: bool = True
    step: float = 1.0  # between neighbours on the x axis


def nice_ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers at even distances that hold both ends, about `most` of them."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / max(most - 1, 1)
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * by for by in (1, 2, 2.5, 5, 10) if unit * by >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 10) for number in range(first, last + 1)]


def plain(value: float) -> str:
    """A number as short as it can be said with four digits."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def line_chart(chart: Chart) -> Markup:
    """A line for each series, a mark at each value."""
    scale = _Scale(chart, pad=0.0)
    drawn = [
        Markup('<polyline class="line" points="{}"/>').format(
            " ".join(f"{scale.x(x):.1f},{scale.y(y):.1f}" for x, y in _points(chart, series))
        )
        + Markup("").join(
            Markup('<g class="dot">{}<title>{}</title></g>').format(
                _dot(number, scale.x(x), scale.y(y)),
                f"{chart.x_label} {plain(x)}, {series.name}: {plain(y)}",
            )
            for x, y in _points(chart, series)
        )
        for number, series in enumerate(chart.series)
    ]
    return _svg(chart, scale, drawn)


def bar_chart(chart: Chart) -> Markup:
    """A bar for each value, those of one x side by side."""
    scale = _Scale(chart, pad=chart.step / 2)
    room = scale.x(chart.step) - scale.x(0)
    wide = room * 0.84 / len(chart.series)
    drawn = []
    for number, series in enumerate(chart.series):
        shift = (number - len(chart.series) / 2) * wide
        drawn.append(
            Markup("").join(
                Markup(
                    '<rect class="bar" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}">'
                    "<title>{}</title></rect>"
                ).format(
                    *(scale.x(x) + shift, scale.y(y), wide, scale.y(0) - scale.y(y)),
                    f"{chart.x_label} {plain(x)}, {series.name}: {plain(y)}",
                )
                for x, y in _points(chart, series)
                if y
            )
        )
    return _svg(chart, scale, drawn)


class _Scale:
    """From numbers to places in the drawing."""

    def __init__(self, chart: Chart, pad: float) -> None:
        values = [y for series in chart.series for y in series.values if y is not None] or [0.0]
        low = min(0.0, *values) if chart.from_zero else min(values)
        self.y_ticks = nice_ticks(low, max(values), most=6)
        self.low, self.high = self.y_ticks[0], self.y_ticks[-1]
        self.left, self.right = min(chart.x) - pad, max(chart.x) + pad
        if self.right <= self.left:  # one point: in the middle
            self.left, self.right = self.left - 0.5, self.right + 0.5
        ticks = nice_ticks(min(chart.x), max(chart.x), most=9)
        self.x_ticks = [
            tick
            for tick in ticks
            if self.left <= tick <= self.right and (chart.step % 1 or tick == round(tick))
        ]

    def x(self, value: float) -> float:
        return LEFT + ACROSS * (value - self.left) / (self.right - self.left)

    def y(self, value: float) -> float:
        return TOP + DOWN * (self.high - value) / (self.high - self.low)


def _points(chart: Chart, series: Series) -> list[tuple[float, float]]:
    pairs = zip(chart.x, series.values, strict=True)
    return [(x, y) for x, y in pairs if y is not None]


def _dot(number: int, x: float, y: float) -> Markup:
    if number % 2:
        return Markup('<rect x="{:.1f}" y="{:.1f}" width="6" height="6"/>').format(x - 3, y - 3)
    return Markup('<circle cx="{:.1f}" cy="{:.1f}" r="3.2"/>').format(x, y)


def _svg(chart: Chart, scale: _Scale, drawn: Sequence[Markup]) -> Markup:
    parts = [
        Markup(
            '<svg class="chart" viewBox="0 0 {:.0f} {:.0f}" role="img" '
            'aria-labelledby="{key}-title {key}-desc"><title id="{key}-title">{}</title>'
            '<desc id="{key}-desc">{}</desc>'
        ).format(WIDTH, HEIGHT, chart.title, _description(chart), key=chart.key)
    ]
    for tick in scale.y_ticks:
        y = scale.y(tick)
        parts.append(
            Markup(
                '<line class="grid" x1="{:.0f}" x2="{:.0f}" y1="{:.1f}" y2="{:.1f}"/>'
                '<text class="tick" x="{:.0f}" y="{:.1f}" text-anchor="end">{}</text>'
            ).format(LEFT, WIDTH - RIGHT, y, y, LEFT - 7, y + 4, plain(tick))
        )
    base = TOP + DOWN
    for tick in scale.x_ticks:
        parts.append(
            Markup(
                '<line class="axis" x1="{0:.1f}" x2="{0:.1f}" y1="{1:.1f}" y2="{2:.1f}"/>'
                '<text class="tick" x="{0:.1f}" y="{3:.1f}" text-anchor="middle">{4}</text>'
            ).format(scale.x(tick), base, base + 4, base + 17, plain(tick))
        )
    parts.append(
        Markup(
            '<line class="axis" x1="{:.0f}" x2="{:.0f}" y1="{:.1f}" y2="{:.1f}"/>'
            '<text class="label" x="{:.0f}" y="{:.0f}" text-anchor="end">{}</text>'
            '<text class="label" x="0" y="10">{}</text>'
        ).format(
            *(LEFT, WIDTH - RIGHT, base, base),
            *(WIDTH - RIGHT, HEIGHT - 3, chart.x_label, chart.y_label),
        )
    )
    if chart.mark:
        parts.append(_mark(scale, *chart.mark))
    for number, (series, marks) in enumerate(zip(chart.series, drawn, strict=True)):
        parts.append(
            Markup('<g class="series {} nr{}">{}</g>').format(series.colour, number, marks)
        )
    return Markup("\n").join([*parts, Markup("</svg>")])


def _mark(scale: _Scale, value: float, why: str) -> Markup:
    x = scale.x(value)
    late = x > LEFT + ACROSS * 0.6
    return Markup(
        '<line class="mark" x1="{0:.1f}" x2="{0:.1f}" y1="{1:.0f}" y2="{2:.0f}"/>'
        '<text class="tick strong" x="{3:.1f}" y="{4:.0f}" text-anchor="{5}">{6}</text>'
    ).format(
        x, TOP - 12, TOP + DOWN, x + (-5 if late else 5), TOP - 5, "end" if late else "start", why
    )


def _description(chart: Chart) -> str:
    """What a look at the chart would tell first: where each series begins, ends and peaks."""
    said = []
    for series in chart.series:
        points = _points(chart, series)
        if not points:
            continue
        top = max(points, key=lambda point: point[1])
        said.append(
            f"{series.name}: {plain(points[0][1])} at {plain(points[0][0])}, "
            f"{plain(points[-1][1])} at {plain(points[-1][0])}, "
            f"highest {plain(top[1])} at {plain(top[0])}"
        )
    return f"{chart.y_label} by {chart.x_label}. {'; '.join(said)}."
