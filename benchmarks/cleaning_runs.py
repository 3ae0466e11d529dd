"""Whole runs of cleaning on generated text: speed by processes, and memory by the size of the text.

    python -m benchmarks.cleaning_runs scaling [--megabytes 300] [--repeats 3]
    python -m benchmarks.cleaning_runs sizes [--megabytes 100 500 2000]

Documents are made of sentences of the English novels, drawn at random from a seed, so that nothing
repeats and deduplication removes hardly any: 20 to 60 sentences, in paragraphs of five. The text is
one JSON Lines file, which cleaning divides. Every run is `stillhouse clean` as a user calls it, in
a process of its own, with one thread for each of its processes.

`scaling` compares `--workers 1` with `--workers 2` on the same file, alternating, by wall time.
`sizes` measures time and memory of two processes on files of several sizes, and then of the stage
that reads the cleaned text, `prepare`, on the smallest and the largest. Memory is what cannot be
given back (RssAnon), summed over the processes of a run, read every 0.2 s; pages of files that are
mapped, which the system drops when it needs them, are not in it. Each writes a file to
benchmarks/results/cleaning.
"""

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks import measure
from benchmarks.planted import read_books
from stillhouse.runs.manifest import facts_of

RESULTS = Path(__file__).parent / "results" / "cleaning"
BOOKS = Path("books", "en.jsonl.gz")
STEPS = ("length", "language", "gopher", "duplicates", "near_duplicates", "duplicate_lines")
SEED = 0
SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
CHARACTERS = 40, 400  # of a sentence
SENTENCES, PARAGRAPH = (20, 60), 5
SAMPLE_SECONDS = 0.2


def sentences_of(books: Sequence[str]) -> list[str]:
    """The sentences of novels, without line breaks."""
    parts = (" ".join(part.split()) for book in books for part in SENTENCE.split(book))
    return sorted({part for part in parts if CHARACTERS[0] <= len(part) <= CHARACTERS[1]})


def documents(sentences: Sequence[str], size: int) -> Iterator[str]:
    """Documents of `size` bytes together."""
    draw = random.Random(SEED)
    while size > 0:
        chosen = draw.choices(sentences, k=draw.randint(*SENTENCES))
        starts = range(0, len(chosen), PARAGRAPH)
        text = "\n\n".join(" ".join(chosen[start : start + PARAGRAPH]) for start in starts)
        size -= len(text.encode())
        yield text


def write_text(sentences: Sequence[str], megabytes: int, file: Path) -> None:
    with file.open("w", encoding="utf-8") as lines:
        for text in documents(sentences, megabytes * 10**6):
            lines.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")


def write_recipe(text: Path, file: Path) -> None:
    """A recipe that cleans a file; only what `prepare` needs is given beside it."""
    steps: dict[str, Any] = {name: {} for name in STEPS} | {"language": {"keep": ["en"]}}
    corpus, tokens = {"source": str(text)}, {"sequence_length": 256}
    recipe = {"teacher": "sample", "corpus": corpus, "tokens": tokens, "cleaning": steps}
    file.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """Run the command: wall time, CPU time, and the peak of memory.

    Raises:
        CalledProcessError: it failed.
    """
    command = [sys.executable, "-m", "stillhouse", *arguments]
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as log:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        watched = _Watched(process.pid)
        code = process.wait()
        wall = time.monotonic() - started
        if code:
            log.seek(0)
            raise subprocess.CalledProcessError(code, command, log.read())
    return {"wall_seconds": wall, **watched.stop()}


class _Watched:
    """The CPU time of a process and those it started, and the most memory that they held at once.

    The time is what each had used when it was last seen: those that serve a pool are waited for by
    a process that is not the one that started them, so that none counts their time.
    """

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._most, self._most_of_one = 0, 0
        self._seconds: dict[int, float] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            try:
                family = [self._process, *self._process.children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            held = [_anonymous_bytes(own.pid) for own in family]
            for own in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    times = own.cpu_times()
                    self._seconds[own.pid] = times.user + times.system
            self._most = max(self._most, sum(held))
            self._most_of_one = max(self._most_of_one, *held)

    def stop(self) -> dict[str, float]:
        self._ended.set()
        self._thread.join()
        return {
            "cpu_seconds": sum(self._seconds.values()),
            "peak_bytes": self._most,
            "peak_bytes_of_one_process": self._most_of_one,
        }


def _anonymous_bytes(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    found = re.search(r"^RssAnon:\s+(\d+) kB$", status, re.MULTILINE)
    return 1024 * int(found.group(1)) if found else 0


def clean(folder: Path, recipe: Path, workers: int) -> dict[str, Any]:
    """One run of `stillhouse clean`, with what is left of the text."""
    shutil.rmtree(folder / "run", ignore_errors=True)
    options = ["--run-dir", str(folder / "run"), "--workers", str(workers), "--offline"]
    found = run(["clean", str(recipe), *options])
    facts = facts_of(folder / "run" / "clean")
    finding = {name: own["seconds"] for name, own in facts["repeats"].items()}
    counts = {name: facts["text"][name] for name in ("documents", "bytes")}
    return {**found, "workers": workers, "finding_seconds": finding, "text": counts}


def scaling(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Wall time of one process and of two, alternating."""
    text, recipe = folder / "text.jsonl", folder / "recipe.yaml"
    write_recipe(text, recipe)
    write_text(sentences_of(read_books(options.data / BOOKS)), min(options.megabytes), text)
    clean(folder, recipe, 2)  # a warm-up: bytecode, pages of libraries
    walls: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(options.repeats):
        for workers, seconds in walls.items():
            seconds.append(clean(folder, recipe, workers)["wall_seconds"])
    ratio = statistics.median(walls[1]) / statistics.median(walls[2])
    return {"megabytes": min(options.megabytes), "wall_seconds": walls, "ratio": ratio}


def sizes(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Time and memory of two processes, by the size of the text."""
    sentences = sentences_of(read_books(options.data / BOOKS))
    text, recipe = folder / "text.jsonl", folder / "recipe.yaml"
    write_recipe(text, recipe)
    found: dict[int, Any] = {}
    for megabytes in sorted(options.megabytes):
        write_text(sentences, megabytes, text)
        found[megabytes] = {"clean": clean(folder, recipe, 2)}
        if megabytes in (min(options.megabytes), max(options.megabytes)):
            options_of_run = ["--run-dir", str(folder / "run"), "--offline"]
            found[megabytes]["prepare"] = run(["prepare", str(recipe), *options_of_run])
        print(megabytes, found[megabytes], flush=True)
    return {"sizes": found}


MEASURES = {"scaling": (scaling, [300]), "sizes": (sizes, [100, 500, 2000])}


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cleaning_runs", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("measure", choices=MEASURES)
    parser.add_argument("--megabytes", type=int, nargs="+", help="sizes of the text")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each number of processes")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--folder", type=Path, help="of the runs; by default a temporary one")
    parser.add_argument("--output", type=Path, help="by default a file in benchmarks/results")
    return parser.parse_args(arguments)


def main() -> None:
    options = parse_options()
    measured, megabytes = MEASURES[options.measure]
    options.megabytes = options.megabytes or megabytes
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        found = measured(options, Path(name))
    result = {
        "command": " ".join(["python -m benchmarks.cleaning_runs", *sys.argv[1:]]),
        "seed": SEED,
        **measure.environment(),
        "steps": list(STEPS),
        "load_average": os.getloadavg(),
        **found,
    }
    measure.write_result(options.output or RESULTS / f"{options.measure}.json", result)


if __name__ == "__main__":
    main()
