"""The tables and the picture of measured detection of machine text, from
benchmarks/results/detect."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "detect"
SINGLE = {
    "log_rank": "mean log rank",
    "top_10": "tokens of the top 10",
    "log_probability": "mean log-probability",
    "curvature": "curvature (Fast-DetectGPT)",
}
NOTHING = "No run is recorded yet."
LENGTH = "150"  # of the table of single features
COLORS = {"50": "#8a8f98", "150": "#c26a00", "500": "#1f5fbf"}  # of lengths in the picture
SIDE, GAP, TOP, PER_ROW = 150, 34, 44, 4  # of its panels, in pixels


def recorded() -> list[Mapping[str, Any]]:
    """All recorded results."""
    return [json.loads(file.read_text("utf-8")) for file in sorted(RESULTS.glob("*.json"))]


def detect_table() -> str:
    """The detector's rates in each test and at each length."""
    return rates_of(recorded())


def single_table() -> str:
    """The rates of single features beside the detector's."""
    return single_of(recorded())


def rates_of(results: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: AUROC with its interval, true and false positives, calibration error."""
    if not results:
        return NOTHING
    columns = ["machine text", "tokens", "texts, human + machine", "AUROC (95 % interval)"]
    columns += ["true positives", "false positives", "calibration error"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for result in results:
        for title, lengths in result["tests"].items():
            for length, own in lengths.items():
                auroc = own["auroc"]
                cells = [
                    title if length == next(iter(lengths)) else "",
                    length,
                    f"{own['num_human']} + {own['num_machine']}",
                    f"{auroc['value']:.3f} ({auroc['low']:.3f} to {auroc['high']:.3f})",
                    _percent(own["true_positives"]),
                    _percent(own["false_positives"]),
                    f"{own['calibration_error']:.3f}",
                ]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def single_of(results: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: AUROC and true positives of the detector and of each feature alone."""
    if not results:
        return NOTHING
    columns = ["machine text", "detector", *SINGLE.values()]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for result in results:
        for title, lengths in result["tests"].items():
            if LENGTH in lengths:
                own = lengths[LENGTH]
                each = [own, *(own["single"][name] for name in SINGLE)]
                cells = [
                    f"{one['auroc']['value']:.3f}, {_percent(one['true_positives'])}"
                    for one in each
                ]
                lines.append(f"| {' | '.join([title, *cells])} |")
    return "\n".join(lines)


def roc_picture() -> str:
    """SVG: for each test the true positives over the false positives, a line for each length."""
    panels = [
        (title, {length: own["roc"] for length, own in lengths.items()})
        for result in recorded()
        for title, lengths in result["tests"].items()
    ]
    rows = -(-len(panels) // PER_ROW)
    width, height = PER_ROW * (SIDE + GAP) + GAP, rows * (SIDE + TOP + GAP) + TOP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="11" role="img">',
        "<title>True positives over false positives in each test, by number of tokens</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        *(
            f'<text x="{GAP + 120 * place}" y="20" fill="{color}">{length} tokens</text>'
            for place, (length, color) in enumerate(COLORS.items())
        ),
    ]
    for place, (title, curves) in enumerate(panels):
        row, column = divmod(place, PER_ROW)
        x, y = GAP + column * (SIDE + GAP), TOP + GAP + row * (SIDE + TOP + GAP)
        parts.append(f'<g transform="translate({x} {y})">{_panel(title, curves)}</g>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(title: str, curves: Mapping[str, Sequence[Sequence[float]]]) -> str:
    lines = [
        f'<text y="-8">{escape(title)}</text>',
        f'<rect width="{SIDE}" height="{SIDE}" fill="none" stroke="#c8ccd2"/>',
        f'<path d="M0 {SIDE}L{SIDE} 0" stroke="#c8ccd2" stroke-dasharray="3 3"/>',
        f'<text x="0" y="{SIDE + 14}">0</text>',
        f'<text x="{SIDE}" y="{SIDE + 14}" text-anchor="end">1</text>',
        f'<text x="{SIDE / 2}" y="{SIDE + 14}" text-anchor="middle">false positives</text>',
    ]
    for length, points in curves.items():
        places = " ".join(f"{SIDE * x:.1f},{SIDE * (1 - y):.1f}" for x, y in points)
        color = COLORS[length]
        lines.append(f'<polyline points="{places}" fill="none" stroke="{color}" stroke-width="2"/>')
    return "".join(lines)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"
