"""The tables of what cleaning was measured to do, from benchmarks/results/cleaning."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "cleaning"
NOTHING = "No run is recorded yet."
THRESHOLDS = ("0.5", "0.65", "0.8", "0.9")  # of those that were measured
# Documents and bytes of text; OpenWebText's by Gokaslan and Cohen (2019).
CORPORA = {
    "OpenWebText, 8.01 million documents, 38 GB": (8.01e6, 38e9),
    "1 TB of such documents, 211 million": (1e12 / 38e9 * 8.01e6, 1e12),
}
BYTES_COMPARED = 130  # of memory for each document, in stillhouse.cleaning.deduplication
# What a person found who read the text of a page beside the gold text.
REASONS = {
    "2f42ef1d": "The article is in several blocks with advertisements between them; only the first "
    "is taken.",
    "51d066b0": "The gold text has the captions of videos and the headlines of other articles, "
    "which are left out.",
    "cc03ddb5": "A short list of races; the headline, the date and a list of tags are kept.",
    "3f65af7b": "The posts of Twitter inside the article are left out; the last lines ask for tips "
    "and subscriptions.",
    "232a43fb": "The first paragraph, bare text in a `div`, is left out; a teaser of a guide is "
    "taken.",
    "4a44ab3e": "The first paragraph is outside the article's block; the headline and a link to "
    "another article are kept.",
    "94fbcc26": "The headlines of five related articles and the copyright line follow the text.",
    "6ebac05f": "Pop-up lists of headlines follow the names of persons inside the paragraphs.",
    "c69e539d": "Two paragraphs about the company at the end, which the gold text leaves out.",
    "287e4d9f": "A list of offers: the introduction and the links to the shops are left out.",
}


def extraction_table() -> str:
    """F1, precision and recall of the main text in each setting."""
    result = _recorded("extraction")
    return extraction_of(result) if result else NOTHING


def worst_table() -> str:
    """The pages of the lowest F1, and why."""
    result = _recorded("extraction")
    return worst_of(result["worst"]) if result else NOTHING


def language_table() -> str:
    """How often the language is found, by length."""
    result = _recorded("language-id")
    return languages_of(result) if result else NOTHING


def reading_table() -> str:
    """What is read of a long text."""
    result = _recorded("language-id")
    return reading_of(result["reading"]) if result else NOTHING


def step_speed_table() -> str:
    """Megabytes per second of each step."""
    result = _recorded("steps")
    return step_speeds_of(result["steps"]) if result else NOTHING


def runs_table() -> str:
    """Time and memory of whole runs, by the size of the text."""
    result = _recorded("sizes")
    return runs_of(result) if result else NOTHING


def scaling_line() -> str:
    """How much faster two processes are than one."""
    result = _recorded("scaling")
    return scaling_of(result) if result else NOTHING


def projection_table() -> str:
    """What the measured rates make of large corpora."""
    runs, steps = _recorded("sizes"), _recorded("steps")
    return projection_of(runs, steps) if runs and steps else NOTHING


def extraction_of(result: Mapping[str, Any]) -> str:
    """Markdown: a row for each setting, the best first."""
    settings = result["settings"]
    columns = ["", "F1 (95 % interval)", "precision", "recall"]
    rows = [
        [
            name if name.startswith(("main_text", "all")) else _of_trafilatura(name),
            "{value:.3f} ({low:.3f} to {high:.3f})".format(**own["f1"]),
            f"{own['precision']['value']:.3f}",
            f"{own['recall']['value']:.3f}",
        ]
        for name, own in sorted(settings.items(), key=lambda item: -item[1]["f1"]["value"])
    ]
    return _table(columns, rows)


def worst_of(pages: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: address, F1, precision, recall, and what was seen."""
    columns = ["page", "F1", "precision", "recall", "why"]
    rows = [
        [
            page["url"].split("/")[2].removeprefix("www."),
            *(f"{page[name]:.2f}" for name in ("f1", "precision", "recall")),
            REASONS.get(page["page"], "Not looked at."),
        ]
        for page in pages
    ]
    return _table(columns, rows)


def languages_of(result: Mapping[str, Any]) -> str:
    """Markdown: of each length the accuracy, and the shares kept at each threshold."""
    columns = ["texts", "characters", "accuracy", "lowest of a language"]
    columns += [f"kept at {least}, wrong" for least in THRESHOLDS]
    rows = []
    for name, title in (("xnli", "XNLI, 7 languages"), ("novels", "novels, 3 languages")):
        for length, own in result[name].items():
            accuracy = own["accuracy"]
            worst = min(accuracy, key=accuracy.__getitem__)
            name_of_it = f" ({worst})" if accuracy[worst] < 1 else ""
            rows.append(
                [
                    title if length == next(iter(result[name])) else "",
                    f"{int(length):,}",
                    _percent(sum(accuracy.values()) / len(accuracy)),
                    f"{_percent(accuracy[worst])}{name_of_it}",
                    *(
                        f"{_percent(kept['kept'])}, {_percent(kept['wrong'], 2)}"
                        for kept in map(own["thresholds"].__getitem__, THRESHOLDS)
                    ),
                ]
            )
    return _table(columns, rows)


