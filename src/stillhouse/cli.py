"""The command line: one command per stage, and those that put a student to work.

Results go to stdout, progress and errors to stderr. Each command imports what it needs when it
runs, so that `--help` answers at once."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from stillhouse.stages.stage import STAGES, stage_named
from stillhouse.wording import counted

app = typer.Typer(
    name="stillhouse",
    help="Distil a language model into a smaller, faster one, and prove what it kept.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

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
        help="Stages whose old output and checkpoints may be replaced rather than kept (or: all).",
    ),
]
Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A model folder, a hub name, sample, or minilm.")
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
PrecisionName = Annotated[
    str,
    typer.Option(
        metavar="PRECISION",
        help="fp32, bf16, int8, or auto: the fastest on this machine. Lower precision only where "
        "the model changes by at most 1 %.",
    ),
]
Host = Annotated[str, typer.Option(help="The address to listen on.")]
Port = Annotated[int, typer.Option(min=0, max=65535)]
ApiKey = Annotated[
    str | None,
    typer.Option(envvar="STILLHOUSE_API_KEY", help="What clients must send as their key."),
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
        help="auto, cpu or cuda; by default a GPU where there is one.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.")
    ] = False,
) -> None:
    if version:
        from stillhouse import __version__

        print(__version__)
        raise typer.Exit


@app.command()
def quickstart(
    run_dir: RunDir = None,
    overrides: Overrides = None,
    overwrite: Overwrite = "",
    device: Device = None,
) -> None:
    """Distil the packaged teacher on this machine's own text.

    Needs no download. Writes student, control, table and report into the run folder, and prints the
    table."""
    _run_stages("quickstart", run_dir, overrides, overwrite, offline=True)


@app.command()
def run(
    recipe: RecipeName,
    run_dir: RunDir = None,
    overrides: Overrides = None,
    until: Annotated[
        str | None, typer.Option(metavar="STAGE", help="Stop after this stage.")
    ] = None,
    offline: Offline = False,
    overwrite: Overwrite = "",
    device: Device = None,
) -> None:
    """Run a recipe's stages in order, from text to report.

    What is up to date is left alone. Writes the run folder: tokens, student, control,
    evaluation.json and report.html."""
    _run_stages(recipe, run_dir, overrides, overwrite, offline=offline, until=until)


@app.command()
def check(
    recipe: RecipeName,
    run_dir: RunDir = None,
    overrides: Overrides = None,
    offline: Offline = False,
    as_json: AsJson = False,
    device: Device = None,
) -> None:
    """Validate a recipe, and say what it makes and costs.

    Reads configurations, task files and a part of the text; writes nothing.
    """
    from stillhouse.check import check_recipe, print_check
    from stillhouse.recipe_file import load_recipe
    from stillhouse.runs.paths import RunFolder

    name, parsed = load_recipe(recipe, overrides or [])
    run = RunFolder.at(run_dir or Path("runs") / name)
    result = check_recipe(name, parsed, offline=offline, run=run)
    _print_json(result) if as_json else print_check(result)


@app.command()
def verify(
    recipe: RecipeName,
    overrides: Overrides = None,
    offline: Offline = False,
    as_json: AsJson = False,
) -> None:
    """Check a recipe's losses on its own teacher and text, against independent references.

    Reads the first documents; takes about a minute; writes to a temporary folder only. Ends with 1
    where a check fails.
    """
    from stillhouse.recipe_file import load_recipe
    from stillhouse.verification.checks import print_checks
    from stillhouse.verification.verify import verify_recipe

    name, parsed = load_recipe(recipe, overrides or [])
    result = verify_recipe(name, parsed, offline=offline)
    tables = result.pop("tables")
    if as_json:
        _print_json(result)
    else:
        for part, checks in tables.items():
            print_checks(f"{name}: {part}", checks)
    if result["failed"]:
        raise typer.Exit(1)


def _add_stage_command(name: str) -> None:
    @app.command(name, help=stage_named(name).help)
    def run_stage(
        recipe: RecipeName,
        run_dir: RunDir = None,
        overrides: Overrides = None,
        offline: Offline = False,
        overwrite: Overwrite = "",
        device: Device = None,
    ) -> None:
        _run_stages(recipe, run_dir, overrides, overwrite, offline=offline, only=name)


for _name in STAGES:
    _add_stage_command(_name)


@app.command()
def compare(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="Model folders, hub names, sample, or minilm."),
    ],
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

    All models are scored on the same text and timed in turns; progress goes to stderr.
    """
    from stillhouse.evaluation.compare import compare_models
    from stillhouse.evaluation.comparison_table import print_comparison
    from stillhouse.training.progress import ConsoleReporter

    with ConsoleReporter() as reporter:
        result = compare_models(models, text, offline=offline, reporter=reporter)
    _print_json(result) if as_json else print_comparison(result)


