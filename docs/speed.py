"""The tables of speed in README.md and docs/results/speed.md, from the raw numbers in
benchmarks/results.

Each row names the file it comes from; a ratio is the median over rounds that hold both sides.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


def speed_table(results: str) -> str:
    """Markdown: the comparison, its speedup, its times and its file.

    Args:
        results: The folder of the files, as the page links to it.
    """
    step = "step-bert.json"
    gpt2 = "step-gpt2.json"
    rows = [
        (
            "BERT-base to DistilBERT, 8 x 128, predicted positions",
            *_step(step, "predicted", "bf16"),
        ),
        ("the same, with cached teacher outputs", *_step(step, "predicted", "bf16-cached")),
        (
            "the same, live, soft targets and cosine at all positions",
            *_step(step, "all", "bf16"),
        ),
        ("the same on sentences of mixed length, 2019 code grouped by length", *_sentences("2019")),
        ("the same, 2019 code not grouped", *_sentences("2019-ungrouped")),
        ("GPT-2 to DistilGPT2, 4 x 256, all positions", *_step(gpt2, "all", "bf16")),
        ("the same, with cached teacher outputs", *_step(gpt2, "all", "bf16-cached")),
        *_peers(),
        *_tokenizing(),
        *_time_to_quality(),
    ]
    lines = ["| | speedup | seconds | file |", "|---|---|---|---|"]
    lines += [
        f"| {name} | **{ratio:.2f}** | {seconds} | [{file}]({results}/{file}) |"
        for name, ratio, seconds, file in rows
    ]
    return "\n".join(lines)


def serving_table() -> str:
    """Markdown for each kind of CPU that was measured: workload, throughput, speedup, baseline."""
    kinds = sorted(path.stem.removeprefix("generate-") for path in RESULTS.glob("generate-*.json"))
    return "\n\n".join(_serving_table(kind) for kind in kinds)


def _serving_table(kind: str) -> str:
    generate = _read(f"generate-{kind}.json")
    machine, found = generate["machine"], generate["results"]
    one, eight, plain = found["1"], found["8"], "transformers in float32"
    encoder = max(
        (name for name in found["encoder"] if name != "transformers"),
        key=lambda name: found["encoder"][name]["tokens_per_second"],
    )
    rows: list[tuple[str, Mapping[str, Any], str, str, str]] = [
        ("DistilGPT2, one text", one, "distilgpt2, int8", "distilgpt2, transformers", plain),
        ("", one, "distilgpt2, int8", "gpt2, transformers", f"GPT-2 in {plain}"),
        ("GPT-2, one text", one, "gpt2, int8", "gpt2, transformers", plain),
        ("DistilGPT2, eight texts", eight, "distilgpt2, int8", "distilgpt2, transformers", plain),
        ("DistilGPT2, sixteen requests arriving at random", found["arrivals"], "together", "alone",
         "the same requests one at a time"),
        (f"DistilBERT in {encoder}, eight texts of 128 tokens", found["encoder"], encoder,
         "transformers", plain),
    ]  # fmt: skip
    if "prompt" in found:
        prompt = ("DistilGPT2, a prompt of 80 tokens", found["prompt"], "distilgpt2, int8")
        rows += [
            (*prompt, "distilgpt2, transformers", plain),
            (*prompt, "distilgpt2, fp32", "Stillhouse in float32"),
        ]
    files = [f"generate-{kind}.json"]
    lines = ["| workload | tokens/s | speedup | baseline |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {_against(group, ours, theirs)} | {what} |"
        for name, group, ours, theirs, what in rows
    ]
    if (RESULTS / f"serve-{kind}.json").exists():
        files.append(f"serve-{kind}.json")
        lines += _http_lines(_read(files[-1])["results"])
    links = ", ".join(f"[{file}](../../benchmarks/results/{file})" for file in files)
    instructions = machine.get("instruction_set", kind.rpartition("-")[2].upper())
    name = machine["processor"].replace("(R)", "")
    title = f"{machine['cores']} cores of {name}, {instructions} ({links}):"
    return "\n".join([title, "", *lines])


def _http_lines(served: Mapping[str, Any]) -> list[str]:
    lines = []
    for number in ("1", "16"):
        figures = _against(served[f"{number} at once"], "HTTP", "bare")
        lines.append(f"| over HTTP, {number} concurrent | {figures} | without HTTP |")
    suggestions = statistics.median(served["suggestions"]["HTTP"]["seconds"])
    ready = statistics.median(served["seconds_to_ready"])
    return [
        *lines,
        "",
        f"Three suggestions of 12 tokens: {suggestions:.2f} s. Start-up until `/health` answers: "
        f"{ready:.1f} s.",
    ]


def _against(found: Mapping[str, Mapping[str, Any]], ours: str, theirs: str) -> str:
    pairs = zip(found[theirs]["seconds"], found[ours]["seconds"], strict=True)
    ratio = statistics.median(other / own for other, own in pairs)
    return f"{found[ours]['tokens_per_second']:,.0f} | **{ratio:.2f}**"


Row = tuple[float, str, str]


def _step(file: str, rows: str, variant: str, reference: str = "2019") -> Row:
    found = next(result for result in _read(file)["results"] if result["rows"] == rows)
    return _of_rounds(found["seconds"], variant, reference, file)


def _sentences(reference: str) -> Row:
    return _step("step-sentences.json", "predicted", "bf16", reference)


def _of_rounds(seconds: Mapping[str, Sequence[float]], ours: str, theirs: str, file: str) -> Row:
    pairs = zip(seconds[theirs], seconds[ours], strict=True)
    ratio = statistics.median(other / own for other, own in pairs)
    medians = [statistics.median(seconds[name]) for name in (theirs, ours)]
    return ratio, f"{medians[0]:.2f} to {medians[1]:.2f}", file


def _peers() -> list[tuple[str, float, str, str]]:
    """Each toolkit's step in its fastest precision here, bfloat16 autocast."""
    rows = []
    models = {
        "bert": "",
        "gpt2": "",
        "llama": ", SmolLM2's shape to 24 of 30 layers, EPYC without AMX",
    }
    for pair, what in models.items():
        file = f"step-peers-{pair}.json"
        for result in _read(file)["results"]:
            peer = result["title"].partition(" against ")[2]
            name = f"against {peer}{what}, both in bfloat16, matched losses"
            theirs = next(key for key in result["references"] if key.endswith("-bf16"))
            rows.append((name, *_of_rounds(result["seconds"], "bf16", theirs, file)))
    return rows


