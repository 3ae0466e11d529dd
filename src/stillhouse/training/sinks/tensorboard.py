"""TensorBoard: event files in `tensorboard/MODEL/`, for `tensorboard --logdir RUN`.

The steps of an interrupted training are marked as purged, and readers drop them.
"""

from collections.abc import Sequence

from stillhouse.training.sinks.base import SinkRun, Values


class TensorBoard:
    """One training's event files."""

    def __init__(self, run: SinkRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.identifier, self.last_step = run.model, run.next_step - 1
        folder = run.metrics.parent / "tensorboard" / run.model
        self._writer = SummaryWriter(str(folder), purge_step=run.next_step)

    def log(self, lines: Sequence[tuple[int, Values]]) -> None:
        for step, values in lines:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def close(self, *, completed: bool) -> None:
        self._writer.close()
