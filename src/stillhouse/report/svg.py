"""Charts: lines with axes, direct labels, and marks for values that are not finite; and bars.

`templates/chart.html` and `templates/bars.html` draw them as SVG. Colors and dashes come from the
page's style sheet by class name, so a chart follows light and dark mode.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean

Point = tuple[float, float]

LEFT, TOP, BOTTOM = 58, 16, 46  # margins in SVG units
LABEL_GAP = 32  # two lines of text: a name and its last value


@dataclass(frozen=True)
class Line:
    """One quantity of one training over its tokens.

    Attributes:
        color: CSS class of the curve, which has dashes too.
        raw: Drawn as dots.
        not_finite: Tokens at which the value was not finite.
        points: The smooth curve.
        value: Written below the label, at the curve's end.
    """

    color: str
    label: str
    raw: Sequence[Point]
    not_finite: Sequence[float] = ()
    points: Sequence[Point] = ()
    value: str = ""


@dataclass(frozen=True)
class Chart:
    """The content of a chart and its size, in SVG units (about CSS pixels)."""

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

    left, margin_top = LEFT, TOP

    @property
    def right(self) -> int:
        return self.width - self.label_width

    @property
    def floor(self) -> int:
        return self.height - BOTTOM

    @cached_property
    def x_range(self) -> Point:
        xs = [x for line in self.lines for x, _ in line.points]
        return 0.0, max([*xs, *(x for line in self.lines for x in line.not_finite)], default=0) or 1

    @cached_property
    def y_range(self) -> Point:
        ys = [y for line in self.lines for _, y in (*line.points, *line.raw)]
        ys += [0.0] if self.zero_line else []
        low, high = min(ys, default=0.0), max(ys, default=1.0)
        high = high if self.top is None else min(high, self.top)
        pad = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
        return low - pad if low < 0 or low > pad else 0.0, high + pad

    def x(self, value: float) -> float:
        low, high = self.x_range
        return self.left + (value - low) / (high - low) * (self.right - self.left)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return self.floor - (value - low) / (high - low) * (self.floor - self.margin_top)

    def x_ticks(self) -> list[float]:
        return ticks(*self.x_range, (self.right - self.left) // 80)

    def y_ticks(self) -> list[float]:
        return ticks(*self.y_range, max(4, self.height // 50))

    def path(self, points: Sequence[Point], *, dots: bool = False) -> str:
        """The points as path data: joined, or as dots through the round line cap."""
        places = [f"{self.x(x):.1f} {self.y(y):.1f}" for x, y in points]
        if dots:
            return "".join(f"M{place}h0" for place in places)
        return f"M{'L'.join(places)}{'h0' if len(places) == 1 else ''}"

    def crosses(self, line: Line) -> list[int]:
        """Where values were NaN or infinite."""
        return sorted({round(self.x(x)) for x in line.not_finite})

    def labels(self) -> Iterable[tuple[float, Line]]:
        """Position of each line's label, moved apart where they would overlap."""
        if self.label_width <= 40:
            return []
        ends = [(self.y(line.points[-1][1]), line) for line in self.lines if line.label]
        ends.sort(key=lambda end: end[0])
        places = spread_out([y for y, _ in ends], TOP + 4, self.floor - 14, LABEL_GAP)
        return zip(places, [line for _, line in ends], strict=True)


@dataclass(frozen=True)
class Bar:
    """One bar in SVG units, from its upper left corner."""

    number: int
    x: float
    y: float
    width: float
    height: float
    is_marked: bool


@dataclass(frozen=True)
class BarChart:
    """A bar for each number from 0, some of them marked, and its size in SVG units."""

    title: str
    description: str
    values: Sequence[float]
    marked: Sequence[int]
    x_label: str
    width: int = 880
    height: int = 260
    identifier: str = "bars"
    labels: Sequence[str] = ()

    left, margin_top = LEFT, TOP

    def label(self, number: int) -> str:
        """What is written below a bar: its number, unless bars have labels of their own."""
        return self.labels[number] if self.labels else str(number)

    @property
    def floor(self) -> int:
        return self.height - BOTTOM

    @cached_property
    def y_range(self) -> Point:
        high = max(self.values, default=0.0)
        return min(0.0, *self.values), high if high > 0 else 1.0

    def y(self, value: float) -> float:
        low, high = self.y_range
        return self.floor - (value - low) / (high - low) * (self.floor - self.margin_top)

    def y_ticks(self) -> list[float]:
        return ticks(*self.y_range, 4)

    def bars(self) -> list[Bar]:
        step = (self.width - self.left) / len(self.values)
        return [
            Bar(
                number,
                self.left + (number + 0.15) * step,
                min(self.y(0.0), self.y(value)),
                0.7 * step,
                abs(self.y(value) - self.y(0.0)),
                number in self.marked,
            )
            for number, value in enumerate(self.values)
        ]

    def labeled_every(self) -> int:
        """Bars from one label to the next, so that labels do not overlap."""
        return math.ceil(22 * len(self.values) / (self.width - self.left))


