"""Line and bar charts as inline SVG; the style sheet colours them by class.

Series differ in dash and marker as well as in colour. Every chart has a title and a description
for screen readers, and the page has the numbers below it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, HEIGHT = 460.0, 256.0
LEFT, RIGHT, TOP, BOTTOM = 40.0, 12.0, 36.0, 36.0  # margins around the plot
PLOT_WIDTH, PLOT_HEIGHT = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM


@dataclass(frozen=True)
class Series:
    """A value for each x; None for a missing one."""

    name: str
    values: Sequence[float | None]
    colour: str  # a class of the style sheet: ours, theirs, other


@dataclass(frozen=True)
class Chart:
    """The data of a chart, and the text around it."""

    key: str  # unique in a page
    title: str
    x_label: str
    y_label: str
    x: Sequence[float]
    series: Sequence[Series]
    note: str = ""
    mark: tuple[float, str] | None = None  # an x to mark, with its label
    from_zero: bool = True
    step: float = 1.0  # between neighbours on the x axis


def nice_ticks(low: float, high: float, most: int) -> list[float]:
    """Return about `most` evenly spaced round numbers that enclose both ends."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / max(most - 1, 1)
    unit = 10.0 ** math.floor(math.log10(rough))
    steps = (unit * factor for factor in (1, 2, 2.5, 5, 10))
    step = next(step for step in steps if step >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def format_number(value: float) -> str:
    """Format a number with four significant digits."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def line_chart(chart: Chart) -> Markup:
    """Draw a line for each series, with a marker at each value."""
    scale = _Scale(chart, pad=0.0)
    drawings = [
        Markup('<polyline class="line" points="{}"/>').format(
            " ".join(f"{scale.x(x):.1f},{scale.y(y):.1f}" for x, y in _points(chart, series))
        )
        + Markup("").join(
            Markup('<g class="dot">{}<title>{}</title></g>').format(
                _marker(i, scale.x(x), scale.y(y)), _tooltip(chart, series, x, y)
            )
            for x, y in _points(chart, series)
        )
        for i, series in enumerate(chart.series)
    ]
    return _svg(chart, scale, drawings)


def bar_chart(chart: Chart) -> Markup:
    """Draw a bar for each value, with the bars of one x side by side."""
    scale = _Scale(chart, pad=chart.step / 2)
    width = 0.84 * (scale.x(chart.step) - scale.x(0)) / len(chart.series)
    drawings = [
        Markup("").join(
            Markup(
                '<rect class="bar" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" '
                'height="{height:.1f}"><title>{title}</title></rect>'
            ).format(
                x=scale.x(x) + (i - len(chart.series) / 2) * width,
                y=scale.y(y),
                width=width,
                height=scale.y(0) - scale.y(y),
                title=_tooltip(chart, series, x, y),
            )
            for x, y in _points(chart, series)
            if y
        )
        for i, series in enumerate(chart.series)
    ]
    return _svg(chart, scale, drawings)


class _Scale:
    """Maps values to coordinates of the drawing."""

    def __init__(self, chart: Chart, pad: float) -> None:
        values = [y for series in chart.series for y in series.values if y is not None] or [0.0]
        low = min(0.0, *values) if chart.from_zero else min(values)
        self.y_ticks = nice_ticks(low, max(values), most=6)
        self.low, self.high = self.y_ticks[0], self.y_ticks[-1]
        self.left, self.right = min(chart.x) - pad, max(chart.x) + pad
        if self.right <= self.left:  # a single point is centred
            self.left, self.right = self.left - 0.5, self.right + 0.5
        ticks = nice_ticks(min(chart.x), max(chart.x), most=9)
        self.x_ticks = [
            tick
            for tick in ticks
            if self.left <= tick <= self.right and (chart.step % 1 or tick == round(tick))
        ]

    def x(self, value: float) -> float:
        return LEFT + PLOT_WIDTH * (value - self.left) / (self.right - self.left)

    def y(self, value: float) -> float:
        return TOP + PLOT_HEIGHT * (self.high - value) / (self.high - self.low)


def _points(chart: Chart, series: Series) -> list[tuple[float, float]]:
    pairs = zip(chart.x, series.values, strict=True)
    return [(x, y) for x, y in pairs if y is not None]


def _tooltip(chart: Chart, series: Series, x: float, y: float) -> str:
    return f"{chart.x_label} {format_number(x)}, {series.name}: {format_number(y)}"


def _marker(series: int, x: float, y: float) -> Markup:
    if series % 2:
        return Markup('<rect x="{:.1f}" y="{:.1f}" width="6" height="6"/>').format(x - 3, y - 3)
    return Markup('<circle cx="{:.1f}" cy="{:.1f}" r="3.2"/>').format(x, y)


def _svg(chart: Chart, scale: _Scale, drawings: Sequence[Markup]) -> Markup:
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
            ).format(LEFT, WIDTH - RIGHT, y, y, LEFT - 7, y + 4, format_number(tick))
        )
    base = TOP + PLOT_HEIGHT
    for tick in scale.x_ticks:
        parts.append(
            Markup(
                '<line class="axis" x1="{0:.1f}" x2="{0:.1f}" y1="{1:.1f}" y2="{2:.1f}"/>'
                '<text class="tick" x="{0:.1f}" y="{3:.1f}" text-anchor="middle">{4}</text>'
            ).format(scale.x(tick), base, base + 4, base + 17, format_number(tick))
        )
    parts.append(
        Markup(
            '<line class="axis" x1="{left:.0f}" x2="{right:.0f}" y1="{base:.1f}" y2="{base:.1f}"/>'
            '<text class="label" x="{right:.0f}" y="{bottom:.0f}" text-anchor="end">{x}</text>'
            '<text class="label" x="0" y="10">{y}</text>'
        ).format(
            left=LEFT,
            right=WIDTH - RIGHT,
            base=base,
            bottom=HEIGHT - 3,
            x=chart.x_label,
            y=chart.y_label,
        )
    )
    if chart.mark:
        parts.append(_mark(scale, *chart.mark))
    for i, (series, drawing) in enumerate(zip(chart.series, drawings, strict=True)):
        parts.append(Markup('<g class="series {} nr{}">{}</g>').format(series.colour, i, drawing))
    return Markup("\n").join([*parts, Markup("</svg>")])


def _mark(scale: _Scale, value: float, label: str) -> Markup:
    x = scale.x(value)
    shift, anchor = (-5, "end") if x > LEFT + PLOT_WIDTH * 0.6 else (5, "start")
    return Markup(
        '<line class="mark" x1="{0:.1f}" x2="{0:.1f}" y1="{1:.0f}" y2="{2:.0f}"/>'
        '<text class="tick strong" x="{3:.1f}" y="{4:.0f}" text-anchor="{5}">{6}</text>'
    ).format(x, TOP - 12, TOP + PLOT_HEIGHT, x + shift, TOP - 5, anchor, label)


def _description(chart: Chart) -> str:
    """Describe where each series begins, ends and peaks."""
    parts = []
    for series in chart.series:
        points = _points(chart, series)
        if points:
            peak = max(points, key=lambda point: point[1])
            (first, last, top) = (
                f"{format_number(y)} at {format_number(x)}"
                for x, y in (points[0], points[-1], peak)
            )
            parts.append(f"{series.name}: {first}, {last}, highest {top}")
    return f"{chart.y_label} by {chart.x_label}. {'; '.join(parts)}."
