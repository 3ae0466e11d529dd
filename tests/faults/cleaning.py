"""Faults while text is cleaned: kills of all processes or of one, and a disk that fills."""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.faults.harness import Trial, row

from stillhouse.errors import ResourceError
from stillhouse.runs.manifest import read_manifest, verify

PAGES = 240
SHARD_BYTES = 40_000
LOG_BYTES = 4096  # what a job may say, in a file that the limit applies to as well
# Cleans without the command line, whose imports take longer than the cleaning.
JOB = """
import sys
from pathlib import Path
from stillhouse.cleaning.clean import clean
from stillhouse.cleaning.job import Cleaning
from stillhouse.cleaning.settings import CleaningRecipe
from stillhouse.data.settings import CorpusRecipe
from stillhouse.errors import StillhouseError
from stillhouse.runs.atomic import explained_os_errors

if __name__ == "__main__":
    steps = {"main_text": {}, "length": {"min_tokens": 20}, "personal_data": {}, "duplicates": {}}
    recipe = CleaningRecipe(**steps, shard_bytes=int(sys.argv[3]), workers=2, keep_rejected=True)
    corpus = CorpusRecipe(source=[sys.argv[1] + "/pages", sys.argv[1] + "/large.jsonl"])
    try:
        with explained_os_errors(sys.argv[2]):  # as the pipeline does
            clean(Cleaning.of(Path(sys.argv[2]), corpus, recipe, offline=True), print)
    except StillhouseError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
"""
WORDS = [
    "river",
    "stone",
    "window",
    "letter",
    "garden",
    "morning",
    "carriage",
    "answer",
    "silence",
    "evening",
    "paper",
]


def write_text(folder: Path) -> None:
    """Small pages, and one large file that is divided; some documents occur twice."""
    draw = random.Random(0)

    def paragraph() -> str:
        return " ".join(draw.choices(WORDS, k=60)).capitalize() + "."

    (folder / "pages").mkdir(parents=True)
    for number in range(PAGES):
        text = "".join(f"<p>{paragraph()}</p>" for _ in range(5))
        page = f"<html><body><nav>Home</nav><article>{text}</article></body></html>"
        for copy in range(1 + (number % 10 == 0)):
            (folder / f"pages/{number:03d}-{copy}.html").write_text(page, encoding="utf-8")
    lines = [f'{{"id": "l{n}", "text": "{paragraph()}"}}\n' for n in range(600)]
    (folder / "large.jsonl").write_text("".join(lines), encoding="utf-8")


def start(folder: Path, clean: Path, largest_file: int | None = None) -> subprocess.Popen[bytes]:
    """Start to clean; what it says goes to `folder`/log.txt."""

    def limit() -> None:
        if largest_file is not None:  # the error of a larger one is treated as that of a full disk
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

    with (folder / "log.txt").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-c", JOB, str(folder), str(clean), str(SHARD_BYTES)],
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
            preexec_fn=limit,
        )


def said(folder: Path) -> str:
    return (folder / "log.txt").read_text(encoding="utf-8")


def finished(clean: Path) -> str | None:
    """The fingerprint of a finished folder, whose files are whole; None while it is not."""
    manifest = read_manifest(clean)
    if manifest is None:
        return None
    verify(clean)
    return manifest.fingerprint


def workers_of(job: subprocess.Popen[bytes]) -> list[int]:
    """The processes of a job but the first, which are of its session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == job.pid and int(path.parent.name) != job.pid:
            found.append(int(path.parent.name))
    return found


def cleaned(folder: Path) -> tuple[Path, str, float]:
    """A folder to clean, the fingerprint of the result, and the seconds that it takes."""
    write_text(folder)
    started = time.monotonic()
    job = start(folder, folder / "whole")
    assert job.wait() == 0, said(folder)
    fingerprint = finished(folder / "whole")
    assert fingerprint is not None
    return folder / "clean", fingerprint, time.monotonic() - started


@row(
    16,
    "kill -9 of all processes that clean text, or of one of them, at random moments",
    "no shard is half written; the text that the next run finishes is the same to the byte",
    full=200,
    sample=4,
)
def kills_while_cleaning(folder: Path) -> Iterator[Trial]:
    clean, expected, seconds = cleaned(folder)

    def trial(draw: random.Random) -> None:
        if finished(clean):
            shutil.rmtree(clean)
        job = start(folder, clean)
        time.sleep(draw.uniform(0.3, 1) * seconds)
        if draw.random() < 0.5 or not (workers := workers_of(job)):
            os.killpg(job.pid, signal.SIGKILL)
            job.wait()
        else:
            os.kill(draw.choice(workers), signal.SIGKILL)
            assert job.wait(60) in (0, ResourceError.exit_code), said(folder)
        assert finished(clean) in (None, expected)

    yield trial
    job = start(folder, clean)
    assert job.wait(60) == 0
    assert finished(clean) == expected
    left = {path.name for path in clean.iterdir() if not path.name.startswith("part-")}
    assert left == {"manifest.json"}, left


@row(
    16,
    "a disk that fills while text is cleaned",
    "one message; what is done is kept, and the next run gives the same text to the byte",
    full=60,
    sample=2,
)
def full_disks_while_cleaning(folder: Path) -> Iterator[Trial]:
    clean, expected, _ = cleaned(folder)
    largest = max(path.stat().st_size for path in (folder / "whole").rglob("*"))

    def trial(draw: random.Random) -> None:
        shutil.rmtree(clean, ignore_errors=True)
        job = start(folder, clean, draw.randrange(LOG_BYTES, largest))
        code = job.wait(60)
        message = said(folder)
        assert code in (0, ResourceError.exit_code), message
        if code:
            assert "disk is full" in message, message
            assert "Traceback" not in message, message
        again = start(folder, clean)
        assert again.wait(60) == 0
        assert finished(clean) == expected

    yield trial
