"""What the server counts, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from stillhouse.serving.catalog import Models

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)


class Metrics:
    """Counts of one server."""

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
            "Time from a request to the end of its answer.",
            ("route",),
            buckets=SECONDS,
            registry=self._registry,
        )
        self.prompt_tokens = Counter(
            "stillhouse_prompt_tokens",
            "Tokens of prompts to continue.",
            ("model",),
            registry=self._registry,
        )

    def watch(self, models: Models) -> None:
        """Show the models' own counts from now on."""
        self._registry.register(_OfModels(models))

    def text(self) -> bytes:
        """All counts, as Prometheus reads them."""
        return generate_latest(self._registry)


class _OfModels(Collector):
    """Counts that the models keep themselves, read when they are asked for."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def collect(self) -> list[GaugeMetricFamily]:
        shown = {
            "waiting": ("Requests that wait for a slot.", "num_waiting"),
            "running": ("Sequences that have a slot.", "num_running"),
            "generated_tokens": ("New tokens since the start.", "num_generated"),
        }
        found = []
        for name, (text, attribute) in shown.items():
            family = GaugeMetricFamily(f"stillhouse_{name}", text, labels=["model"])
            for hosted in self._models.models:
                if (batcher := hosted.batcher) is not None:
                    family.add_metric([hosted.name], getattr(batcher, attribute))
            found.append(family)
        return found