@app.command()
def score(
    model: Model,
    task: TaskName = None,
    data: Annotated[Path | None, typer.Option(help="The examples, with what is right.")] = None,
    overrides: TaskSettings = None,
    lm_eval: Annotated[
        str | None,
        typer.Option(metavar="TASKS", help="Tasks of lm-evaluation-harness, apart by commas."),
    ] = None,
    lm_eval_folder: Annotated[
        Path | None, typer.Option(help="Take these tasks (YAML) for the harness's own.")
    ] = None,
    offline: Offline = False,
    as_json: AsJson = False,
    device: Device = None,
) -> None:
    """Score a model on a task.

    Reads a table, a file in SQuAD's format or tagged sentences; prints each metric with its 95 %
    interval over examples. Without --task the task is the one that the model was trained on. With
    --lm-eval the harness scores a causal language model instead.
    """
    from stillhouse.errors import RecipeError

    if lm_eval is not None and task is None and data is None and not overrides:
        from stillhouse.evaluation.harness import print_harness, score_by_harness

        names = [name.strip() for name in lm_eval.split(",")]
        found = score_by_harness(model, names, task_folder=lm_eval_folder, offline=offline)
        _print_json(found) if as_json else print_harness(found)
        return
    if lm_eval is not None or data is None:
        raise RecipeError("Give --data (and --task, --set), or --lm-eval alone.")
    from stillhouse.evaluation.score import print_scores, score_model
    from stillhouse.models.hub import resolve_folder
    from stillhouse.recipe_file import parse_task
    from stillhouse.tasks.registry import settings_of_model

    folder = resolve_folder(model, offline=offline)
    recipe = parse_task(task or settings_of_model(folder), overrides or [])
    result = score_model(model, folder, recipe, data)
    _print_json(result) if as_json else print_scores(result)


@app.command()
def predict(
    model: Model,
    source: Annotated[
        Path, typer.Option("--input", help="The examples: a .jsonl file, or a table.")
    ],
    output: Annotated[Path, typer.Option(help="Where to write, a line for each: a .jsonl file.")],
    task: TaskName = None,
    overrides: TaskSettings = None,
    offline: Offline = False,
    device: Device = None,
) -> None:
    """Write a model's answers to the examples of a file.

    Line n has the text of row n and an answer in the shape of transformers' pipelines: a label, an
    answer, entities, an embedding. A blank row is an empty text. Without --task the task is the one
    that the model was trained on.
    """
    from stillhouse.inference.load import load_for_task
    from stillhouse.inference.predict import check_output, predict_file
    from stillhouse.inference.task_model import cut_text
    from stillhouse.models.hub import resolve_folder
    from stillhouse.recipe_file import parse_task
    from stillhouse.tasks.registry import settings_of_model
    from stillhouse.training.device import pick_device

    check_output(output)
    folder = resolve_folder(model, offline=offline)
    recipe = parse_task(task or settings_of_model(folder), overrides or [])
    loaded = load_for_task(folder, recipe, pick_device())
    number, num_cut = predict_file(loaded, source, output)
    if num_cut:
        typer.echo(cut_text(num_cut, loaded.task), err=True)
    if blank := loaded.task.blank_rows(source):
        where = f"{source}: {numbered_rows(blank)} without any field"
        typer.echo(f"{where}: read as empty text", err=True)
    print(f"{output}: {counted(number, 'prediction')}")