def _tokenizing() -> list[tuple[str, float, str, str]]:
    file = "tokenize-novels.json"
    result = _read(file)["result"]
    size = f"{result['size_bytes'] / 1e6:.0f} MB of novels"
    names = {
        "encoding": f"GPT-2's BPE on {size}, against `tokenizers`",
        "prepare": "all of `prepare` on them, against `tokenizers`",
    }
    return [
        (name, *_of_rounds(result[part], "gigatoken", "tokenizers", file))
        for part, name in names.items()
    ]


def _time_to_quality() -> list[tuple[str, float, str, str]]:
    """The median over seeds; the name gives the number of seeds that reached the target."""
    file = "time-to-quality-decoder.json"
    found = _read(file)
    gains = [gain for gain in found["gains"]["fast"].values() if gain is not None]
    seeds = f"{len(gains)} of {len(found['gains']['fast'])} seeds"
    seconds = [one["seconds"] for one in found["trainings"] if one["kind"] == "2019"]
    theirs, gain = statistics.median(seconds), statistics.median(gains)
    name = f"time to the classic recipe's validation loss by `preset: fast`, {seeds}"
    return [(name, gain, f"{theirs:.0f} to {theirs / gain:.0f}", file)]


def _read(file: str) -> dict[str, Any]:
    return json.loads((RESULTS / file).read_text(encoding="utf-8"))
