"""Replicas of the server under Ray Serve, on this machine or on a Ray cluster.

Each replica has its own models and queue. Ray Serve's proxies balance the requests over them,
replace a replica that dies, and start more as the load grows, up to `max_replicas`.
"""

import logging
import os
import signal
import sys
import threading
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


def deployment(config: ServerConfig, num_replicas: int, max_replicas: int) -> serve.Application:
    """The application for `ray.serve.run`, where a cluster's own tools start it.

    Args:
        num_replicas: At least, of one CPU core each.
        max_replicas: At most, as the load grows.

    Raises:
        RecipeError: A maximum below the number of replicas.
    """
    if not 1 <= num_replicas <= max_replicas:
        raise RecipeError(
            f"--replicas {num_replicas} and --max-replicas {max_replicas} cannot both hold; give "
            "at least 1 replica, and no smaller maximum."
        )
    limits = config.limits
    scale: dict[str, Any] = {"num_replicas": num_replicas}
    if max_replicas > num_replicas:
        scale = {
            "autoscaling_config": {
                "min_replicas": num_replicas,
                "max_replicas": max_replicas,
                "target_ongoing_requests": limits.num_slots,
            }
        }
    decorator = serve.deployment(
        name=NAME,
        ray_actor_options={"num_cpus": 1},
        # Above what our own queue holds, which rejects the rest with 429.
        max_ongoing_requests=2 * (limits.num_slots + limits.queue),
        **scale,
    )

    def replica() -> FastAPI:  # a plain function: Ray Serve calls it in each replica
        return create_app(partial(load_models, config), config, wait=True)

    return decorator(serve.ingress(replica)()).bind()


def serve_replicas(config: ServerConfig, num_replicas: int, max_replicas: int) -> None:
    """Serve until Ctrl+C or SIGTERM; see `deployment`.

    Raises:
        RecipeError: The machine or cluster has fewer CPU cores than the replicas need, or their
            maximum is below their number.
    """
    application = deployment(config, num_replicas, max_replicas)
    ray.init(
        address=os.environ.get("RAY_ADDRESS"),
        namespace=NAME,
        include_dashboard=False,
        logging_level=logging.WARNING,
        log_to_driver=False,
    )
    try:
        available = ray.cluster_resources().get("CPU", 0)
        if num_replicas > available:
            raise RecipeError(
                f"{counted(num_replicas, 'replica needs', 'replicas need')} {num_replicas} CPU "
                f"cores; {available:g} are available. Give a smaller --replicas."
            )
        serve.start(http_options={"host": config.host, "port": config.port})
        serve.run(application, name=NAME)
        print(
            f"{counted(num_replicas, 'replica')}, ready at http://{config.host}:{config.port}",
            file=sys.stderr,
        )
        stopped = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stopped.set())
        stopped.wait()
    finally:
        serve.shutdown()
        ray.shutdown()
