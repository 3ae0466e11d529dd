"""Faults among many ranks: their number changes, again and again."""

import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from tests.faults.harness import Trial, copy_of, initialized, row
from tests.faults.training import LONGER, SHARDED, STEPS, metrics, outcome, serving
from tests.pipeline.processes import kill

WORLDS = (1, 2, 4, 2)
SETTINGS = (*LONGER, "distillation.dropout=false")  # four ranks take smaller micro-batches


@row(
    3,
    "1, 2, 4, then 2 ranks in one training, each sharded or not",
    "every sample once an epoch; each step's loss within 0.01 % of one rank's",
    full=20,
    sample=1,
)
def changing_worlds(folder: Path) -> Iterator[Trial]:
    with serving(folder) as server:
        ready = initialized(folder)
        whole = copy_of(ready, folder / "whole")
        code, log = server.distill(whole, *SETTINGS)
        assert code == 0, log
        expected = outcome(whole)[1]

        def trial(draw: random.Random) -> None:
            run = copy_of(ready, folder / str(draw.random()))
            for number, ranks in enumerate(WORLDS, start=1):
                settings = (*SETTINGS, *(SHARDED if draw.random() < 0.5 else ()))
                if number == len(WORLDS):
                    code, log = server.distill(run, *settings, ranks=ranks)
                    assert code == 0, log
                    assert "damaged" not in log
                    break
                processes = server.start(run, *settings, ranks=ranks)
                wanted = draw.randint(STEPS * (number - 1) // 4 + 1, STEPS * number // 4)
                deadline = time.monotonic() + 120
                while len(metrics(run)) < wanted:
                    assert time.monotonic() < deadline, server.log.read_text()
                    time.sleep(0.002)
                kill(processes, signal.SIGTERM)
                assert set(server.wait()) <= {128 + signal.SIGTERM, -signal.SIGTERM}
            losses = outcome(run)[1]
            assert [step for step, _ in losses] == list(range(1, STEPS + 1))
            # A step's loss follows from its samples: were one missing or read twice, it would show.
            for (_, loss), (_, other) in zip(losses, expected, strict=True):
                assert abs(loss - other) <= 1e-4 * other
            ours, theirs = metrics(run), metrics(whole)
            assert [line["tokens"] for line in ours] == [line["tokens"] for line in theirs]
            shutil.rmtree(run.folder)

        yield trial
