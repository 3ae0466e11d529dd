"""Commands that measure and use models."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from stillhouse.cli.options import (
    AsJson,
    Device,
    Engine,
    GivenPrecision,
    Model,
    Models,
    Offline,
    PrecisionName,
    TaskName,
    TaskSettings,
    print_json,
)
from stillhouse.wording import counted, numbered_rows


def compare(
    models: Models,
    text: Annotated[
        Path | None,
        typer.Option(
            help="Score this text; by default the held-out text of the models' run, or of the "
            "sample."
        ),
    ] = None,
    offline: Offline = False,
    as_json: AsJson = False,
    device: Device = None,
) -> None:
    """Compare size, speed, memory and perplexity of models.

    All models are scored on the same text and timed in turns. Progress goes to stderr.
    """
    from stillhouse.evaluation.compare import compare_models, print_comparison
    from stillhouse.training.progress import ConsoleReporter

    result = compare_models(models, text, offline=offline, reporter=ConsoleReporter())
    print_json(result) if as_json else print_comparison(result)


def score(
    model: Model,
    task: TaskName = None,
    data: Annotated[Path | None, typer.Option(help="Labeled examples.")] = None,
    overrides: TaskSettings = None,
    lm_eval: Annotated[
        str | None,
        typer.Option(metavar="TASKS", help="Comma-separated tasks of lm-evaluation-harness."),
    ] = None,
    lm_eval_folder: Annotated[
        Path | None, typer.Option(help="A folder of task definitions (YAML) for the harness.")
    ] = None,
    bias: Annotated[
        bool,
        typer.Option(
            "--bias", help="Its bias: on templates, and on the published sets in the folder --data."
        ),
    ] = False,
    precision: PrecisionName = "fp32",
    offline: Offline = False,
    as_json: AsJson = False,
    device: Device = None,
) -> None:
    """Score a model on a task.

    Reads a table, a file in SQuAD's format or tagged sentences; prints each metric with its 95 %
    interval over examples. Without --task the task is the one that the model was trained on. With
    --lm-eval the harness scores a causal language model instead.
    """
    from stillhouse.data.rows import PACKAGED
    from stillhouse.errors import RecipeError

    if bias:
        if task or overrides or lm_eval or precision != "fp32":
            raise RecipeError("Give --bias alone, or with --data.")
        _score_bias(model, data, offline=offline, as_json=as_json)
        return
    own = (task, data, overrides, precision != "fp32")
    if lm_eval is not None and not any(own):
        from stillhouse.evaluation.score import print_harness, score_by_harness

        names = [name.strip() for name in lm_eval.split(",")]
        found = score_by_harness(model, names, task_folder=lm_eval_folder, offline=offline)
        print_json(found) if as_json else print_harness(found)
        return
    if data is None and task in PACKAGED:
        data = PACKAGED[task]
    if lm_eval is not None or data is None:
        raise RecipeError("Give --data (and --task, --set, --precision), or --lm-eval alone.")
    from stillhouse.evaluation.score import print_scores, score_model

    folder, recipe = _folder_and_task(model, task, overrides, offline=offline)
    result = score_model(model, folder, recipe, data, precision=precision)
    print_json(result) if as_json else print_scores(result)


def _score_bias(model: str, data: Path | None, *, offline: bool, as_json: bool) -> None:
    from stillhouse.evaluation.score import print_scores, score_bias
    from stillhouse.models.hub import resolve_folder

    found = score_bias(model, resolve_folder(model, offline=offline), data)
    if as_json:
        print_json(found)
        return
    for each in found:
        print_scores(each)


def _folder_and_task(
    model: str, task: str | None, overrides: list[str] | None, *, offline: bool
) -> tuple[Path, Any]:
    """A model's folder, and the settings of the task; by default of the one it was trained on."""
    from stillhouse.models.hub import resolve_folder
    from stillhouse.recipe_file import parse_task
    from stillhouse.tasks.registry import settings_of_model

    folder = resolve_folder(model, offline=offline)
    return folder, parse_task(task or settings_of_model(folder), overrides or [])


