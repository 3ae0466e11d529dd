"""Megabytes per second and core of each step of cleaning, beside datatrove's own and plain Python.

    taskset -c 1 python -m benchmarks.cleaning_steps [--data ../shared/data] [--repeats 7]
        [--steps gopher c4] [--output benchmarks/results/cleaning/steps.json]

Texts are English novels cut to lengths of web pages, WikiText, and the main texts of the gold
pages; `main_text` reads the sources of these. Engines alternate, each in CPU time, on one core of a
machine that does nothing else; a figure is the median.

datatrove's filters take words from nltk or spaCy, whose models are not in their packages, and so
have here the words, and the ends of sentences, that our steps use: what is compared is what they do
with them. Its `URLFilter` needs tldextract and pyahocorasick and its `LanguageFilter` fasttext,
which are not installed; `urls` is compared with plain Python instead, and `language` with
py3langid over the first 20,000 characters. datatrove's formatter masks no telephone numbers.
"""

import argparse
import gzip
import json
import logging
import random
import re
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks import measure
from benchmarks.extraction import read_pages
from stillhouse.cleaning.step import Judge, Page
from stillhouse.cleaning.steps import STEPS
from stillhouse.cleaning.steps.main_text import MainTextRecipe, extractor
from stillhouse.cleaning.words import TOKEN, WORD

RESULTS = Path(__file__).parent / "results" / "cleaning" / "steps.json"
OURS = "stillhouse"
TEXT_BYTES = 2_000_000  # of each kind of text
MEDIAN_CHARACTERS, SPREAD = 2500, 1.0  # of the log-normal lengths of documents
BLOCKED_SITES = 2000
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
Engine = Callable[[Sequence[Page]], None]


def novels(data: Path) -> list[str]:
    """Documents of novels, of lengths like those of web pages."""
    draw, found, size = random.Random(0), [], 0
    with gzip.open(data / "books" / "en.jsonl.gz", "rt", encoding="utf-8") as rows:
        for row in rows:
            text, start = json.loads(row)["text"], 0
            while start < len(text) and size < TEXT_BYTES:
                length = round(MEDIAN_CHARACTERS * draw.lognormvariate(0, SPREAD))
                found.append(text[start : start + length])
                start += length
                size += length
    return found


def wikitext(data: Path) -> list[str]:
    """Articles of WikiText-103's validation set."""
    path = data / "wikitext" / "wikitext-103" / "wiki.valid.tokens"
    text = path.read_text(encoding="utf-8")
    articles = re.split(r"\n(?= = [^=])", text)
    # datatrove's rules take a space at the end of a line for one without punctuation.
    return ["\n".join(map(str.strip, each.splitlines())) for each in articles]


def texts_of(data: Path) -> dict[str, list[Page]]:
    """The documents of each kind of text, and the pages' sources."""
    pages, extract = read_pages(data), extractor(MainTextRecipe())
    texts = {
        "novels": novels(data),
        "WikiText": wikitext(data),
        "web pages": [extract(page["html"]) for page in pages],
    }
    found = {
        name: [Page(str(place), text, _url(place)) for place, text in enumerate(own)]
        for name, own in texts.items()
    }
    found["source"] = [Page(page["name"], "", page["url"], page["html"]) for page in pages]
    return found


def _url(place: int) -> str:
    return f"https://www.site{place % 5000}.example/{place}"


def judging(judge: Judge) -> Engine:
    """A step over copies of pages, which it changes."""

    def run(pages: Sequence[Page]) -> None:
        for page in pages:
            judge(Page(page.id, page.text, page.url, page.html))

    return run


def datatrove_filter(*filters: Any) -> Engine:
    """datatrove's filters over documents; as a pipeline, the later ones see what is left."""
    from datatrove.data import Document

    def run(pages: Sequence[Page]) -> None:
        for page in pages:
            document = Document(text=page.text, id=page.id, metadata={"url": page.url})
            for each in filters:
                result = each.filter(document)
                if (result[0] if isinstance(result, tuple) else result) is False:
                    break

    return run


