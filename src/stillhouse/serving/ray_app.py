"""Replicas of the server under Ray Serve, on this machine or on a Ray cluster.

Each replica has its own models and queue. Ray Serve's proxies balance the requests over them,
replace a replica that dies, and start more as the load grows, up to `max_replicas`.
"""

import logging
import os
import signal
import sys
import threading
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import FastAPI

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere

import ray
from ray import serve

from stillhouse.errors import RecipeError
from stillhouse.serving.config import ServerConfig
from stillhouse.serving.server import create_app, load_models
from stillhouse.wording import counted

NAME = "stillhouse"


@dataclass(frozen=True)
class Replicas:
    """Number of replicas: at least, and at most under load; CPU cores of each."""

    num_replicas: int
    max_replicas: int
    num_cpus: float = 1

    def __post_init__(self) -> None:
        if not 1 <= self.num_replicas <= self.max_replicas:
            raise RecipeError(
                f"--replicas {self.num_replicas} and --max-replicas {self.max_replicas} cannot "
                "both hold; give at least 1 replica, and no smaller maximum."
            )


def deployment(config: ServerConfig, replicas: Replicas) -> serve.Application:
    """The application for `ray.serve.run`, where a cluster's own tools start it."""
    limits = config.limits
    scale: dict[str, Any] = {"num_replicas": replicas.num_replicas}
    if replicas.max_replicas > replicas.num_replicas:
        scale = {
            "autoscaling_config": {
                "min_replicas": replicas.num_replicas,
                "max_replicas": replicas.max_replicas,
                "target_ongoing_requests": limits.num_slots,
            }
        }
    decorator = serve.deployment(
        name=NAME,
        ray_actor_options={"num_cpus": replicas.num_cpus},
        # Above what our own queue holds, which rejects the rest with 429.
        max_ongoing_requests=2 * (limits.num_slots + limits.queue),
        **scale,
    )

    def replica() -> FastAPI:  # a plain function: Ray Serve calls it in each replica
        return create_app(partial(load_models, config), config, wait=True)

    return decorator(serve.ingress(replica)()).bind()


def serve_replicas(config: ServerConfig, replicas: Replicas) -> None:
    """Serve until Ctrl+C or SIGTERM.

    Raises:
        RecipeError: The machine or cluster has fewer CPU cores than the replicas need.
    """
    ray.init(
        address=os.environ.get("RAY_ADDRESS"),
        namespace=NAME,
        include_dashboard=False,
        logging_level=logging.WARNING,
        log_to_driver=False,
    )
    try:
        available = ray.cluster_resources().get("CPU", 0)
        needed = replicas.num_replicas * replicas.num_cpus
        if needed > available:
            raise RecipeError(
                f"{counted(replicas.num_replicas, 'replica needs', 'replicas need')} {needed:g} "
                f"CPU cores; {available:g} are available. Give a smaller --replicas."
            )
        serve.start(http_options={"host": config.host, "port": config.port})
        serve.run(deployment(config, replicas), name=NAME)
        print(
            f"{counted(replicas.num_replicas, 'replica')}, ready at "
            f"http://{config.host}:{config.port}",
            file=sys.stderr,
        )
        stopped = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stopped.set())
        stopped.wait()
    finally:
        serve.shutdown()
        ray.shutdown()
