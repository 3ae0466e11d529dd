"""Prometheus metrics of the server."""

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from stillhouse.serving.served_model import ServedModels

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
MODEL_GAUGES = {
    "waiting": ("Requests waiting for a slot.", "num_waiting"),
    "running": ("Sequences being generated.", "num_running"),
    "generated_tokens": ("Tokens generated since the start.", "num_generated"),
}


class Metrics:
    """The metrics of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "stillhouse_requests",
            "Requests answered, by route and status.",
            ("route", "status"),
            registry=self._registry,
        )
        self.seconds = Histogram(
            "stillhouse_request_seconds",
            "Seconds from a request to the end of its response.",
            ("route",),
            buckets=SECONDS,
            registry=self._registry,
        )
        self.prompt_tokens = Counter(
            "stillhouse_prompt_tokens",
            "Tokens of prompts.",
            ("model",),
            registry=self._registry,
        )

    def watch(self, models: ServedModels) -> None:
        """Export the models' own counts from now on."""
        for name, (description, attribute) in MODEL_GAUGES.items():
            gauge = Gauge(f"stillhouse_{name}", description, ("model",), registry=self._registry)
            for model in models:
                if model.batcher is not None:
                    read = partial(getattr, model.batcher, attribute)
                    gauge.labels(model.name).set_function(read)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)
