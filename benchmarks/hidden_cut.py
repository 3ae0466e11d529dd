"""The loss of a decoder after its hidden size is cut, before any training.

    python -m benchmarks.hidden_cut MODEL CALIBRATION TEXT --hidden-size N [N ...]

Channels are chosen on one text, the loss is measured on another, in nats per token. A norm of fewer
channels divides by another root mean square; three ways to treat it are compared, each of which
multiplies the weights of norms by a factor:

    plain    1: the kept channels are taken to be as large as all are, on average
    zeros    sqrt(old size / new): the norm is what it is of the teacher with zeros in place of the
             channels that are cut
    measured of each norm: the mean ratio of the two root mean squares, on the text of the channels
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from stillhouse.families.registry import family_of
from stillhouse.models.folder_check import load_model_tokenizer
from stillhouse.models.load import load_model
from stillhouse.student.calibration import Calibration, read_calibration
from stillhouse.student.importance import loss_on
from stillhouse.student.initialize import student_from_teacher
from stillhouse.student.plan import plan_student
from stillhouse.student.settings import ImportanceRecipe, StudentRecipe
from stillhouse.student.width import KeptWidths, choose_widths
from stillhouse.tokens.settings import TokensRecipe


def norms_of(model: PreTrainedModel, kept: KeptWidths) -> dict[str, nn.Module]:
    """The norms of the residual stream."""
    return {
        name: module
        for name, module in model.named_modules()
        if "norm" in type(module).__name__.lower() and (f"{name}.weight", 0) in kept.places
    }


@torch.inference_mode()
def measured_factors(
    teacher: PreTrainedModel, kept: KeptWidths, text: Calibration
) -> dict[str, float]:
    """Mean over tokens of rms(kept channels) / rms(all channels), for the input of each norm."""
    channels, sums, numbers = torch.tensor(kept.hidden), {}, {}

    def hook(name: str):
        def note(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            states = args[0].double()
            rms = [each.square().mean(-1).sqrt() for each in (states[..., channels], states)]
            sums[name] = sums.get(name, 0.0) + float((rms[0] / rms[1]).sum())
            numbers[name] = numbers.get(name, 0) + rms[0].numel()

        return note

    hooks = [m.register_forward_pre_hook(hook(n)) for n, m in norms_of(teacher, kept).items()]
    for batch in text.batches():
        family_of(teacher.config).run_body(teacher, batch)
    for each in hooks:
        each.remove()
    return {name: sums[name] / numbers[name] for name in sums}


def scaled_loss(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    factors: Mapping[str, float],
    kept: KeptWidths,
    text: Calibration,
) -> float:
    """The loss with the teacher's weights of norms, multiplied."""
    with torch.no_grad():
        for name, norm in norms_of(student, kept).items():
            weight = teacher.get_parameter(f"{name}.weight")[kept.hidden]
            norm.get_parameter("weight").copy_(weight * factors[name])
    return loss_on(family_of(student.config), student, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("calibration")
    parser.add_argument("text")
    parser.add_argument("--hidden-size", type=int, nargs="+", required=True)
    parser.add_argument("--tokens", type=int, default=4_096)
    parser.add_argument("--sequence-length", type=int, default=512)
    arguments = parser.parse_args()
    tokenizer = load_model_tokenizer(arguments.model)
    family, teacher = load_model(arguments.model, tokenizer)
    length = arguments.sequence_length
    tokens = TokensRecipe(language_modeling="causal", sequence_length=length)
    calibration, text = (
        read_calibration(
            ImportanceRecipe(tokens=arguments.tokens, text=name), tokens, tokenizer, key=name,
            offline=True,
        )
        for name in (arguments.calibration, arguments.text)
    )  # fmt: skip
    print(f"whole model: {loss_on(family, teacher, text):.3f}")
    layers = list(range(teacher.config.num_hidden_layers))
    for size in arguments.hidden_size:
        plan = plan_student(teacher.config, StudentRecipe(layer_map=layers, hidden_size=size))
        kept = choose_widths(family, teacher, plan.narrow, calibration)
        student = student_from_teacher(teacher, plan, kept)
        names = [*norms_of(student, kept)]
        zeros = (teacher.config.hidden_size / size) ** 0.5
        ways = {
            "plain": dict.fromkeys(names, 1.0),
            "zeros": dict.fromkeys(names, zeros),
            "measured": measured_factors(teacher, kept, calibration),
        }
        for way, factors in ways.items():
            loss = scaled_loss(student, teacher, factors, kept, text)
            span = f"{min(factors.values()):.3f} to {max(factors.values()):.3f}"
            print(f"hidden size {size}, {way} ({span}): {loss:.3f}", flush=True)


if __name__ == "__main__":
    main()
