"""`metrics.jsonl`: one line per optimizer step, appended and flushed; the same for TensorBoard.

After a resume the lines of steps that were not committed are removed, so each step occurs once.
"""

import json
import math
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


class MetricsLog:
    """Appends the lines of one model's training; first drops its lines from `next_step` on."""

    def __init__(self, path: Path, model: str, next_step: int) -> None:
        self.path = path
        self.model = model
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [
            line
            for line in read_metrics(path)
            if line["model"] != model or line["step"] < next_step
        ]
        with explained_os_errors(path):
            write_atomic(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(path.parent / "tensorboard" / model), purge_step=next_step)

    def write(self, step: int, values: dict[str, int | float]) -> None:
        """Append one step's values; a value that is not finite is written as null and stays
        visible."""
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with explained_os_errors(self.path):
            self._file.write(json.dumps({"model": self.model, "step": step, **finite}) + "\n")
            self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._board.close()
