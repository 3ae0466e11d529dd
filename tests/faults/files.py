"""Faults of files: disks that fail, damage, killed stages, hostile documents and model files."""

import contextlib
import errno
import functools
import gzip
import itertools
import json
import random
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.faults.disk import failing_disk
from tests.faults.harness import Trial, initialized, row
from tests.pipeline.processes import kill, serving
from tests.pipeline.tiny_run import Outcome, TinyRun, call, sha256, write_recipe
from tests.training.jobs import LENGTH, Silent, make_job

from stillhouse.errors import StillhouseError
from stillhouse.models.folder_check import load_config
from stillhouse.models.load import load_model
from stillhouse.recipe_file import load_recipe
from stillhouse.runs.manifest import commit_folder, read_manifest, verify
from stillhouse.tokens.shards import open_split
from stillhouse.tokens.tokenizer import load_tokenizer
from stillhouse.training.checkpoint import Checkpoints
from stillhouse.training.engine import train
from stillhouse.training.progress import Progress
from stillhouse.training.settings import CheckpointRecipe
from stillhouse.training.step import make_optimizer

DISK_ERRORS = {errno.ENOSPC: 6, errno.EIO: 6, errno.EROFS: 5, errno.EACCES: 5}


def check_refusal(found: Outcome, code: int) -> None:
    assert found.code == code, found
    assert found.err.count("error: ") == 1, found.err
    assert "Traceback" not in found.err


def files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def damage(path: Path, draw: random.Random) -> str:
    """Flip a bit, cut, or remove; returns which."""
    kind = draw.choice(("flip", "cut", "remove"))
    content = bytearray(path.read_bytes())
    if kind == "flip" and content:
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
    elif kind == "cut" and content:
        path.write_bytes(content[: draw.randrange(len(content))])
    else:
        path.unlink()
    return f"{kind} {path}"


@row(
    5,
    "disk full, I/O error, read-only or no permission, from the n-th write of a training on",
    "a clear error and exit code, every commit intact; a rerun without the fault is bit-identical",
    full=200,
    sample=2,
)
def failing_writes(folder: Path) -> Iterator[Trial]:
    ready = initialized(folder)
    whole = ready.copy(folder / "whole")
    with failing_disk(whole.folder, None, 0) as disk:
        assert whole.call("distill").code == 0

    def trial(draw: random.Random) -> None:
        number, code = draw.choice(sorted(DISK_ERRORS.items()))
        run = ready.copy(folder / "failing")
        fails_at = draw.randint(1, disk.writes)
        with failing_disk(run.folder, fails_at, number) as failing:
            check_refusal(run.call("distill"), code)
        left = run.checkpoints()
        for checkpoint in left:
            verify(checkpoint)
        if not (run.folder / "student").exists():
            assert [path.name for path in left] == failing.commits[-len(left) :], left
            assert bool(left) == bool(failing.commits)
        again = run.call("distill")
        assert again.code == 0, again.err
        assert run.weights() == whole.weights()
        assert not list(run.folder.rglob("*.tmp-*"))

    yield trial


@row(
    6,
    "a bit flipped, a file cut or removed, in a checkpoint",
    "detected; training falls back to the previous checkpoint and logs it",
    full=500,
    sample=5,
)
def damaged_checkpoints(folder: Path) -> Iterator[Trial]:
    settings = {"checkpoint": {"every_steps": 1}, "micro_batch_tokens": 6 * LENGTH}
    job = make_job(folder, **settings)
    train(job, Silent())
    kept = folder / "kept"
    (folder / "checkpoints").rename(kept)

    def trial(draw: random.Random) -> None:
        shutil.copytree(kept, folder / "checkpoints")
        again = make_job(folder, **settings)
        before, newest = again.checkpoints.committed()
        what = damage(draw.choice(files_below(newest)), draw)
        said: list[str] = []
        again.checkpoints.say = said.append
        optimizer = make_optimizer(again.model, again.recipe.optimizer)
        progress = again.checkpoints.load_newest(again.model, optimizer) or Progress()
        assert progress.step == int(before.name.removeprefix("step-")), what
        assert "is damaged and was moved to" in said[0], what
        assert again.checkpoints.committed() == [before]
        shutil.rmtree(folder / "checkpoints")

    yield trial


@row(
    6,
    "the same in token shards, tokenizer, teacher or initial student",
    "detected before training, with the file's name",
    full=500,
    sample=5,
)
def damaged_inputs(folder: Path) -> Iterator[Trial]:
    ready = initialized(folder)
    outputs = [ready.folder / name for name in ("tokens", "teacher", "student-init")]

    def trial(draw: random.Random) -> None:
        path = draw.choice([path for output in outputs for path in files_below(output)])
        kept = path.read_bytes()
        output = next(output for output in outputs if path.is_relative_to(output))
        what = damage(path, draw)
        found = ready.call("distill")
        path.write_bytes(kept)
        assert found.code in (3, 4, 5), (what, found)
        assert str(output) in found.err, (what, found)
        assert "Traceback" not in found.err
        assert not ready.metrics(), what  # no step was taken

    yield trial