def predict(
    model: Model,
    source: Annotated[
        Path, typer.Option("--input", help="The examples: a .jsonl file, or a table.")
    ],
    output: Annotated[Path, typer.Option(help="The .jsonl file to write, one line per example.")],
    task: TaskName = None,
    overrides: TaskSettings = None,
    offline: Offline = False,
    device: Device = None,
) -> None:
    """Write a model's predictions for the examples of a file.

    Line n has the text of row n and a prediction in the format of transformers' pipelines: a label,
    an answer, entities, an embedding. A blank row is read as an empty text. Without --task the task
    is the one that the model was trained on.
    """
    from stillhouse.inference.load import load_for_task
    from stillhouse.inference.predict import check_output, predict_file
    from stillhouse.inference.task_model import cut_text
    from stillhouse.training.device import pick_device

    check_output(output)
    folder, recipe = _folder_and_task(model, task, overrides, offline=offline)
    loaded = load_for_task(folder, recipe, pick_device())
    number, num_cut = predict_file(loaded, source, output)
    if num_cut:
        typer.echo(cut_text(num_cut, loaded.task), err=True)
    if blank := loaded.task.blank_rows(source):
        typer.echo(
            f"{source}: {numbered_rows(blank)} without any field: read as empty text", err=True
        )
    print(f"{output}: {counted(number, 'prediction')}")


GENERATION_HELP = {
    "max_new_tokens": "Number of tokens to add; 50 by default, 256 with --chat.",
    "num_return_sequences": "Number of texts.",
    "temperature": "Below 1 is more predictable, above 1 more random.",
    "top_k": "Sample from the k most probable tokens; 0 samples from all.",
    "top_p": "Sample from the most probable tokens of this total probability.",
    "min_p": "Drop tokens less probable than this fraction of the most probable one.",
    "typical_p": "Sample from the least surprising tokens of this total probability.",
    "repetition_penalty": "Above 1 makes tokens that already occur less probable.",
    "greedy": "Always take the most probable token.",
    "num_beams": "With --greedy: the number of beams of a beam search.",
    "stop": "End before this text; may be given several times.",
    "draft": "A student that drafts; the output is the model's own.",
    "seed": "Makes sampling reproducible.",
}


def _option(name: str, *flags: str, **settings: Any) -> Any:
    return typer.Option(*flags, help=GENERATION_HELP[name], **settings)


def generate(
    model: Model,
    prompt: Annotated[str, typer.Option(help="The text to continue.")],
    chat: Annotated[
        bool,
        typer.Option(
            "--chat", help="Send the prompt as a user's message; the answer alone is printed."
        ),
    ] = False,
    seed: Annotated[int | None, _option("seed")] = None,
    max_new_tokens: Annotated[int | None, _option("max_new_tokens")] = None,
    num_return_sequences: Annotated[int, _option("num_return_sequences")] = 1,
    temperature: Annotated[float, _option("temperature")] = 1.0,
    top_k: Annotated[int, _option("top_k")] = 50,
    top_p: Annotated[float, _option("top_p")] = 1.0,
    min_p: Annotated[float, _option("min_p")] = 0.0,
    typical_p: Annotated[float, _option("typical_p")] = 1.0,
    repetition_penalty: Annotated[float, _option("repetition_penalty")] = 1.0,
    greedy: Annotated[bool, _option("greedy", "--greedy")] = False,
    num_beams: Annotated[int, _option("num_beams")] = 1,
    stop: Annotated[list[str] | None, _option("stop")] = None,
    precision: GivenPrecision = None,
    engine: Engine = "stillhouse",
    draft: Annotated[str | None, _option("draft", metavar="STUDENT")] = None,
    offline: Offline = False,
    as_json: AsJson = False,
    device: Device = None,
) -> None:
    """Continue a text with a causal model.

    Prints each text, the prompt included. With --chat, the prompt is put into the model's chat
    template. With --draft, the draft acceptance rate goes to stderr.
    """
    from stillhouse.inference.arguments import messages_of
    from stillhouse.inference.generation import Generation

    settings = Generation(
        max_new_tokens=50 if max_new_tokens is None else max_new_tokens,
        num_return_sequences=num_return_sequences,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        typical_p=typical_p,
        repetition_penalty=repetition_penalty,
        greedy=greedy,
        num_beams=num_beams,
        stop=tuple(stop or ()),
        seed=seed,
    )
    slots = num_return_sequences
    loaded, student = _load_both(model, draft, engine, precision, slots, offline=offline)
    start = loaded.chat_prompt(messages_of(prompt)) if chat else loaded.text_prompt(prompt)
    if chat and max_new_tokens is None:
        settings = replace(settings, max_new_tokens=loaded.answer_tokens(start))
    found = _continued(loaded, student, start, settings)
    texts = [text.strip() if chat else prompt + text for text in found]
    as_dicts = [{"generated_text": text} for text in texts]
    print_json(as_dicts) if as_json else print("\n---\n".join(texts))