def reading_of(ways: Mapping[str, Mapping[str, float]]) -> str:
    """Markdown: accuracy by what is read and by characters of another language at the start."""
    lengths = list(next(iter(ways.values())))
    columns = ["read", *(f"after {int(length):,} characters" for length in lengths)]
    rows = [[name, *map(_percent, own.values())] for name, own in ways.items()]
    return _table(columns, rows)


def step_speeds_of(steps: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: of each step and each text the speed of each engine."""
    columns = ["step", "text", "ours, MB/s", "beside it, MB/s"]
    rows = []
    for name, texts in steps.items():
        for text, speeds in texts.items():
            others = {engine: own for engine, own in speeds.items() if engine != "stillhouse"}
            rows.append(
                [
                    f"`{name}`" if text == next(iter(texts)) else "",
                    text,
                    _speed(speeds["stillhouse"]),
                    ", ".join(f"{engine} {_speed(own)}" for engine, own in others.items()) or "-",
                ]
            )
    return _table(columns, rows)


def runs_of(result: Mapping[str, Any]) -> str:
    """Markdown: a row for each size of the text, of cleaning and of the stage that reads it."""
    columns = ["text", "documents", "command", "time", "MB/s", "most memory", "of one process"]
    rows = []
    for size, stages in result["sizes"].items():
        for stage, own in stages.items():
            rows.append(
                [
                    f"{int(size):,} MB" if stage == "clean" else "",
                    f"{own['text']['documents']:,}" if stage == "clean" else "",
                    f"`{stage}`",
                    f"{own['wall_seconds']:,.0f} s",
                    f"{int(size) / own['wall_seconds']:.1f}",
                    _megabytes(own["peak_bytes"]),
                    _megabytes(own["peak_bytes_of_one_process"]),
                ]
            )
    return _table(columns, rows)


def scaling_of(result: Mapping[str, Any]) -> str:
    """Markdown: the wall time of one process and of two, and their ratio."""
    walls = result["wall_seconds"]
    one, two = (statistics.median(walls[workers]) for workers in ("1", "2"))
    return (
        f"Two processes clean {result['megabytes']:,} MB {result['ratio']:.2f} times as fast as "
        f"one ({one:.0f} s and {two:.0f} s, medians of {len(walls['1'])})."
    )


def projection_of(runs: Mapping[str, Any], steps: Mapping[str, Any]) -> str:
    """Markdown: hours, memory and disk for large corpora, in proportion to the largest run."""
    largest = runs["sizes"][max(runs["sizes"], key=int)]["clean"]
    documents, size = largest["text"]["documents"], largest["text"]["bytes"]
    finding = sum(largest["finding_seconds"].values()) / documents
    cleaning = (largest["cpu_seconds"] - finding * documents) / size
    pages, rate = steps["web_pages"], steps["steps"]["main_text"]["web pages"]["stillhouse"]
    page = pages["bytes"] / pages["pages"] / rate / 1e6
    columns = ["corpus", "`main_text`, core hours", "other steps, core hours", "comparing, hours"]
    columns += ["whole, 64 cores", "memory while comparing"]
    rows = []
    for name, (number, total) in CORPORA.items():
        parallel = [page * number / 3600, cleaning * total / 3600]
        serial = finding * number / 3600
        cells = [f"{own:,.0f}" for own in parallel] + [f"{serial:.1f}"]
        whole = f"{sum(parallel) / 64 + serial:.1f} hours"
        rows.append([name, *cells, whole, f"{BYTES_COMPARED * number / 1e9:.1f} GB"])
    return _table(columns, rows)


def _speed(megabytes: float) -> str:
    return f"{megabytes:,.0f}" if megabytes >= 100 else f"{megabytes:.1f}"


def _megabytes(number: int) -> str:
    return f"{number / 1e6:,.0f} MB"


def _recorded(name: str) -> dict[str, Any] | None:
    file = RESULTS / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def _of_trafilatura(name: str) -> str:
    return "trafilatura, default" if name == "trafilatura" else f"trafilatura, {name}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _percent(fraction: float, digits: int = 1) -> str:
    return f"{100 * fraction:.{digits}f} %"
