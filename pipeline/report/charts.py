"""Line and bar charts: `charts.html` draws them as SVG, and the style sheet colours them by class.

Series differ in dash and marker as well as in colour. Every chart has a title and a description
for screen readers, and the page has the numbers below it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass


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
    is_lines: bool = True  # a line for each series; otherwise bars, those of one x side by side

    @property
    def scale(self) -> "Scale":
        return Scale(self)

    @property
    def description(self) -> str:
        """Where each series begins, ends and peaks."""
        parts = []
        for series in self.series:
            if points := self.points(series):
                peak = max(points, key=lambda point: point[1])
                first, last, top = (
                    f"{format_number(y)} at {format_number(x)}"
                    for x, y in (points[0], points[-1], peak)
                )
                parts.append(f"{series.name}: {first}, {last}, highest {top}")
        return f"{self.y_label} by {self.x_label}. {'; '.join(parts)}."

    def points(self, series: Series) -> list[tuple[float, float]]:
        """Return x and y of the values that are not missing."""
        pairs = zip(self.x, series.values, strict=True)
        return [(x, y) for x, y in pairs if y is not None]


class Scale:
    """Maps values to coordinates of the drawing."""

    width, height = 460, 256
    left, right, top, base = 40, 448, 36, 220  # edges of the plot

    def __init__(self, chart: Chart) -> None:
        values = [y for series in chart.series for y in series.values if y is not None] or [0.0]
        low = min(0.0, *values) if chart.from_zero else min(values)
        self.y_ticks = nice_ticks(low, max(values), most=6)
        pad = 0.0 if chart.is_lines else chart.step / 2
        self.first, self.last = min(chart.x) - pad, max(chart.x) + pad
        if self.last <= self.first:  # a single point is centred
            self.first, self.last = self.first - 0.5, self.last + 0.5
        self.x_ticks = [
            tick
            for tick in nice_ticks(min(chart.x), max(chart.x), most=9)
            if self.first <= tick <= self.last and (chart.step % 1 or tick == round(tick))
        ]
        self.bar_width = 0.84 * (self.x(chart.step) - self.x(0)) / len(chart.series)

    def x(self, value: float) -> float:
        span = self.last - self.first
        return self.left + (self.right - self.left) * (value - self.first) / span

    def y(self, value: float) -> float:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return self.top + (self.base - self.top) * (high - value) / (high - low)


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
