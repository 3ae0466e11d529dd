"""Stillhouse under Ray Train: python docs/launchers/ray_train.py RECIPE RUN_DIR --workers 2

Needs `pip install 'ray[train]'`. Ray starts the workers and tells each who it is; what they run is
the command line as it is. The run folder must lie on storage that all workers see.
"""

import argparse
import os
import socket
import sys
from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer


def distill(settings: dict[str, Any]) -> None:
    """What each worker runs. Ray has set RANK, WORLD_SIZE, LOCAL_RANK and the master's address.

    It has also made a process group; Stillhouse makes its own, at a port that all agree on.
    """
    import torch
    import torch.distributed as dist

    from stillhouse.__main__ import main

    with socket.socket() as probe:
        probe.bind(("", 0))
        port = torch.tensor(probe.getsockname()[1])
    dist.broadcast(port, 0)
    dist.destroy_process_group()
    os.environ["MASTER_PORT"] = str(int(port))
    os.chdir(settings["folder"])
    sys.argv = ["stillhouse", "distill", settings["recipe"], "--run-dir", settings["run_dir"]]
    try:
        main()
    except SystemExit as stop:
        if stop.code:
            raise RuntimeError(f"stillhouse left with exit code {stop.code}") from None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("run_dir")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--gpu", action="store_true", help="one GPU a worker")
    given = parser.parse_args()
    TorchTrainer(
        distill,
        train_loop_config={
            "recipe": given.recipe,
            "run_dir": os.path.abspath(given.run_dir),
            "folder": os.getcwd(),
        },
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=given.workers, use_gpu=given.gpu),
        run_config=RunConfig(failure_config=FailureConfig(max_failures=3)),
    ).fit()