def _continued(loaded: Any, student: Any, start: Any, settings: Any) -> list[str]:
    """The new texts after a prompt, drafted by the student if there is one."""
    if student is None:
        return loaded.continuations(start, settings)
    from stillhouse.inference.engine.speculative import continue_by_draft

    text, kept = continue_by_draft(loaded, student, start, settings)
    typer.echo(kept, err=True)
    return [text]


def _load_both(
    model: str,
    draft: str | None,
    engine: str,
    precision: str | None,
    num_slots: int,
    *,
    offline: bool,
) -> tuple[Any, Any]:
    """The model, and the student that drafts for it, or None.

    Raises:
        RecipeError: a draft for llama.cpp; nothing is loaded.
    """
    from stillhouse.errors import RecipeError
    from stillhouse.inference.engines import LLAMA_CPP

    if draft is not None and engine == LLAMA_CPP:
        raise RecipeError(
            f"{engine} gives no logits, which drafts need. Omit --engine, or --draft."
        )
    loaded, student = (
        None if name is None else _load(name, engine, precision, num_slots, offline=offline)
        for name in (model, draft)
    )
    return loaded, student


def _load(name: str, engine: str, precision: str | None, num_slots: int, *, offline: bool) -> Any:
    from stillhouse.errors import ModelError
    from stillhouse.inference.engines import load_with_engine
    from stillhouse.training.device import is_device_given, pick_device

    found = load_with_engine(
        name,
        engine,
        precision,
        default="fp32",
        num_slots=num_slots,
        offline=offline,
        device=pick_device(),
        is_device_given=is_device_given(),
    )
    if found.model.pipeline_task != "text-generation":
        raise ModelError(f"{name} is a model for {found.model.pipeline_task}; it writes no text.")
    if found.reason:
        typer.echo(f"{name}: precision: {found}", err=True)
    return found.model


def export(
    model: Model,
    target: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to write.")],
    to: Annotated[str, typer.Option(metavar="FORMAT", help="ctranslate2, gguf or onnx.")],
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="PRECISION",
            help="fp32, fp16 or int8; by default the usual one of the format.",
        ),
    ] = None,
    offline: Offline = False,
    as_json: AsJson = False,
) -> None:
    """Write a model for another engine.

    Reads a model folder, writes DIR. The export is loaded again and compared with the model on real
    text, and its speed with transformers; an export whose output differs is not kept.
    """
    from stillhouse.export.export import export_model, print_export

    found = export_model(model, to, target, precision=precision, offline=offline)
    print_json(found) if as_json else print_export(found, target)


