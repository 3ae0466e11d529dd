"""Main text of web pages: ours, trafilatura in its settings, and all visible text, on gold pages.

    python -m benchmarks.extraction [--data ../shared/data]
        [--output benchmarks/results/cleaning/extraction.json]

The pages and the scores are those of the article extraction benchmark (Scrapinghub 2020): a text is
the multiset of the runs of four words in it, words being runs of letters and digits; one that is
shorter is one run. Of a page, with p the runs of the prediction and g those of the gold text,

    precision = |p & g| / |p|        recall = |p & g| / |g|

Precision is the mean over the pages whose prediction has a word, recall over those whose gold text
has one, and F1 = 2 precision recall / (precision + recall) of these means. Intervals are the 2.5
and 97.5 percentiles over pages drawn with replacement; differences are of the same draws. How fast
it is, benchmarks/cleaning_steps.py measures.

How far the choice of a setting fits these pages: it is chosen on one half of them and scored on the
other, for random halves; and F1 is given for other limits of what counts as little text. What was
tried without use: leaving out lines that point to other pages.
"""

import argparse
import gzip
import json
import logging
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import trafilatura
from jaxtyping import Float

from benchmarks import measure
from benchmarks.bag_of_runs import precision_and_recall
from stillhouse.cleaning.steps.main_text import SHOWN, MainTextRecipe, extractor
from stillhouse.data.formats.html import decode_page, visible_text

RESULTS = Path(__file__).parent / "results" / "cleaning" / "extraction.json"
PAGES = Path("web_html", "article_extraction_benchmark")
OURS = "main_text"
DRAWS = 2000
HALVES = 200
WORST = 10
LIMITS = ((0, 0.0), (150, 0.02), (250, 0.05), (250, 0.15), (800, 0.05), (1200, 0.05), (10**9, 0.0))
POINTER = re.compile(r"[-\s]*(read more|related|see also|also on|follow|subscribe|sign up)\b", re.I)
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    OURS: {},
    f"{OURS}, balance": {"favor": "balance"},
    f"{OURS}, recall": {"favor": "recall"},
    f"{OURS}, without tables": {"tables": False},
    f"{OURS}, with comments": {"comments": True},
}
PLAIN = {"include_comments": False}
TRAFILATURA: Mapping[str, Mapping[str, Any]] = {
    "trafilatura": {},
    "without comments": PLAIN,
    "precision": PLAIN | {"favor_precision": True},
    "precision, with comments": {"favor_precision": True},
    "precision, without tables": PLAIN | {"favor_precision": True, "include_tables": False},
    "precision, deduplicated": PLAIN | {"favor_precision": True, "deduplicate": True},
    "recall": PLAIN | {"favor_recall": True},
    "recall, with comments": {"favor_recall": True},
    "fast": PLAIN | {"fast": True},
    "fast, precision": PLAIN | {"fast": True, "favor_precision": True},
    "fast, recall": PLAIN | {"fast": True, "favor_recall": True},
    "without tables": PLAIN | {"include_tables": False},
    "deduplicated": PLAIN | {"deduplicate": True},
}
Extract = Callable[[str], str]
Scores = Float[np.ndarray, "N 2"]  # precision, NaN without a prediction, and recall of each page


def extractors() -> dict[str, Extract]:
    """Every way to get the text of a page's source."""
    ours = {name: extractor(MainTextRecipe.model_validate(own)) for name, own in SETTINGS.items()}
    theirs = {name: _theirs(own) for name, own in TRAFILATURA.items()}
    return {**ours, **theirs, "all visible text": lambda html: "".join(visible_text([html]))}


def _theirs(options: Mapping[str, Any]) -> Extract:
    return lambda html: trafilatura.extract(html, **options) or ""


def read_pages(data: Path) -> list[dict[str, str]]:
    """The pages in the order of the gold file: name, address, source and gold text."""
    folder = data / PAGES
    gold = json.loads((folder / "ground-truth.json").read_text(encoding="utf-8"))
    return [
        {
            "name": name,
            "url": own["url"],
            "html": decode_page(gzip.decompress((folder / f"html/{name}.html.gz").read_bytes())),
            "gold": own["articleBody"],
        }
        for name, own in gold.items()
    ]


def scores_of(texts: Sequence[str], gold: Sequence[str]) -> Scores:
    return np.array([precision_and_recall(*pair) for pair in zip(texts, gold, strict=True)])


def measures(scores: Scores, draws: np.ndarray) -> Float[np.ndarray, "D 3"]:
    """F1, precision and recall of each row of drawn pages."""
    precision, recall = np.moveaxis(np.nanmean(scores[draws], axis=1), -1, 0)
    return np.stack([2 * precision * recall / (precision + recall), precision, recall], axis=-1)


