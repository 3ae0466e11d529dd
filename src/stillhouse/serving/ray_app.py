"""The server past one process: replicas of the same application under Ray Serve, on this machine or
on all of a Ray cluster.

Each replica has its models and its queue; Ray Serve's proxies spread the requests over them, start
another where one dies, and, where they may, more of them as the load grows.
"""

import logging
import os
import signal
import sys
import threading
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere

import ray
from ray import serve

from stillhouse.errors import RecipeError
from stillhouse.serving.server import Serving, application
from stillhouse.wording import counted

NAME = "stillhouse"


@dataclass(frozen=True)
class Replicas:
    """How many, and how many at most under load; a replica takes so many processors."""

    number: int
    most: int
    num_cpus: float = 1

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.most:
            raise RecipeError(
                f"There cannot be {self.number} replicas at least and {self.most} at most."
            )


def deployment(serving: Serving, replicas: Replicas) -> serve.Application:
    """The application for `ray.serve.run`, where a cluster's own tools start it."""
    asked = serving.limits.num_slots + serving.limits.queue
    scale: dict[str, Any] = {"num_replicas": replicas.number}
    if replicas.most > replicas.number:
        scale = {
            "autoscaling_config": {
                "min_replicas": replicas.number,
                "max_replicas": replicas.most,
                "target_ongoing_requests": serving.limits.num_slots,
            }
        }
    each = serve.deployment(
        name=NAME,
        ray_actor_options={"num_cpus": replicas.num_cpus},
        max_ongoing_requests=2 * asked,  # what is too much our own queue refuses, with 429
        **scale,
    )

    def replica() -> FastAPI:  # a plain function: Ray Serve calls it in each replica
        return application(serving, waits=True)

    return each(serve.ingress(replica)()).bind()


def serve_replicas(serving: Serving, replicas: Replicas) -> None:
    """Serve until Ctrl+C or SIGTERM.

    Raises:
        RecipeError: more replicas than the machine, or the cluster, has processors for.
    """
    ray.init(
        address=os.environ.get("RAY_ADDRESS"),
        namespace=NAME,
        include_dashboard=False,
        logging_level=logging.WARNING,
        log_to_driver=False,
    )
    try:
        found = ray.cluster_resources().get("CPU", 0)
        if replicas.number * replicas.num_cpus > found:
            raise RecipeError(
                f"{counted(replicas.number, 'replica takes', 'replicas take')} "
                f"{replicas.number * replicas.num_cpus:g} processors, and {found:g} are there; ask "
                "for fewer."
            )
        serve.start(http_options={"host": serving.host, "port": serving.port})
        serve.run(deployment(serving, replicas), name=NAME)
        print(
            f"{counted(replicas.number, 'replica')}, ready at http://{serving.host}:{serving.port}",
            file=sys.stderr,
        )
        ended = threading.Event()
        for sign in (signal.SIGINT, signal.SIGTERM):
            signal.signal(sign, lambda *_: ended.set())
        ended.wait()
    finally:
        serve.shutdown()
        ray.shutdown()
