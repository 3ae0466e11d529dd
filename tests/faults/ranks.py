"""Faults among many ranks: their number changes, one has a failing disk or no memory."""

import itertools
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.faults.files import DISK_ERRORS
from tests.faults.harness import Trial, initialized, row
from tests.faults.training import LONGER, MEMORY_ERRORS, SHARDED, STEPS, outcome
from tests.pipeline.processes import STOPPED, kill, serving, wait_for_step
from tests.pipeline.tiny_run import TinyRun

from stillhouse.errors import ResourceError, TrainingError
from stillhouse.objectives.language_model import LanguageModelObjective
from stillhouse.runs.manifest import verify

WORLDS = (1, 2, 4, 2)
SETTINGS = (*LONGER, "distillation.dropout=false")  # four ranks take smaller micro-batches


@row(
    3,
    "1, 2, 4, then 2 ranks in one training, each sharded or not",
    "every sample once per epoch; each step's loss within 0.01 % of one rank's",
    full=20,
    sample=1,
)
def changing_worlds(folder: Path) -> Iterator[Trial]:
    with serving(folder) as server:
        ready = initialized(folder)
        whole = ready.copy(folder / "whole")
        code, log = server.distill(whole, *SETTINGS)
        assert code == 0, log
        expected = outcome(whole)[1]

        def trial(draw: random.Random) -> None:
            run = ready.copy(folder / "tried")
            for number, ranks in enumerate(WORLDS, start=1):
                settings = (*SETTINGS, *(SHARDED if draw.random() < 0.5 else ()))
                if number == len(WORLDS):
                    code, log = server.distill(run, *settings, ranks=ranks)
                    assert code == 0, log
                    assert "damaged" not in log
                    break
                processes = server.start(run, *settings, ranks=ranks)
                wanted = draw.randint(STEPS * (number - 1) // 4 + 1, STEPS * number // 4)
                wait_for_step(server, run, wanted)
                kill(processes, signal.SIGTERM)
                assert set(server.wait()) <= {128 + signal.SIGTERM, -signal.SIGTERM}
            losses = outcome(run)[1]
            assert [step for step, _ in losses] == list(range(1, STEPS + 1))
            # A step's loss follows from its samples: were one missing or read twice, it would show.
            for (_, loss), (_, other) in zip(losses, expected, strict=True):
                assert abs(loss - other) <= 1e-4 * other
            ours, theirs = run.metrics(), whole.metrics()
            assert [line["tokens"] for line in ours] == [line["tokens"] for line in theirs]

        yield trial


LAYOUTS = ((), SHARDED)
LEFT = {TrainingError.exit_code, STOPPED, -signal.SIGTERM}  # how a rank leaves after another


@row(
    5,
    "the same on one of two ranks, sharded or not",
    "a clear error, every commit intact; a rerun without the fault is bit-identical",
    full=50,
    sample=0,
)
def failing_writes_of_a_rank(folder: Path) -> Iterator[Trial]:
    with serving(folder) as server:
        ready = initialized(folder)
        wholes = [ready.copy(folder / f"whole-{number}") for number in range(len(LAYOUTS))]
        writes = []
        for whole, layout in zip(wholes, LAYOUTS, strict=True):
            counted = [folder / f"{whole.folder.name}-{rank}.txt" for rank in range(2)]
            inject = {rank: watched_disk(whole, None, 0, path) for rank, path in enumerate(counted)}
            server.start(whole, *LONGER, *layout, ranks=2, inject=inject)
            assert server.wait() == [0, 0], server.log.read_text()
            writes.append([path.read_text().split().count("write") for path in counted])

        def trial(draw: random.Random) -> None:
            sharded = draw.randrange(2)
            victim = draw.randrange(2) if sharded else 0  # of replicas the first one writes
            number, code = draw.choice(sorted(DISK_ERRORS.items()))
            run, settings = ready.copy(folder / "tried"), (*LONGER, *LAYOUTS[sharded])
            fails_at, log = draw.randint(1, writes[sharded][victim]), folder / "writes.txt"
            inject = watched_disk(run, fails_at, number, log)
            server.start(run, *settings, ranks=2, inject={victim: inject})
            codes, said = server.wait(), server.log.read_text()
            assert "Traceback" not in said
            assert "This is a bug" not in said
            assert codes[victim] == code, said
            assert codes[1 - victim] in LEFT | {code}, said
            kept = [path.name for path in run.checkpoints()]
            for name in kept:
                verify(run.folder / "checkpoints/student" / name)
            if not (run.folder / "student").exists() and not victim:
                committed = [word for word in log.read_text().split() if word != "write"]
                assert kept == committed[-len(kept) :]
                assert bool(kept) == bool(committed)
            assert server.distill(run, *settings, ranks=2)[0] == 0
            assert outcome(run) == outcome(wholes[sharded])
            assert not list(run.folder.rglob("*.tmp-*"))

        yield trial


@row(
    8,
    "memory refused on one of two ranks, sharded or not",
    "replicas halve the micro-batch together with the same result, or one clear error",
    full=20,
    sample=1,
)
def refused_on_a_rank(folder: Path) -> Iterator[Trial]:
    with serving(folder) as server:
        ready = initialized(folder)
        whole = ready.copy(folder / "whole")
        code, log = server.distill(whole, *SETTINGS)
        assert code == 0, log
        expected, layouts = outcome(whole)[1], itertools.cycle(range(len(LAYOUTS)))

        def trial(draw: random.Random) -> None:
            sharded, victim = next(layouts), draw.randrange(2)
            # After the blank passes; in the first step, too, where each term passes by itself.
            call, error = draw.randint(3, 2 * STEPS), draw.randrange(len(MEMORY_ERRORS))
            inject = f"from tests.faults.ranks import refuse_memory; refuse_memory({call}, {error})"
            run = ready.copy(folder / "tried")
            settings = (*SETTINGS, *LAYOUTS[sharded], "distillation.micro_batch_tokens=64")
            server.start(run, *settings, ranks=2, inject={victim: inject})
            codes, said = server.wait(), server.log.read_text()
            assert "Traceback" not in said
            if sharded:  # the other rank waits inside the pass
                assert codes[victim] == ResourceError.exit_code, said
                assert codes[1 - victim] in LEFT
                return
            assert codes == [0, 0], said
            assert "out of memory in a micro-batch of 2 sequences; continuing with 1" in said
            for (_, loss), (_, other) in zip(outcome(run)[1], expected, strict=True):
                assert abs(loss - other) <= 1e-4 * other

        yield trial


def watched_disk(run: TinyRun, fails_at: int | None, number: int, log: Path) -> str:
    """Code for a rank, whose disk then fails from a write on; each is written down in `log`."""
    arguments = f"{str(run.folder)!r}, {fails_at}, {number}, log={str(log)!r}"
    log.write_text("")
    return (
        "from tests.faults.disk import failing_disk; "
        f"disk = failing_disk({arguments}); disk.__enter__()"
    )


def refuse_memory(call: int, error: int) -> None:
    """In this process, one call of the objective finds no memory."""
    original, calls = LanguageModelObjective.__call__, itertools.count(1)

    def failing(self: LanguageModelObjective, *arguments: Any) -> Any:
        if next(calls) == call:
            raise MEMORY_ERRORS[error]
        return original(self, *arguments)

    setattr(LanguageModelObjective, "__call__", failing)  # noqa: B010 (its type is not the same)
