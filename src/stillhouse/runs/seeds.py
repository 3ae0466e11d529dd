"""The folders of seeds: the run itself for one seed, a subfolder per seed for several. When the
seeds of a recipe change, results are moved rather than recomputed.

Contract: outputs are renamed one at a time and never replace another output, so a process that is
killed in between leaves no output half moved, and the next one continues.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from stillhouse.runs.atomic import archive_existing, write_atomic
from stillhouse.runs.manifest import manifest_path, read_manifest
from stillhouse.runs.paths import RunFolder

SHARED = "teacher"  # shared by all seeds; its checkpoints and metrics stay in the run


def arrange_results(run: RunFolder, seeds: Sequence[int]) -> list[str]:
    """Move a run's results to where a recipe with these seeds expects them; shared outputs stay.
    Returns a sentence for each move.

    With one seed, the summary and report of several seeds are archived in `replaced/`.
    """
    moves = []
    only = seeds[0] if len(seeds) == 1 else None
    present = _seed_of(run)
    if present is not None and present != only and _move(run, run.for_seed(present)):
        moves.append(f"the results of seed {present} are now in seed-{present}/")
    if only is not None and (source := run.for_seed(only)).path.is_dir():
        _archive_summary(run)
        if _move(source, run):
            moves.append(f"the results of seed {only} are no longer in seed-{only}/ but beside it")
    return moves


def _seed_of(run: RunFolder) -> int | None:
    """The seed of the results in this folder, finished or not."""
    folders = [*_outputs(run), *run.finetuned("").glob("*/*"), *run.checkpoints("").glob("*/*")]
    for folder in folders:
        if folder.parent == run.checkpoints(SHARED) or not folder.is_dir():
            continue
        manifest = read_manifest(folder)
        if manifest is not None and manifest.inputs.seed is not None:
            return manifest.inputs.seed
    return None


def _outputs(run: RunFolder) -> list[Path]:
    return [run.student_init, run.student, run.control, run.control_same_time]


def _results(run: RunFolder) -> Iterator[Path]:
    """Every output of one seed."""
    yield from _outputs(run)
    yield run.finetuned("")
    for folder in (run.checkpoints(""), run.path / "tensorboard", run.path / "sinks"):
        yield from (path for path in sorted(folder.glob("*")) if path.name != SHARED)
    for file in (run.evaluation, run.report):
        yield from (file, manifest_path(file))


def _archive_summary(run: RunFolder) -> None:
    manifest = read_manifest(run.evaluation)
    if manifest is not None and manifest.inputs.stage == "summarize":
        for file in (run.evaluation, run.report):
            manifest_path(file).unlink(missing_ok=True)
            archive_existing(file, overwrite=False)


def _move(source: RunFolder, target: RunFolder) -> bool:
    """Move outputs that the target does not have; returns whether any was moved."""
    moved = False
    for path in _results(source):
        place = target.path / path.relative_to(source.path)
        if path.exists() and not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            path.rename(place)
            moved = True
    if moved:
        _move_metrics(source, target)
        _remove_if_empty(source)
    return moved


def _move_metrics(source: RunFolder, target: RunFolder) -> None:
    """Move the lines of `metrics.jsonl`; those of the shared teacher are kept in both."""
    if not source.metrics.exists():
        return
    there = target.metrics if target.metrics.exists() else source.metrics
    shared = [line for line in _lines(there) if _is_shared(line)]
    own = [line for line in _lines(source.metrics) if not _is_shared(line)]
    write_atomic(target.metrics, "".join([*shared, *own]).encode())
    if source.path == source.shared:
        write_atomic(source.metrics, "".join(shared).encode())
    else:
        source.metrics.unlink()


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines(keepends=True)


def _is_shared(line: str) -> bool:
    try:
        return json.loads(line)["model"] == SHARED
    except ValueError:  # an incomplete line
        return False


def _remove_if_empty(source: RunFolder) -> None:
    folders = [source.checkpoints(""), source.path / "tensorboard", source.path / "sinks"]
    folders += [] if source.path == source.shared else [source.path]
    for folder in folders:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
