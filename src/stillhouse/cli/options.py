"""Arguments and options that several commands share, and how their results are printed."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A packaged recipe's name, or a YAML file.")
]
RunDir = Annotated[
    Path | None,
    typer.Option("--run-dir", help="The run folder; by default runs/ and the recipe's name."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a setting, such as distillation.temperature=1."
    ),
]
Offline = Annotated[bool, typer.Option("--offline", help="Never use the network.")]
Overwrite = Annotated[
    str,
    typer.Option(
        metavar="STAGE,...",
        help="Stages whose old outputs and checkpoints are removed rather than kept (or: all).",
    ),
]
Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A model folder, a GGUF file, a hub name, sample, minilm or smollm2."
    ),
]
Models = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL...",
        help="Model folders, GGUF files, hub names, sample, minilm or smollm2.",
    ),
]
TaskName = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="A task's name or kind, such as sst2 or classification."),
]
TaskSettings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a setting, such as columns.text=sentence."
    ),
]
PRECISION_HELP = (
    "fp32, bf16, int8, or auto: the fastest on this machine. Lower precision only where the model "
    "changes by at most 1 %."
)
PrecisionName = Annotated[str, typer.Option(metavar="PRECISION", help=PRECISION_HELP)]
GivenPrecision = Annotated[
    str | None,
    typer.Option(
        "--precision",
        metavar="PRECISION",
        help=f"{PRECISION_HELP} By default fp32 in generate, auto in serve and write, and the "
        "file's with llama.cpp.",
    ),
]
Engine = Annotated[
    str,
    typer.Option(
        metavar="ENGINE",
        help="stillhouse, or llama.cpp for GGUF files as they are: quantized, without prompt "
        "log-probabilities (heat map) and drafts; texts then depend on batching.",
    ),
]
Host = Annotated[str, typer.Option(help="The address to listen on.")]
Port = Annotated[int, typer.Option(min=0, max=65535)]
ApiKey = Annotated[
    str | None,
    typer.Option(envvar="STILLHOUSE_API_KEY", help="The key that clients must send."),
]
Insecure = Annotated[
    bool, typer.Option("--insecure", help="Listen beyond this machine without a key.")
]


def _set_device(device: str | None) -> str | None:
    if device is not None:
        os.environ["STILLHOUSE_DEVICE"] = device
    return device


Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="DEVICE",
        envvar="STILLHOUSE_DEVICE",
        callback=_set_device,
        help="auto, cpu or cuda; by default a GPU where there is one. Training, evaluation, "
        "predictions and text generation run on it (generation in fp32).",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def print_json(value: Any) -> None:
    """A result as JSON, on stdout."""
    print(json.dumps(value, indent=1, ensure_ascii=False))