@dataclass(frozen=True)
class Dot:
    """One model: its place, its label, and the CSS class of its color."""

    x: float
    y: float
    label: str
    color: str


@dataclass(frozen=True)
class Scatter:
    """Models as dots in a plane where lower is better, with those that no other one beats in both
    directions joined by a line.

    Attributes:
        more_is_better: Whether a greater x is better.
    """

    title: str
    description: str
    dots: Sequence[Dot]
    x_label: str
    show_x: Callable[[float], str]
    show_y: Callable[[float], str]
    more_is_better: bool = False
    width: int = 300
    height: int = 220
    identifier: str = "scatter"

    left, margin_top = LEFT, TOP

    @property
    def floor(self) -> int:
        return self.height - BOTTOM

    @property
    def right(self) -> int:
        return self.width - 12

    @cached_property
    def x_range(self) -> Point:
        high = max(dot.x for dot in self.dots)
        return 0.0, high * 1.08 or 1.0

    @cached_property
    def y_range(self) -> Point:
        ys = [dot.y for dot in self.dots]
        pad = (max(ys) - min(ys)) * 0.18 or abs(max(ys)) * 0.1 or 1.0
        return min(ys) - pad, max(ys) + pad

    def x(self, value: float) -> float:
        low, high = self.x_range
        return self.left + (value - low) / (high - low) * (self.right - self.left)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return self.floor - (value - low) / (high - low) * (self.floor - self.margin_top)

    def x_ticks(self) -> list[float]:
        return ticks(*self.x_range, (self.right - self.left) // 80)

    def y_ticks(self) -> list[float]:
        return ticks(*self.y_range, 5)

    def frontier(self) -> list[Dot]:
        """The dots that no other one beats: better in one direction, and no worse in the other."""

        def beats(one: Dot, other: Dot) -> bool:
            gain = one.x - other.x if self.more_is_better else other.x - one.x
            return gain >= 0 and one.y <= other.y and (gain > 0 or one.y < other.y)

        best = [dot for dot in self.dots if not any(beats(other, dot) for other in self.dots)]
        return sorted(best, key=lambda dot: (dot.x, dot.y))

    def labels(self) -> list[tuple[float, float, str, Dot]]:
        """Position and anchor of each dot's label: beside it, towards the middle, moved apart where
        labels of one side would overlap."""
        middle, found = (self.left + self.right) / 2, []
        for anchor in ("start", "end"):
            own = [dot for dot in self.dots if (self.x(dot.x) < middle) == (anchor == "start")]
            own.sort(key=lambda dot: self.y(dot.y))
            places = spread_out([self.y(dot.y) + 4 for dot in own], TOP + 4, self.floor - 6, 17)
            gap = 11 if anchor == "start" else -11
            found += [
                (self.x(dot.x) + gap, y, anchor, dot) for dot, y in zip(own, places, strict=True)
            ]
        return found


def ticks(low: float, high: float, num: int) -> list[float]:
    """Round numbers (1, 2, 2.5, 5 times a power of ten) from low to high, about `num` of them."""
    step = (high - low) / max(1, num)
    power = 10.0 ** math.floor(math.log10(step))
    step = next(size * power for size in (1, 2, 2.5, 5, 10) if size * power >= step * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def spread_out(
    places: Sequence[float], low: int | float, high: int | float, gap: int | float
) -> list[float]:
    """Sorted positions at least `gap` apart, moved as little as necessary, from low to high.

    Minus index * gap, the positions must not decrease: neighbors that do are pooled to their mean.
    """
    blocks: list[list[float]] = []
    for index, place in enumerate(places):
        blocks.append([place - index * gap])
        while len(blocks) > 1 and fmean(blocks[-2]) > fmean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    level = [fmean(block) for block in blocks for _ in block]
    highest = high - (len(places) - 1) * gap
    return [float(max(low, min(place, highest)) + index * gap) for index, place in enumerate(level)]