def importance(
    model: Model,
    text: Annotated[str, typer.Option(help="Text to measure on, as corpus.source.")] = "sample",
    tokens: Annotated[int, typer.Option(min=1, help="Number of its tokens.")] = 32_768,
    layers: Annotated[
        int | None, typer.Option(min=1, help="Layers to keep; by default half.")
    ] = None,
    by: Annotated[
        Literal["influence", "greedy"],
        typer.Option(
            help="How layers are chosen; greedy takes half a pass for each layer that it tries."
        ),
    ] = "influence",
    output: Annotated[Path | None, typer.Option(help="An .svg file to write a chart to.")] = None,
    offline: Offline = False,
    as_json: AsJson = False,
    device: Device = None,
) -> None:
    """Measure how much a model needs each of its layers.

    Prints the score of each layer, and the loss with the layers that `student.layer_map` would
    keep, beside evenly spread ones.
    """
    from stillhouse.inference.predict import check_output
    from stillhouse.report.layers import write_layer_chart
    from stillhouse.student.ranking import print_ranking, rank_layers
    from stillhouse.student.settings import ImportanceRecipe

    if output is not None:
        check_output(output)
    source = ImportanceRecipe(text=text, tokens=tokens)
    found = rank_layers(model, source, num_layers=layers, by=by, offline=offline)
    print_json(found) if as_json else print_ranking(found)
    if output is not None:
        write_layer_chart(found, output)


def features(
    model: Model,
    text: Annotated[str, typer.Option(help="The text to read.")],
    output: Annotated[Path, typer.Option(help="The .safetensors or .npy file to write.")],
    offline: Offline = False,
    device: Device = None,
) -> None:
    """Write a text's last hidden states to a file.

    One row per token, float32.
    """
    from stillhouse.inference.load import load
    from stillhouse.inference.predict import check_target, save_features
    from stillhouse.training.device import pick_device

    check_target(output)
    states = load(model, offline=offline, device=pick_device()).features(text)
    save_features(states, output)
    print(f"{output}: {counted(states.shape[0], 'token')} x {states.shape[1]}")


def detect(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="TEXT_FILE...", help="Files of plain text, one text each."),
    ],
    detector: Annotated[
        Path | None,
        typer.Option(
            help="The file that fit-detector wrote; by default that of the package, which was "
            "fitted on text of smollm2."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The detector's scoring model, where it has moved."),
    ] = None,
    offline: Offline = False,
    as_json: AsJson = False,
    device: Device = None,
) -> None:
    """Tell machine text from human text, at 1 % false positives.

    Reads text files; prints for each the probability of machine text and the verdict, or that it
    cannot tell: a text too short, in another language, or another scoring model than fitted.
    Measured rates and limits: docs/guides/detect.md.
    """
    from stillhouse.detection.detect import detect_files, print_judgments
    from stillhouse.detection.detector import read_detector

    own = read_detector(detector)
    found = detect_files(files, own, model, offline=offline)
    print_json(found) if as_json else print_judgments(found, own)


def fit_detector(
    model: Model,
    human: Annotated[
        list[str],
        typer.Option(
            metavar="SOURCE",
            help="Human texts, as corpus.source: each file or record is one. May be repeated.",
        ),
    ],
    machine: Annotated[
        list[str], typer.Option(metavar="SOURCE", help="Machine texts. May be repeated.")
    ],
    output: Annotated[Path, typer.Option(help="The .json file to write.")],
    lengths: Annotated[
        str, typer.Option(help="Lengths in tokens of MODEL; texts are cut to them.")
    ] = "50,150,500",
    offline: Offline = False,
    device: Device = None,
) -> None:
    """Fit a detector of machine text on your own sources.

    Reads human and machine texts, scores them under MODEL, and writes a file for
    `detect --detector`. Each length needs 99 human and 20 machine texts.
    """
    from stillhouse.detection.fit import fit_detector, parse_lengths
    from stillhouse.inference.predict import check_output
    from stillhouse.runs.atomic import explained_os_errors, write_atomic

    check_output(output)
    found = fit_detector(
        {"human": human, "machine": machine},
        model,
        lengths=parse_lengths(lengths),
        offline=offline,
    )
    with explained_os_errors(output):
        write_atomic(output, f"{found.model_dump_json(indent=1)}\n".encode())
    for each in found.fits:
        texts = f"{counted(each.num_human, 'human text')}, {each.num_machine} of machines"
        print(f"{each.tokens} tokens: {texts}")
