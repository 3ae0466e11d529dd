"""Runs every row of faults in full: python -m tests.faults --output docs/reliability.json

Prints a line a row, and writes what was run, how often, with which result. Exits with 1 where a
trial failed; what failed is printed with the number that repeats it.
"""

import argparse
import json
import tempfile
import time
import traceback
from pathlib import Path

import torch
from tests.faults import cleaning, files, ranks, server, training  # noqa: F401 (they register their rows)
from tests.faults.harness import ROWS, Row, randomness

from stillhouse.machine import describe_machine, library_versions, source_commit


def run_row(row: Row, trials: range, folder: Path, *, seconds: float) -> dict:
    """Run a row's trials, as many as the time allows."""
    failures: list[int | str] = []
    done, started = 0, time.monotonic()

    def failed(what: int | str) -> None:
        failures.append(what)
        print(f"row {row.number}, trial {what}:\n{traceback.format_exc()}", flush=True)

    try:
        with row.trials(folder) as trial:
            for number in trials:
                if time.monotonic() - started > seconds:
                    break
                try:
                    trial(randomness(row, number))
                except Exception:
                    failed(number)
                done += 1
    except Exception:
        failed("before or after all")
    return {
        "row": row.number,
        "fault": row.name,
        "holds": row.holds,
        "wanted": row.full,
        "trials": done,
        "failures": failures,
        "seconds": round(time.monotonic() - started, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", help="some rows alone")
    parser.add_argument("--trials", type=int, help="of each row, in place of its full number")
    parser.add_argument("--first", type=int, default=0, help="the first trial's number")
    parser.add_argument("--seconds", type=float, default=3600.0, help="for each row at most")
    parser.add_argument("--output", type=Path, help="a JSON file; rows that it has stay")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    if options.output and options.output.exists():
        names = {row.name for row in ROWS}  # one that was renamed is another row
        lines = json.loads(options.output.read_text())["rows"]
        found = {line["fault"]: line for line in lines if line["fault"] in names}
    failed = False
    for row in sorted(ROWS, key=lambda row: row.number):
        if options.rows and row.number not in options.rows:
            continue
        trials = range(options.first, options.first + (options.trials or row.full))
        with tempfile.TemporaryDirectory() as folder:
            line = run_row(row, trials, Path(folder), seconds=options.seconds)
        line |= {"commit": source_commit(), "machine": describe_machine()}
        line |= {"versions": library_versions()}
        print(
            f"row {row.number}: {row.name}: {line['trials']} of {row.full}, "
            f"{len(line['failures'])} failures, {line['seconds']:.0f} s",
            flush=True,
        )
        found[row.name] = line
        failed = failed or bool(line["failures"])
        if options.output:
            rows = sorted(found.values(), key=lambda line: line["row"])
            options.output.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
