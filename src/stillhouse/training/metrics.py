"""`metrics.jsonl`: one line per optimizer step, appended and flushed; the same for TensorBoard.

After a resume the lines of steps that were not committed are removed, so each step occurs once.
"""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from stillhouse.runs.atomic import explained_os_errors, write_atomic


def read_metrics(path: Path, model: str | None = None) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`, of one model or of all; an incomplete last line is left out."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if model is None or line["model"] == model:
            lines.append(line)
    return lines


@contextmanager
def metrics_log(
    path: Path, model: str, next_step: int
) -> Iterator[Callable[[int, dict[str, int | float]], None]]:
    """Drop a model's lines from `next_step` on; yields a function that appends a step's values.

    A value that is not finite is written as null and stays visible.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = [
        line for line in read_metrics(path) if line["model"] != model or line["step"] < next_step
    ]
    with explained_os_errors(path):
        write_atomic(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
    board = SummaryWriter(str(path.parent / "tensorboard" / model), purge_step=next_step)
    with path.open("a", encoding="utf-8") as file, closing(board):

        def write(step: int, values: dict[str, int | float]) -> None:
            finite = {name: each if math.isfinite(each) else None for name, each in values.items()}
            with explained_os_errors(path):
                file.write(json.dumps({"model": model, "step": step, **finite}) + "\n")
                file.flush()
            for name, value in values.items():
                board.add_scalar(name, value, step)

        yield write
