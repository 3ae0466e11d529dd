"""Weights & Biases: a project for each run folder, a run for each training.

Unless WANDB_MODE says otherwise it is offline: files in `wandb/` of the run folder, which
`wandb sync RUN/wandb/offline-run-*` uploads.
"""

import os
import secrets
from collections.abc import Sequence

from stillhouse.training.sinks.base import SinkRun, Values

LOGIN_SECONDS = 10  # online without a key: it must not wait for someone at the keyboard


class WeightsAndBiases:
    """One run of Weights & Biases; a training that resumes adds a file to it."""

    def __init__(self, run: SinkRun) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self.identifier = run.known_id or secrets.token_hex(4)
        # Files that are not uploaded cannot be asked: what was logged is what was written.
        self.last_step = 0 if run.known_id is None else run.last_written
        settings = wandb.Settings(
            console="off",
            disable_code=True,
            disable_git=True,
            login_timeout=LOGIN_SECONDS,
            silent=True,
            x_disable_machine_info=True,
            x_disable_meta=True,
            x_disable_stats=True,
        )
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or run.project,
            name=run.name,
            id=self.identifier,
            dir=run.store,
            mode="offline" if "WANDB_MODE" not in os.environ else None,
            resume="allow",
            config=dict(run.settings),
            settings=settings,
        )

    def log(self, lines: Sequence[tuple[int, Values]]) -> None:
        for step, values in lines:
            self._run.log(dict(values), step=step)

    def close(self, *, completed: bool) -> None:
        self._run.finish(exit_code=0 if completed else 1)