def with_splitters() -> None:
    """Give datatrove's filters the words and sentences of our steps."""
    from datatrove.pipeline.filters import (
        c4_filters,
        fineweb_quality_filter,
        gopher_quality_filter,
        gopher_repetition_filter,
    )

    def words(text: str, language: str) -> list[str]:
        return WORD.findall(text.lower())

    def tokens(text: str, language: str) -> list[str]:
        return TOKEN.findall(text)

    def sentences(text: str, language: str) -> list[str]:
        return [part for part in SENTENCE_END.split(text) if part]

    gopher_quality_filter.split_into_words = words
    gopher_repetition_filter.split_into_words = words
    fineweb_quality_filter.split_into_words = tokens
    c4_filters.split_into_sentences = sentences


def others() -> dict[str, dict[str, Engine]]:
    """What each step is compared with."""
    from datatrove.pipeline.extractors import Trafilatura
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )
    from datatrove.pipeline.formatters import PIIFormatter
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    with_splitters()
    trafilatura, formatter = Trafilatura(), PIIFormatter()
    py3langid = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    sites = [f"site{number}.example" for number in range(0, 2 * BLOCKED_SITES, 2)]
    return {
        "urls": {"plain Python": over(lambda page: _is_blocked(page.url, sites))},
        "main_text": {"datatrove": over(lambda page: trafilatura.extract(page.html or ""))},
        "length": {"plain Python": over(lambda page: len(TOKEN.findall(page.text)) >= 128)},
        "language": {"py3langid": over(lambda page: py3langid.classify(page.text[:20_000]))},
        "gopher": {"datatrove": datatrove_filter(GopherRepetitionFilter(), GopherQualityFilter())},
        "c4": {"datatrove": datatrove_filter(C4QualityFilter())},
        "fineweb": {"datatrove": datatrove_filter(FineWebQualityFilter(char_duplicates_ratio=0.1))},
        "personal_data": {"datatrove": over(lambda page: formatter.format(page.text))},
    }


def over(function: Callable[[Page], Any]) -> Engine:
    def run(pages: Sequence[Page]) -> None:
        for page in pages:
            function(page)

    return run


def _is_blocked(url: str, sites: Sequence[str]) -> bool:
    host = (urlsplit(url).hostname or "").removeprefix("www.")
    return any(host == site or host.endswith(f".{site}") for site in sites)


def settings_of(name: str) -> Mapping[str, Any]:
    if name == "urls":
        return {"block": [f"site{number}.example" for number in range(0, 2 * BLOCKED_SITES, 2)]}
    return {"keep": ["en", "de", "fr"]} if name == "language" else {}


def speeds(engines: Mapping[str, Engine], pages: Sequence[Page], repeats: int) -> dict[str, float]:
    """Megabytes of text, or of source, per second of CPU time."""
    size = sum(len((page.html or page.text).encode("utf-8", "replace")) for page in pages) / 1e6
    steps = {name: (lambda run=run: run(pages)) for name, run in engines.items()}
    seconds = measure.interleaved_seconds(steps, repeats=repeats, clock="cpu")
    return {name: size / statistics.median(own) for name, own in seconds.items()}


def measured(data: Path, names: Sequence[str], repeats: int) -> dict[str, Any]:
    texts = texts_of(data)
    source = {"web pages": texts.pop("source")}
    found: dict[str, Any] = {}
    for name, theirs in others().items():
        if names and name not in names:
            continue
        step = STEPS[name]
        judge = step.make(step.settings.model_validate(settings_of(name)))
        engines = {OURS: judging(judge), **theirs}
        own = source if name == "main_text" else texts
        found[name] = {kind: speeds(engines, pages, repeats) for kind, pages in own.items()}
        print(name, found[name], flush=True)
    html = [len((page.html or "").encode("utf-8", "replace")) for page in source["web pages"]]
    return {
        "steps": found,
        "web_pages": {"pages": len(html), "bytes": sum(html)},
        "settings": {"repeats": repeats, "text_bytes": TEXT_BYTES},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cleaning_steps", description=__doc__
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--repeats", type=int, default=7, help="timed rounds of each engine")
    parser.add_argument("--steps", nargs="*", default=[], help="some steps alone")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)
    result = measured(options.data, options.steps, options.repeats)
    command = " ".join(["python -m benchmarks.cleaning_steps", *sys.argv[1:]])
    measure.write_result(options.output, {"command": command, **measure.environment(), **result})


if __name__ == "__main__":
    main()