@row(
    9,
    "prepare killed, or out of disk, at a random moment",
    "no partial output is used; a rerun gives the same bytes",
    full=200,
    sample=3,
)
def interrupted_preparing(folder: Path) -> Iterator[Trial]:
    run = TinyRun(write_recipe(folder), folder / "whole")
    with failing_disk(run.folder, None, 0) as disk:
        assert run.call("prepare").code == 0
    expected = contents(run)

    with serving(folder) as server:

        def trial(draw: random.Random) -> None:
            run = TinyRun(folder / "tiny.yaml", folder / "run")
            shutil.rmtree(run.folder, ignore_errors=True)
            if draw.random() < 0.5:
                processes = server.start(run, command="prepare")
                time.sleep(draw.uniform(0, 0.5))
                kill(processes, signal.SIGKILL)
                server.wait()
            else:
                with failing_disk(run.folder, draw.randint(1, disk.writes), errno.ENOSPC):
                    check_refusal(run.call("prepare"), 6)
            for name in ("tokens", "corpus"):
                if (run.folder / name).exists():
                    verify(run.folder / name)
            assert run.call("prepare").code == 0
            assert contents(run) == expected

        yield trial


CACHED = "distillation.teacher_outputs={cache: sampled, size: 8}"


@row(
    9,
    "the same with a teacher cache and the training from it",
    "no partial output is used; a rerun gives the same bytes and the same student",
    full=100,
    sample=1,
)
def interrupted_caching(folder: Path) -> Iterator[Trial]:
    small_parts = "import stillhouse.distillation.cache as cache; cache.TOKENS_PER_PART = 512"
    ready = initialized(folder)
    whole = ready.copy(folder / "whole")
    with serving(folder) as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr("stillhouse.distillation.cache.TOKENS_PER_PART", 512)
        with failing_disk(whole.folder, None, 0) as disk:
            assert whole.call("distill", "--set", CACHED).code == 0

        def trial(draw: random.Random) -> None:
            run = ready.copy(folder / "tried")
            cache = run.folder / "teacher-cache"
            if draw.random() < 0.5:
                processes = server.start(run, CACHED, inject={0: small_parts})
                deadline = time.monotonic() + 60
                while not cache.exists():
                    assert time.monotonic() < deadline, server.log.read_text()
                    time.sleep(0.001)
                time.sleep(draw.uniform(0, 0.3))
                kill(processes, signal.SIGKILL)
                server.wait()
            else:
                with failing_disk(run.folder, draw.randint(1, disk.writes), errno.ENOSPC):
                    check_refusal(run.call("distill", "--set", CACHED), 6)
            for part in cache.glob("part-*"):
                verify(part)
            again = run.call("distill", "--set", CACHED)
            assert again.code == 0, again.err
            assert cached(run) == cached(whole)
            assert run.weights() == whole.weights()
            assert not list(run.folder.rglob("*.tmp-*"))

        yield trial


def cached(run: TinyRun) -> dict[str, str]:
    """The hash of each file of the teacher cache."""
    cache = run.folder / "teacher-cache"
    assert len(list(cache.glob("part-*"))) > 2
    return {str(path.relative_to(cache)): sha256(path) for path in cache.rglob("*.bin")}


def contents(run: TinyRun) -> dict[str, dict]:
    """Size and hash of every file that prepare wrote."""
    manifests = {name: read_manifest(run.folder / name) for name in ("tokens", "corpus")}
    for name in manifests:
        verify(run.folder / name)
    assert not list(run.folder.rglob("*.tmp-*"))
    return {name: dict(m.files) for name, m in manifests.items() if m is not None}


PLANES = ((0xA0, 0xD7FF), (0x10000, 0x10FFFF))
ODD = (
    "\u202e", "\U0001f600", "\ufeff", "\u0301", "\x07", "\x1b[2J", "\x7f", "\u2028", "\ufffd",
    "\x85",
)  # fmt: skip


def odd_text(draw: random.Random) -> str:
    """Text of every kind that is allowed: odd characters, long words, long runs of spaces."""
    pieces = []
    for _ in range(draw.randint(0, 12)):
        kind = draw.randrange(5)
        if kind == 0:
            pieces.append("".join(chr(draw.randint(32, 126)) for _ in range(draw.randint(1, 40))))
        elif kind == 1:
            pieces.append(draw.choice(ODD) * draw.randint(1, 20))
        elif kind == 2:
            pieces.append(" " * draw.randint(1, 200) + "\t" * draw.randint(0, 9))
        elif kind == 3:
            pieces.append(chr(draw.choice([draw.randint(*span) for span in PLANES])))
        else:
            pieces.append("x" * draw.randint(1, 3000))
    return "".join(pieces)