@app.command()
def generate(
    model: Model,
    prompt: Annotated[str, typer.Option(help="The text to continue.")],
    seed: Annotated[int | None, typer.Option(help="Makes sampling reproducible.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="How many tokens to add.")] = 50,
    num_return_sequences: Annotated[int, typer.Option(help="How many texts.")] = 1,
    temperature: Annotated[float, typer.Option(help="Below 1 is safer, above 1 wilder.")] = 1.0,
    top_k: Annotated[
        int, typer.Option(help="Choose among the k likeliest tokens; 0 for all.")
    ] = 50,
    top_p: Annotated[
        float, typer.Option(help="Choose among the likeliest tokens of this total share.")
    ] = 1.0,
    min_p: Annotated[
        float, typer.Option(help="Leave out tokens less likely than this share of the likeliest.")
    ] = 0.0,
    typical_p: Annotated[
        float, typer.Option(help="Choose among the least surprising tokens of this total share.")
    ] = 1.0,
    repetition_penalty: Annotated[
        float, typer.Option(help="Above 1 makes tokens that are there already less likely.")
    ] = 1.0,
    greedy: Annotated[
        bool, typer.Option("--greedy", help="Always take the likeliest token.")
    ] = False,
    num_beams: Annotated[
        int, typer.Option(help="With --greedy: search for the likeliest text with so many beams.")
    ] = 1,
    stop: Annotated[
        list[str] | None, typer.Option(help="End before this text; may be given several times.")
    ] = None,
    precision: PrecisionName = "fp32",
    draft: Annotated[
        str | None,
        typer.Option(metavar="STUDENT", help="A student that drafts; the text is the model's own."),
    ] = None,
    offline: Offline = False,
    as_json: AsJson = False,
    device: Device = None,
) -> None:
    """Continue a text with a causal model.

    Prints each text, the prompt included. With --draft, how much of the draft was kept goes to
    stderr.
    """
    from stillhouse.inference.engine.speculative import continue_by_draft
    from stillhouse.inference.generation import Generation
    from stillhouse.inference.quantization_check import load_at_precision

    settings = Generation(
        max_new_tokens=max_new_tokens,
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

    def at_precision(name: str) -> Any:
        found = load_at_precision(name, precision, offline=offline)
        if precision != "fp32":
            typer.echo(f"{name}: precision: {found}", err=True)
        return found.model

    loaded = at_precision(model)
    if draft is None:
        found = loaded.continuations(prompt, settings)
    else:
        student = at_precision(draft)
        text, kept = continue_by_draft(loaded, student, prompt, settings)
        typer.echo(kept, err=True)
        found = [text]
    texts = [prompt + rest for rest in found]
    if as_json:
        _print_json([{"generated_text": text} for text in texts])
    else:
        print("\n---\n".join(texts))


@app.command()
def serve(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="Model folders, hub names, sample, or minilm."),
    ],
    host: Host = "127.0.0.1",
    port: Port = 8000,
    precision: PrecisionName = "auto",
    slots: Annotated[int, typer.Option(min=1, help="Sequences generated at once.")] = 16,
    queue: Annotated[int, typer.Option(min=1, help="Requests that may wait for a slot.")] = 64,
    request_timeout: Annotated[
        float, typer.Option(min=1, help="Seconds of work on one request, at most.")
    ] = 120.0,
    api_key: ApiKey = None,
    insecure: Insecure = False,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN",
            help="A site whose pages may use this server, such as https://example.com; * for all.",
        ),
    ] = None,
    replicas: Annotated[
        int | None, typer.Option(min=1, help="Number of replicas, run by Ray Serve.")
    ] = None,
    max_replicas: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of replicas as the load grows.")
    ] = None,
    offline: Offline = False,
) -> None:
    """Serve models over HTTP, in the dialects of OpenAI and Hugging Face.

    Where a request names no model, the first that does its task answers. Ends on Ctrl+C, when
    requests that were taken are finished. With --replicas it runs under Ray Serve, on the cluster
    of RAY_ADDRESS where that is set.
    """
    _serve(
        replicas=(replicas or 1, max_replicas or replicas or 1)
        if replicas or max_replicas
        else None,
        models=tuple(models),
        host=host,
        port=port,
        precision=precision,
        api_key=api_key,
        insecure=insecure,
        cors_origins=tuple(cors_origin or ()),
        offline=offline,
        limits={"num_slots": slots, "queue": queue, "request_timeout": request_timeout},
    )


@app.command()
def write(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="Model folders, hub names, sample, or minilm."),
    ],
    host: Host = "127.0.0.1",
    port: Port = 8000,
    precision: PrecisionName = "auto",
    api_key: ApiKey = None,
    insecure: Insecure = False,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Only say where the page is.")
    ] = False,
    offline: Offline = False,
) -> None:
    """Serve models, and open a page to write with them.

    Two models, such as a student and its teacher, can be compared there. What is written stays in
    the browser.
    """
    _serve(
        models=tuple(models),
        host=host,
        port=port,
        precision=precision,
        api_key=api_key,
        insecure=insecure,
        offline=offline,
        with_editor=True,
        open_browser=not no_browser,
    )


