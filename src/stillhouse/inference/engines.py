"""A model with the engine that runs it: that of this package, or llama.cpp."""

import torch

from stillhouse.errors import ModelError, RecipeError
from stillhouse.extras import require
from stillhouse.inference.load import CPU
from stillhouse.inference.quantization import AtPrecision, load_at_precision

OWN, LLAMA_CPP = "stillhouse", "llama.cpp"


def load_with_engine(
    name: str,
    engine: str,
    precision: str | None,
    *,
    default: str,
    num_slots: int,
    offline: bool = False,
    device: torch.device = CPU,
    is_device_given: bool = False,
) -> AtPrecision:
    """A model, ready to generate.

    Args:
        engine: `stillhouse`, or `llama.cpp` for GGUF files as they are.
        precision: See `load_at_precision`, or None where none was asked for; llama.cpp has that of
            the file.
        default: The precision of the engine of this package where none was asked for.
        num_slots: Sequences that will be generated at once; memory for them is taken at load by
            llama.cpp, and later by the engine of this package.
        is_device_given: The device was asked for; llama.cpp runs on the CPU, whatever there is.

    Raises:
        RecipeError: an unknown engine, or a precision or device that it does not have.
        ModelError: see `load_at_precision` and `load_llama_cpp`.
    """
    if engine == OWN:
        return load_at_precision(name, precision or default, offline=offline, device=device)
    if engine != LLAMA_CPP:
        raise RecipeError(f"The engine is {engine}; choose from {OWN}, {LLAMA_CPP}.")
    if precision is not None:
        raise RecipeError(
            f"llama.cpp runs a file in the file's own precision, not in {precision}. Omit "
            "--precision, or --engine."
        )
    if is_device_given and device.type != "cpu":
        raise RecipeError("llama.cpp runs on the CPU here. Omit --device, or --engine.")
    require("llama-cpp", purpose="--engine llama.cpp", error=ModelError)
    from stillhouse.inference.engine.llama_cpp import load_llama_cpp

    model = load_llama_cpp(name, num_slots)
    return AtPrecision(
        model, model.precision, reason="the file's, run by llama.cpp", file=model.path
    )
