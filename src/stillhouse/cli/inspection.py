"""Commands that look inside models: their units, their layers, and what a student lost."""

from pathlib import Path
from typing import Annotated

import typer

from stillhouse.cli.options import AsJson, Device, Model, Offline, print_json

Text = Annotated[
    str | None,
    typer.Option("--text", help="The text, as corpus.source; by default the sample."),
]


def inspect(
    model: Model,
    output: Annotated[
        Path | None, typer.Option(help="The folder; by default inspection/ and the model's name.")
    ] = None,
    text: Text = None,
    tokens: Annotated[
        int | None,
        typer.Option(min=64, max=10**9, help="Number of its tokens; by default 100,000."),
    ] = None,
    neuron: Annotated[
        str | None,
        typer.Option(metavar="LAYER.NUMBER", help="Show this neuron, such as 12.345."),
    ] = None,
    offline: Offline = False,
    as_json: AsJson = False,
    device: Device = None,
) -> None:
    """Find what the neurons of a language model do.

    One pass over a text writes statistics and strongest contexts of all neurons to the folder; it
    resumes where it was stopped. With --neuron: its contexts, and what it does to predictions, by
    ablation and by its direct path to the vocabulary.
    """
    from stillhouse.inspection import collect
    from stillhouse.inspection.neuron import describe_neuron, print_neuron
    from stillhouse.inspection.units import Neuron, load_language_model, num_units
    from stillhouse.models.hub import resolve_folder
    from stillhouse.stages.context import folder_fingerprint
    from stillhouse.training.progress import ConsoleReporter

    wanted = None if neuron is None else Neuron.parse(neuron)
    folder = output or Path("inspection") / Path(model).name
    collect.check_text(folder, text, offline=offline)
    loaded = load_language_model(model, offline=offline)
    if wanted is not None:
        wanted.check(*num_units(loaded))
    files = folder_fingerprint(resolve_folder(model, offline=offline))
    request = collect.CollectRequest(files, text, tokens, offline)
    inspection = collect.collect(loaded, folder, request, ConsoleReporter())
    if wanted is None:
        found = collect.summary(inspection)
        print_json(found) if as_json else collect.print_summary(found)
        return
    found = describe_neuron(loaded, inspection, wanted)
    print_json(found) if as_json else print_neuron(found)


def inspect_text(
    model: Model,
    prompt: Annotated[str, typer.Option(help="The text, of at most 126 tokens.")],
    beside: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Another model to compare with, such as its teacher."),
    ] = None,
    offline: Offline = False,
    as_json: AsJson = False,
    device: Device = None,
) -> None:
    """Show what the layers of a language model make of a text.

    Prints the predictions of every layer (the logit lens); with --beside those of the other model
    too, and for each of its attention heads the nearest. JSON has the attention weights.
    """
    from stillhouse.inspection.lens import inspect_pair, print_text
    from stillhouse.inspection.units import load_language_model

    names = [model] if beside is None else [model, beside]
    loaded, *others = [load_language_model(name, offline=offline) for name in names]
    found = inspect_pair(loaded, others[0] if others else None, prompt)
    print_json(found) if as_json else print_text(found, names)


def inspect_student(
    student: Annotated[str, typer.Argument(metavar="STUDENT", help="A model, as in inspect.")],
    teacher: Annotated[str, typer.Argument(metavar="TEACHER", help="Its teacher.")],
    control: Annotated[
        str | None, typer.Option(metavar="MODEL", help="A model to show beside the student.")
    ] = None,
    text: Text = None,
    tokens: Annotated[
        int,
        typer.Option(min=64, max=10**7, help="Number of its tokens: half to fit, half to test."),
    ] = 8_192,
    offline: Offline = False,
    as_json: AsJson = False,
    device: Device = None,
) -> None:
    """Find which layers and units of its teacher a student lost.

    For each teacher layer: the held-out R2 of a linear map from the best student layer, and the
    correlation of each unit with the student's nearest one; a control and a student with random
    weights show what these numbers are without a teacher. Both models need the same tokenizer.
    """
    from stillhouse.inspection import student as students
    from stillhouse.training.progress import ConsoleReporter

    names = {"student": student, "teacher": teacher}
    if control is not None:
        names["control"] = control
    found = students.inspect_student(
        names, text or "sample", tokens, ConsoleReporter(), offline=offline
    )
    print_json(found) if as_json else students.print_student(found)
