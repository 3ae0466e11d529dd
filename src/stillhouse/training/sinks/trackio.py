"""Trackio: a project for each run folder, a run for each training.

Without TRACKIO_SPACE_ID or TRACKIO_SERVER_URL it writes a database in `trackio/` of the run folder,
for `TRACKIO_DIR=RUN/trackio trackio show`.
"""

import os
from collections.abc import Sequence

from stillhouse.training.sinks.base import SinkRun, Values


class Trackio:
    """One run of Trackio."""

    def __init__(self, run: SinkRun) -> None:
        is_local = not {"TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"} & set(os.environ)
        os.environ.setdefault("TRACKIO_DIR", str(run.store.resolve() / "trackio"))
        if is_local:
            os.environ["HF_HUB_OFFLINE"] = "1"  # it would ask the hub for the user's name
        import trackio
        from trackio.sqlite_storage import SQLiteStorage

        self.identifier, self.last_step = run.name, 0
        if run.known_id is not None:
            known = SQLiteStorage.get_max_step_for_run(run.project, run.name) if is_local else None
            self.last_step = run.last_written if known is None else known
        self._run = trackio.init(
            project=run.project,
            name=run.name,
            config=dict(run.settings),
            resume="never" if run.known_id is None else "allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, lines: Sequence[tuple[int, Values]]) -> None:
        for step, values in lines:
            self._run.log(dict(values), step=step)

    def close(self, *, completed: bool) -> None:
        self._run.finish()
