"""Reports what this machine can do and what is missing, and which outputs of a run are intact."""

import json
import os
import shutil
from pathlib import Path

from stillhouse import units
from stillhouse.errors import RunError, StillhouseError
from stillhouse.extras import EXTRAS, install_command, missing_modules
from stillhouse.machine import library_versions, memory_bytes, num_cores, processor_name
from stillhouse.runs.manifest import read_manifest, verify
from stillhouse.runs.paths import RunFolder
from stillhouse.stages.stage import STAGES, stage_named
from stillhouse.wording import duration


def examine_machine() -> list[dict[str, str]]:
    """Findings about this machine: each a name, a state (ok, missing, damaged) and a detail."""
    import torch

    from stillhouse.training.device import has_bf16, pick_device

    device = pick_device()
    free = shutil.disk_usage(".").free
    precision = "bf16" if has_bf16(device) else "fp32 (no fast bfloat16 here)"
    versions = ", ".join(f"{name} {version}" for name, version in library_versions().items())
    gpu = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else "none; training runs on the CPU"
    )
    findings = [
        _finding(
            "CPU",
            f"{processor_name()}, {num_cores()} cores, {memory_bytes() / 1e9:.1f} GB memory",
        ),
        _finding("GPU", gpu),
        _finding("precision", precision),
        _finding("disk", f"{free / 1e9:.1f} GB free here", "ok" if free > 2e9 else "missing"),
        _finding("versions", versions),
        _finding(
            "hub",
            "offline (HF_HUB_OFFLINE=1)"
            if os.environ.get("HF_HUB_OFFLINE") == "1"
            else "used only when a recipe names it",
        ),
    ]
    for name, extra in EXTRAS.items():
        missing = missing_modules(name)
        advice = f": {install_command(name)} installs {', '.join(missing)}" if missing else ""
        state = "missing" if missing else "ok"
        kind = "package" if extra.command else "extra"
        findings.append(_finding(f"{kind} {name}", extra.purpose + advice, state))
    return findings


def examine_run(folder: Path) -> list[dict[str, str]]:
    """The state of every stage's output and every checkpoint of a run, each file verified.

    Raises:
        RunError: not a run folder.
    """
    if not (folder / "recipe.yaml").is_file():
        raise RunError(f"{folder} is not a run folder: it has no recipe.yaml.")
    findings = []
    for path in [folder, *sorted(path for path in folder.glob("seed-*") if path.is_dir())]:
        run = RunFolder(path, folder)
        stages = [stage_named(name) for name in STAGES]
        outputs = [output for stage in stages for output in stage.outputs(run)]
        # Outputs that all seeds share are listed once.
        own = [output for output in outputs if path == folder or output.is_relative_to(path)]
        checkpoints = sorted(path.glob("checkpoints/*/*step-*"))
        findings += [_examine(output, folder) for output in [*own, *checkpoints] if output.exists()]
        if run.metrics.exists():
            findings.append(_examine_metrics(run.metrics, folder))
    return findings


def print_findings(findings: list[dict[str, str]]) -> None:
    """One line a finding, on stdout."""
    width = max((len(finding["what"]) for finding in findings), default=0)
    for finding in findings:
        print(f"{finding['state']:<8} {finding['what']:<{width}}  {finding['detail']}")


def _examine(output: Path, folder: Path) -> dict[str, str]:
    name = str(output.relative_to(folder))
    try:
        verify(output)
        manifest = read_manifest(output)
    except StillhouseError as error:
        return _finding(name, str(error), "damaged")
    assert manifest is not None
    size = sum(facts["size_bytes"] for facts in manifest.files.values())
    training = manifest.facts.get("training") or {}
    seconds = manifest.seconds + training.get("seconds", 0)
    return _finding(name, f"intact, {units.size_bytes(size)}, made in {duration(seconds)}")


def _examine_metrics(path: Path, folder: Path) -> dict[str, str]:
    steps: dict[str, int] = {}
    broken = 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            values = json.loads(line)
            steps[values["model"]] = values["step"]
        except (ValueError, KeyError, TypeError):
            broken += 1
    name = str(path.relative_to(folder))
    if broken:
        return _finding(name, f"{broken} lines cannot be read", "damaged")
    return _finding(name, ", ".join(f"{model} to step {step}" for model, step in steps.items()))


def _finding(what: str, detail: str, state: str = "ok") -> dict[str, str]:
    return {"what": what, "state": state, "detail": detail}