@app.command()
def export(
    model: Model,
    target: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to write.")],
    to: Annotated[str, typer.Option(metavar="FORMAT", help="ctranslate2, gguf or onnx.")],
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="PRECISION",
            help="fp32, fp16 or int8; by default what the format is used for.",
        ),
    ] = None,
    offline: Offline = False,
    as_json: AsJson = False,
) -> None:
    """Write a model for another engine.

    Reads a model folder, writes DIR. What was written is loaded again and held against the model on
    real text, and its speed against transformers; one that does not come out the same is not kept.
    """
    from stillhouse.export.export import export_model, print_export

    found = export_model(model, to, target, precision=precision, offline=offline)
    _print_json(found) if as_json else print_export(found, target)


@app.command()
def features(
    model: Model,
    text: Annotated[str, typer.Option(help="The text to read.")],
    output: Annotated[Path, typer.Option(help="Where to write: a .safetensors or .npy file.")],
    offline: Offline = False,
    device: Device = None,
) -> None:
    """Write a text's last hidden states to a file.

    One row a token, float32.
    """
    from stillhouse.inference.features import check_target, save_features
    from stillhouse.inference.load import load

    check_target(output)
    states = load(model, offline=offline).features(text)
    save_features(states, output)
    print(f"{output}: {counted(states.shape[0], 'token')} x {states.shape[1]}")


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Print this recipe.")] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of a recipe, for editors.")
    ] = False,
) -> None:
    """List the packaged recipes, or print one to copy."""
    from stillhouse.recipe_file import recipe_names, recipe_schema, recipe_text

    if schema:
        _print_json(recipe_schema())
        return

    if name is not None:
        print(recipe_text(name)[1], end="")
        return
    for recipe in recipe_names():
        first_line = recipe_text(recipe)[1].splitlines()[0].removeprefix("# ")
        print(f"{recipe:<36} {first_line}")


@app.command()
def doctor(
    run_dir: Annotated[
        Path | None, typer.Argument(metavar="[RUN_DIR]", help="Check this run instead.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what this machine can do, or what of a run is intact."""
    from stillhouse.doctor import examine_machine, examine_run, print_findings

    findings = examine_machine() if run_dir is None else examine_run(run_dir)
    _print_json(findings) if as_json else print_findings(findings)
    if any(finding["state"] == "damaged" for finding in findings):
        raise typer.Exit(5)


def _run_stages(
    recipe: str,
    run_dir: Path | None,
    overrides: list[str] | None,
    overwrite: str,
    *,
    offline: bool,
    only: str | None = None,
    until: str | None = None,
) -> None:
    from stillhouse.machine import sharing_cores
    from stillhouse.recipe_file import load_recipe

    name, parsed = load_recipe(recipe, overrides or [])
    from stillhouse.pipeline import Options, Pipeline
    from stillhouse.runs.paths import RunFolder
    from stillhouse.stages.stage import stages_named, stages_until
    from stillhouse.training.progress import ConsoleReporter, QuietReporter
    from stillhouse.training.ranks import init_distributed

    stages = (only,) if only else stages_until(until)
    options = Options(offline=offline, overwrite=stages_named(overwrite))
    folder = RunFolder.at(run_dir or Path("runs") / name)
    with sharing_cores(), init_distributed() as ranks:
        with ConsoleReporter() if ranks.is_first else QuietReporter() as reporter:
            pipeline = Pipeline(parsed, folder, reporter, options, ranks)
            pipeline.run_stages(stages)
        if ranks.is_first and (text := pipeline.summary(stages)):
            print(text)


def _serve(
    limits: dict[str, Any] | None = None,
    replicas: tuple[int, int] | None = None,
    **asked: Any,
) -> None:
    from stillhouse.extras import require

    require("serve" if replicas is None else "ray")
    from stillhouse.serving.config import Limits, ServerConfig
    from stillhouse.serving.server import serve_models

    config = ServerConfig(limits=Limits(**(limits or {})), **asked)
    if replicas is None:
        serve_models(config)
        return
    from stillhouse.serving.ray_app import Replicas, serve_replicas

    serve_replicas(config, Replicas(*replicas))


def _print_json(value: Any) -> None:
    import json

    print(json.dumps(value, indent=1, ensure_ascii=False))