BROKEN_LINES = [
    b'{"text": "a"',
    b'{"text": 5}',
    b'["text"]',
    b"\xff\xfe{}",
    b'{"text": "\\ud800"}',
    b'{"other": "a"}',
    b'{"text": null}',
    b'{"text": "\x00"}',
    b"[" * 5000,
    b'{"text": "a", "n": ' + b"9" * 5000 + b"}",
]
BROKEN_TEXT = [b"\xff", b"\xc3\x28", b"\x00", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80"]
DOCUMENTS = 1_000


@row(
    10,
    f"JSONL and text of {DOCUMENTS:,} odd documents, in half of the files one that is broken",
    "every document is kept, or the broken one is reported by line; under 5 s, bounded memory",
    full=100,
    sample=2,
)
def odd_documents(folder: Path) -> Iterator[Trial]:
    recipe = write_recipe(folder)
    base = recipe.read_text(encoding="utf-8")

    def trial(draw: random.Random) -> None:
        jsonl, broken = draw.random() < 0.5, draw.random() < 0.5
        texts = [odd_text(draw) for _ in range(DOCUMENTS)]
        if jsonl:
            lines = [
                json.dumps({"text": text}, ensure_ascii=draw.random() < 0.5).encode("utf-8")
                for text in texts
            ]
        else:
            lines = [text.replace("\r", " ").encode("utf-8") for text in texts]
        place = draw.randrange(DOCUMENTS)
        if broken:
            lines[place] = draw.choice(BROKEN_LINES if jsonl else BROKEN_TEXT)
        source = folder / f"odd.{'jsonl' if jsonl else 'txt'}"
        source.write_bytes(b"\n".join(lines) + b"\n")
        recipe.write_text(base.replace(str(folder / "text.txt"), str(source)), encoding="utf-8")
        run = TinyRun(recipe, folder / "run")
        shutil.rmtree(run.folder, ignore_errors=True)
        before, started = begin_peak(), time.monotonic()
        found = run.call("prepare")
        assert time.monotonic() - started < 5
        assert peak_bytes() - before < 2**29
        if broken:
            check_refusal(found, 3)
            assert str(source) in found.err
            assert not jsonl or f"row {place + 1}" in found.err, found.err
            assert not (run.folder / "tokens").exists()
            return
        assert found.code == 0, found.err
        manifest = read_manifest(run.folder / "corpus")
        assert manifest is not None
        kept = sum(split["documents"] for split in manifest.facts["splits"].values())
        assert kept == sum(bool(text.strip()) for text in texts)

    yield trial


GIGABYTE = 10**9


@row(
    10,
    "text and JSONL with a line of 1 GB, plain and compressed, of words and of one word",
    "text is kept whole; a JSONL line is rejected by number in under 5 s; bounded memory",
    full=8,
    sample=0,
)
def long_lines(folder: Path) -> Iterator[Trial]:
    ready = initialized(folder)
    base = ready.recipe.read_text(encoding="utf-8")
    tokenizer = f"tokens.tokenizer={ready.folder / 'tokens/tokenizer'}"
    kinds = itertools.cycle(itertools.product(("txt", "jsonl"), ("", ".gz"), (b"word ", b"x")))

    def trial(draw: random.Random) -> None:
        kind, compressed, text = next(kinds)
        source = folder / f"long.{kind}{compressed}"
        block = text * (2**20 // len(text))
        around = (b"", b"\n") if kind == "txt" else (b'{"text": "', b'"}\n')
        opened = functools.partial(gzip.open, compresslevel=1) if compressed else open
        with opened(source, "wb") as file:
            for number in range(100):
                file.write(b"line %d".join(around) % number)
            file.write(around[0])
            for _ in range(GIGABYTE // len(block)):
                file.write(block)
            file.write(around[1])
        recipe = folder / "long.yaml"
        recipe.write_text(re.sub("source: [^,]+", f"source: {source}", base), encoding="utf-8")
        run = TinyRun(recipe, folder / "tried")
        shutil.rmtree(run.folder, ignore_errors=True)
        before, started = begin_peak(), time.monotonic()
        found = run.call("prepare", "--set", tokenizer)
        assert peak_bytes() - before < 2**29
        source.unlink()
        if kind == "jsonl":
            assert time.monotonic() - started < 5
            check_refusal(found, 3)
            assert "line 101" in found.err
            return
        assert found.code == 0, found.err
        manifest = read_manifest(run.folder / "corpus")
        assert manifest is not None
        splits = manifest.facts["splits"].values()
        assert sum(split["documents"] for split in splits) == 101
        assert sum(split["bytes"] for split in splits) > GIGABYTE // len(block) * len(block)

    yield trial


def begin_peak() -> int:
    """Resident memory now, from which the peak is counted again."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status_bytes("VmRSS")


def peak_bytes() -> int:
    return _status_bytes("VmHWM")


def _status_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(key)))


def mutated(content: bytes, draw: random.Random) -> bytes:
    """A file's content with a few hostile changes."""
    changed = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        kind, place = draw.randrange(6), draw.randrange(max(1, len(changed)))
        if kind == 0 and changed:
            changed[place] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del changed[place:]
        elif kind == 2:
            changed[place:place] = draw.choice(HOSTILE)
        elif kind == 3:
            other = draw.randrange(max(1, len(changed)))
            changed[place:place] = changed[min(place, other) : max(place, other)][:4096]
        elif kind == 4:
            digits = [n for n, byte in enumerate(changed[:4096]) if 48 <= byte <= 57]
            if digits:
                where = draw.choice(digits)
                changed[where : where + 1] = draw.choice(NUMBERS)
        else:
            del changed[place : place + draw.randint(1, 64)]
    return bytes(changed)


SENTINEL = "/tmp/stillhouse-code-ran"
NUMBERS = [b"-1", b"0", b"1e309", b"99999999999", b"NaN", b"2147483648", b"18446744073709551616"]
HOSTILE = [
    b"\x00", b"\xff\xff", b"null", b'"', b"{", b"}", b"[" * 100, b"&a [*a]", b"\n- - -\n",
    b"!!python/object/apply:os.system ['touch /tmp/stillhouse-code-ran']", b"../../etc/passwd",
    b"__import__('os').system('touch /tmp/stillhouse-code-ran')", b"\xf0\x9f", b"<<: *x",
    b'"auto_map": {"AutoModel": "evil.Model"},', b'"__class__": "os",',
]  # fmt: skip


@row(
    11,
    "hostile configurations, weights, tokenizers, manifests, shard indexes and recipes",
    "a typed error or a usable file; no code is executed; memory at most twice the file plus 64 MB",
    full=50_000,
    sample=60,
)
def hostile_files(folder: Path) -> Iterator[Trial]:
    ready = initialized(folder)
    tokens, student = ready.folder / "tokens", ready.folder / "student-init"
    readers: list[tuple[Path, Callable[[], object]]] = [
        (student / "config.json", lambda: load_config(student)),
        (student / "model.safetensors", lambda: load_model(student)),
        (tokens / "tokenizer/tokenizer.json", lambda: load_tokenizer(tokens / "tokenizer")),
        (tokens / "tokenizer/tokenizer_config.json", lambda: load_tokenizer(tokens / "tokenizer")),
        (tokens / "manifest.json", lambda: open_split(tokens, "train")),
        (tokens / "train-00000.idx", lambda: open_split(tokens, "train")),
        (ready.recipe, lambda: load_recipe(str(ready.recipe), [])),
    ]
    job = make_job(folder, micro_batch_tokens=6 * LENGTH, max_tokens=12 * LENGTH)
    train(job, Silent())
    optimizer = make_optimizer(job.model, job.recipe.optimizer)
    job.checkpoints.save(job.model, optimizer, Progress(9))
    job.checkpoints.finish()
    checkpoint = job.checkpoints.committed()[-1]

    def load_checkpoint() -> None:
        """As if its writer had been hostile: the manifest has the hash of the changed file."""
        place = folder / "hostile"
        shutil.rmtree(place, ignore_errors=True)
        with commit_folder(place / checkpoint.name, job.checkpoints.inputs) as temporary:
            for path in files_below(checkpoint):
                if path.name != "manifest.json":
                    shutil.copyfile(path, temporary / path.name)
        again = make_job(folder, micro_batch_tokens=6 * LENGTH)
        Checkpoints(
            place, job.checkpoints.inputs, CheckpointRecipe(), lambda message: None
        ).load_newest(again.model, make_optimizer(again.model, again.recipe.optimizer))

    files = ("model-00001-of-00001.safetensors", "optimizer-00001-of-00001.safetensors")
    readers += [(checkpoint / name, load_checkpoint) for name in ("state.json", *files)]
    originals = {path: path.read_bytes() for path, _ in readers}

    def trial(draw: random.Random) -> None:
        path, read = draw.choice(readers)
        content = mutated(originals[path], draw)
        path.write_bytes(content)
        before = begin_peak()
        try:
            with contextlib.suppress(StillhouseError):
                read()
        finally:
            path.write_bytes(originals[path])
        assert peak_bytes() - before < 2 * len(content) + 2**26, path
        assert not Path(SENTINEL).exists(), path

    yield trial
    assert call("doctor", ready.folder).code == 0
