"""MLflow: an experiment for each run folder, a run for each training.

Without MLFLOW_TRACKING_URI it writes `mlflow.db` in the run folder, for
`mlflow ui --backend-store-uri sqlite:///RUN/mlflow.db`.
"""

import logging
import os
import time
from collections.abc import Sequence

from stillhouse.training.sinks.base import SinkRun, Values

MOST_METRICS = 1_000  # of one request (MLflow's limit)
MOST_PARAMS = 100


class MLflow:
    """One run of MLflow."""

    def __init__(self, run: SinkRun) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        own = f"sqlite:///{run.store.resolve() / 'mlflow.db'}"
        self._client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or own)
        if run.known_id is not None:
            self.identifier, self.last_step = run.known_id, self._last_step(run.known_id)
            self._client.update_run(self.identifier, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or run.project
        found = self._client.get_experiment_by_name(name)
        experiment = self._client.create_experiment(name) if found is None else found.experiment_id
        started = self._client.create_run(experiment, run_name=run.name)
        self.identifier, self.last_step = started.info.run_id, 0
        params = [Param(key, str(value)) for key, value in run.settings.items()]
        for first in range(0, len(params), MOST_PARAMS):
            self._client.log_batch(self.identifier, params=params[first : first + MOST_PARAMS])

    def _last_step(self, run_id: str) -> int:
        names = self._client.get_run(run_id).data.metrics
        return max(
            (
                metric.step
                for name in names
                for metric in self._client.get_metric_history(run_id, name)
            ),
            default=0,
        )

    def log(self, lines: Sequence[tuple[int, Values]]) -> None:
        from mlflow.entities import Metric

        now, waiting = time.time_ns() // 1_000_000, []
        for step, values in lines:
            if len(waiting) + len(values) > MOST_METRICS:  # a step is never split
                self._client.log_batch(self.identifier, metrics=waiting)
                waiting = []
            waiting += [Metric(name, float(value), now, step) for name, value in values.items()]
        self._client.log_batch(self.identifier, metrics=waiting)

    def close(self, *, completed: bool) -> None:
        self._client.set_terminated(self.identifier, "FINISHED" if completed else "KILLED")
