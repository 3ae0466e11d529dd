"""Curves over training tokens, as figures: smoothed lines, the steps as dots, and captions.

Long runs are drawn with about 400 points. A bucket keeps its lowest and highest value, so a spike
is never lost; a value that was not finite is marked with a cross and counted in the caption.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from stillhouse import units
from stillhouse.report.svg import Chart, Line, Point
from stillhouse.wording import counted

NUM_POINTS = 400
# The frame is fitted to what follows this share of the tokens: the first steps fall from ln(V).
WARM_UP_SHARE = 0.2


@dataclass(frozen=True)
class Figure:
    """A chart with its caption; a wide one has a second drawing for narrow screens, where scaled
    text would be too small."""

    caption: str
    chart: Chart
    narrow: Chart | None = None


def figure(
    title: str,
    found: Sequence[Line],
    caption: str = "",
    *,
    show: Callable[[float], str] = "{:.4g}".format,
    wide: bool = True,
    zero_line: bool = False,
) -> Figure | None:
    """Curves over tokens; None without any. A label that several curves share is written once,
    without a value; one of a training without a finite value is in the caption alone."""
    if not found:
        return None
    lines: list[Line] = []
    sharing = Counter(line.label for line in found if line.raw)
    for line in found:
        curve, label, value = smooth(line.raw), "", ""
        if curve and line.label not in {each.label for each in lines}:
            label, value = line.label, show(curve[-1][1]) if sharing[line.label] == 1 else ""
        lines.append(
            replace(line, label=label, raw=thin(line.raw), points=thin(curve), value=value)
        )
    top, cut = _frame_top(lines)
    notes = [caption] if caption else []
    if cut:
        notes.append(f"The first steps are outside the frame, up to {show(cut)}.")
    caption = " ".join([*notes, *_not_finite_notes(found)])
    names = ", ".join(dict.fromkeys(line.label for line in found))
    description = f"{names} over training tokens. {caption}"
    name = "".join(letter if letter.isalnum() else "-" for letter in title.lower())
    chart = Chart(
        title, description, lines, tick_count, show, top=top, zero_line=zero_line, identifier=name
    )
    if not wide:
        return Figure(caption, chart)
    narrow = replace(chart, width=390, height=300, label_width=94, identifier=f"{name}-narrow")
    return Figure(caption, replace(chart, width=880, height=320, label_width=120), narrow)


def lines_of(
    logs: Sequence[Sequence[Mapping[str, Any]]],
    model: str,
    key: str,
    *,
    color: str,
    label: str,
    divisor: float = 1.0,
) -> list[Line]:
    """One key of a model in the `metrics.jsonl` of each seed that logged it."""
    found = []
    for log in logs:
        points, not_finite, tokens = [], [], 0.0
        for line in log:
            if line.get("model") == model and key in line:
                tokens = float(line.get("tokens") or tokens)
                if line[key] is None:
                    not_finite.append(tokens)
                else:
                    points.append((tokens, line[key] / divisor))
        if points or not_finite:
            found.append(Line(color, label, points, not_finite))
    return found


def smooth(points: Sequence[Point]) -> list[Point]:
    """Moving average over about a thirtieth of the points, centered, shorter at both ends."""
    half = len(points) // 60
    sums = [0.0, *accumulate(value for _, value in points)]
    found = []
    for index, (place, _) in enumerate(points):
        low, high = max(0, index - half), min(len(points), index + half + 1)
        found.append((place, (sums[high] - sums[low]) / (high - low)))
    return found


def thin(points: Sequence[Point]) -> list[Point]:
    """At most about `NUM_POINTS` points: the first, the last, each bucket's lowest and highest."""
    if len(points) <= NUM_POINTS:
        return list(points)
    num_buckets = NUM_POINTS // 2
    kept = {points[0], points[-1]}
    for index in range(num_buckets):
        first = index * len(points) // num_buckets
        bucket = points[first : (index + 1) * len(points) // num_buckets]
        kept.add(min(bucket, key=lambda point: point[1]))
        kept.add(max(bucket, key=lambda point: point[1]))
    return sorted(kept)


def _frame_top(lines: Sequence[Line]) -> tuple[float | None, float | None]:
    """The frame's top, and the highest value where that lies far outside; else None."""
    end = max((line.points[-1][0] for line in lines if line.points), default=0.0)
    dots = [point for line in lines for point in (*line.points, *line.raw)]
    later = [value for place, value in dots if place >= end * WARM_UP_SHARE]
    if not later:
        return None, None
    top, highest = max(later), max(value for _, value in dots)
    if highest - min(later) <= 1.5 * (top - min(later)):
        return None, None
    return top, highest


def _not_finite_notes(found: Sequence[Line]) -> list[str]:
    notes = []
    for label in dict.fromkeys(series.label for series in found):
        places = [place for each in found if each.label == label for place in each.not_finite]
        if places:
            notes.append(
                f"{label}: {counted(len(places), 'step')} without a finite value ({units.TIMES}), "
                f"the first at {units.tokens(min(places))}."
            )
    return notes


def tick_count(value: float) -> str:
    """Round counts, alike along an axis: 2 k and 10 k, not 2,000 and 10.0 k."""
    if 1e3 <= value < 1e6:
        return f"{value / 1e3:.4g} k"
    return units.count(value).replace(".0 ", " ")