def summary(scores: Scores, draws: np.ndarray) -> dict[str, Any]:
    (values,) = measures(scores, np.arange(len(scores))[None])
    low, high = np.percentile(measures(scores, draws), [2.5, 97.5], axis=0)
    return {
        name: {"value": float(values[place]), "low": float(low[place]), "high": float(high[place])}
        for place, name in enumerate(("f1", "precision", "recall"))
    }


def difference(first: Scores, second: Scores, draws: np.ndarray) -> dict[str, float]:
    """F1 of the first less that of the second, with its paired interval."""
    whole = np.arange(len(first))[None]
    gaps = measures(first, draws)[:, 0] - measures(second, draws)[:, 0]
    low, high = np.percentile(gaps, [2.5, 97.5])
    value = float(measures(first, whole)[0, 0] - measures(second, whole)[0, 0])
    return {"value": value, "low": float(low), "high": float(high)}


def chosen_on_halves(scores: Mapping[str, Scores], seed: int = 0) -> dict[str, Any]:
    """Which setting is best on random halves, and its F1 on the other halves."""
    draw, number = np.random.default_rng(seed), len(next(iter(scores.values())))
    chosen, held_out = Counter[str](), []
    for _ in range(HALVES):
        order = draw.permutation(number)
        half, other = order[None, : number // 2], order[None, number // 2 :]
        best = max(scores, key=lambda name: measures(scores[name], half)[0, 0])
        chosen[best] += 1
        held_out.append(measures(scores[best], other)[0, 0])
    return {"halves": HALVES, "chosen": dict(chosen), "f1_held_out": float(np.mean(held_out))}


def other_limits(
    texts: Mapping[str, Sequence[str]], scores: Mapping[str, Scores], html: Sequence[str]
) -> list[dict[str, float]]:
    """F1 for other limits, in characters and as a share of the page, of what is little text."""
    lengths = np.array([len(text) for text in texts["fast, precision"]])
    trees: list[Any] = [trafilatura.load_html(page) for page in html]
    shown = np.array([0 if tree is None else sum(map(len, tree.xpath(SHOWN))) for tree in trees])
    found = []
    for characters, share in LIMITS:
        is_little = (lengths < np.maximum(characters, share * shown))[:, None]
        own = np.where(is_little, scores["precision"], scores["fast, precision"])
        (values,) = measures(own, np.arange(len(own))[None])
        again = float(is_little.mean())
        found.append({"characters": characters, "share": share, "f1": values[0], "again": again})
    return found


def without_pointers(text: str) -> str:
    return "\n".join(line for line in text.split("\n") if not POINTER.match(line))


def worst_pages(pages: Sequence[Mapping[str, str]], scores: Scores) -> list[dict[str, Any]]:
    """The pages of the lowest F1."""
    precision, recall = np.nan_to_num(scores).T
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-9)
    return [
        {
            "page": pages[place]["name"][:8],
            "url": pages[place]["url"],
            "f1": float(f1[place]),
            "precision": float(precision[place]),
            "recall": float(recall[place]),
        }
        for place in np.argsort(f1, kind="stable")[:WORST]
    ]


def measured(pages: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    gold = [page["gold"] for page in pages]
    draws = np.random.default_rng(0).integers(0, len(pages), (DRAWS, len(pages)))
    texts = {
        name: [extract(page["html"]) for page in pages] for name, extract in extractors().items()
    }
    scores = {name: scores_of(own, gold) for name, own in texts.items()}
    pointed = scores_of([*map(without_pointers, texts[OURS])], gold)
    best = max(TRAFILATURA, key=lambda name: summary(scores[name], draws[:1])["f1"]["value"])
    return {
        "pages": len(pages),
        "settings": {name: summary(own, draws) for name, own in scores.items()},
        "best_of_trafilatura": {"name": best, **difference(scores[OURS], scores[best], draws)},
        "halves": chosen_on_halves({name: scores[name] for name in [*SETTINGS, *TRAFILATURA]}),
        "limits": other_limits(texts, scores, [page["html"] for page in pages]),
        "without_pointers": summary(pointed, draws),
        "worst": worst_pages(pages, scores[OURS]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.extraction", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)
    result = measured(read_pages(options.data))
    command = " ".join(["python -m benchmarks.extraction", *sys.argv[1:]])
    measure.write_result(options.output, {"command": command, **measure.environment(), **result})


if __name__ == "__main__":
    main()
