"""Line charts as plain SVG text: axes, lines, direct labels, marks for values that are not finite.

Color and dashes come from the page's style sheet by class name, so a chart follows light and dark.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from statistics import fmean

Point = tuple[float, float]

# Two lines of text: a name and its last value.
LABEL_GAP = 32


@dataclass(frozen=True)
class Line:
    """One curve: its class (for color and dashes), label, smooth points, raw points, marks."""

    name: str
    label: str
    points: Sequence[Point]
    raw: Sequence[Point] = ()
    not_finite: Sequence[float] = ()


@dataclass(frozen=True)
class Chart:
    """What a chart shows and how large it is, in SVG units (about CSS pixels)."""

    title: str
    description: str
    lines: Sequence[Line]
    show_x: Callable[[float], str]
    show_y: Callable[[float], str]
    width: int = 300
    height: int = 170
    label_width: int = 16
    top: float | None = None
    zero_line: bool = False
    identifier: str = "chart"
    x_label: str = "training tokens"


@dataclass(frozen=True)
class _Frame:
    chart: Chart
    x_range: Point
    y_range: Point
    left: int = 58
    margin_top: int = 16
    bottom: int = 46
    y_ticks: list[float] = field(default_factory=list)

    @property
    def right(self) -> int:
        return self.chart.width - self.chart.label_width

    @property
    def floor(self) -> int:
        return self.chart.height - self.bottom

    def x(self, value: float) -> float:
        low, high = self.x_range
        return self.left + (value - low) / (high - low) * (self.right - self.left)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return self.floor - (value - low) / (high - low) * (self.floor - self.margin_top)


def draw(chart: Chart) -> str:
    """The chart as one `<svg>` element."""
    frame = _frame(chart)
    clip = f"{chart.identifier}-clip"
    marks = [_not_finite(frame, line) for line in chart.lines]
    body = [
        _axes(frame),
        f'<clipPath id="{clip}"><rect x="{frame.left}" y="{frame.margin_top - 4}" '
        f'width="{frame.right - frame.left + 4}" height="{frame.floor - frame.margin_top + 8}"/>'
        "</clipPath>",
        f'<g clip-path="url(#{clip})">',
        *(_raw(frame, line) for line in chart.lines),
        *(_path(frame, line) for line in chart.lines),
        "</g>",
        *marks,
        _labels(frame) if chart.label_width > 40 else "",
    ]
    return (
        f'<svg viewBox="0 0 {chart.width} {chart.height}" role="img" '
        f'aria-labelledby="{chart.identifier}-title {chart.identifier}-desc">'
        f'<title id="{chart.identifier}-title">{escape(chart.title)}</title>'
        f'<desc id="{chart.identifier}-desc">{escape(chart.description)}</desc>'
        f"{''.join(body)}</svg>"
    )


def ticks(low: float, high: float, num: int) -> list[float]:
    """Round numbers (1, 2, 2.5, 5 times a power of ten) from low to high, about `num` of them."""
    step = (high - low) / max(1, num)
    power = 10.0 ** math.floor(math.log10(step))
    step = next(size * power for size in (1, 2, 2.5, 5, 10) if size * power >= step * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def _frame(chart: Chart) -> _Frame:
    xs = [x for line in chart.lines for x, _ in line.points]
    xs += [x for line in chart.lines for x in line.not_finite]
    ys = [y for line in chart.lines for _, y in (*line.points, *line.raw)]
    if chart.zero_line:
        ys.append(0.0)
    high = max(ys, default=1.0)
    if chart.top is not None:
        high = min(high, chart.top)
    low = min(ys, default=0.0)
    pad = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    y_range = (low - pad if low < 0 or low > pad else 0.0, high + pad)
    x_high = max(xs, default=1.0)
    return _Frame(
        chart, (0.0, x_high or 1.0), y_range, y_ticks=ticks(*y_range, max(4, chart.height // 50))
    )


def _axes(frame: _Frame) -> str:
    chart, parts = frame.chart, []
    for value in frame.y_ticks:
        y = frame.y(value)
        kind = "zero" if chart.zero_line and abs(value) < 1e-12 else "grid"
        parts.append(f'<path class="{kind}" d="M{frame.left} {y:.1f}H{frame.right}"/>')
        parts.append(
            f'<text class="tick" x="{frame.left - 8}" y="{y + 4:.1f}" text-anchor="end">'
            f"{escape(chart.show_y(value))}</text>"
        )
    for value in ticks(*frame.x_range, (frame.right - frame.left) // 80):
        x = frame.x(value)
        # A label centered on the last tick would run out of a chart without a label column.
        anchor = "end" if frame.right - x < 20 and chart.label_width < 40 else "middle"
        parts.append(
            f'<path class="axis" d="M{x:.1f} {frame.floor}v5"/><text class="tick" x="{x:.1f}" '
            f'y="{frame.floor + 19}" text-anchor="{anchor}">{escape(chart.show_x(value))}</text>'
        )
    parts.append(
        f'<path class="axis" d="M{frame.left} {frame.floor}H{frame.right}"/>'
        f'<text class="tick" x="{(frame.left + frame.right) / 2:.1f}" y="{frame.floor + 37}" '
        f'text-anchor="middle">{escape(chart.x_label)}</text>'
    )
    return "".join(parts)


def _path(frame: _Frame, line: Line) -> str:
    if not line.points:
        return ""
    steps = "L".join(f"{frame.x(x):.1f} {frame.y(y):.1f}" for x, y in line.points)
    # One lone point still gets a visible dot, through the round line cap.
    return f'<path class="line {line.name}" d="M{steps}{"h0" if len(line.points) == 1 else ""}"/>'


def _raw(frame: _Frame, line: Line) -> str:
    dots = "".join(f"M{frame.x(x):.1f} {frame.y(y):.1f}h0" for x, y in line.raw)
    return f'<path class="raw {line.name}" d="{dots}"/>' if dots else ""


def _not_finite(frame: _Frame, line: Line) -> str:
    """A cross at the top of the frame for each value that was NaN or infinite."""
    places = sorted({round(frame.x(x)) for x in line.not_finite})
    if not places:
        return ""
    y = frame.margin_top
    crosses = "".join(f"M{x - 4} {y - 4}l8 8m0-8l-8 8" for x in places)
    return f'<path class="not-finite" d="{crosses}"><title>not finite</title></path>'


def _labels(frame: _Frame) -> str:
    """Each line's name at its right end, pushed apart where they would overlap."""
    ends = [
        (frame.y(line.points[-1][1]), line)
        for line in frame.chart.lines
        if line.points and line.label
    ]
    ordered = sorted(ends, key=lambda end: end[0])
    places = spread_out([y for y, _ in ordered], frame.margin_top + 4, frame.floor - 14, LABEL_GAP)
    x, parts = frame.right + 8, []
    for place, (_, line) in zip(places, ordered, strict=True):
        name, _, value = line.label.partition("\n")
        parts.append(
            f'<text class="label {line.name}" x="{x}" y="{place:.1f}">{escape(name)}</text>'
            f'<text class="tick" x="{x}" y="{place + 14:.1f}">{escape(value)}</text>'
        )
    return "".join(parts)


def spread_out(
    places: Sequence[float], low: int | float, high: int | float, gap: int | float
) -> list[float]:
    """Sorted places at least `gap` apart, moved as little as that takes, kept within low to high.

    Less index * gap, the places must not fall: neighbors that do are pooled to their mean.
    """
    blocks: list[list[float]] = []
    for index, place in enumerate(places):
        blocks.append([place - index * gap])
        while len(blocks) > 1 and fmean(blocks[-2]) > fmean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    level = [fmean(block) for block in blocks for _ in block]
    highest = high - (len(places) - 1) * gap
    return [float(max(low, min(place, highest)) + index * gap) for index, place in enumerate(level)]
