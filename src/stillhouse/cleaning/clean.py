"""Cleans the text of a corpus: one pass of the steps over each shard, then deduplication over all.

Contract: the output is the same for any number of processes, and whether or not it was interrupted.
A shard appears under its name when it is complete, so a process that is killed leaves nothing half
written, and the next one resumes where it stopped. Memory is bounded by a shard and by the
signatures of one step. Of the cleaned text there is one copy, and of one more shard.

    clean/divided-00007/        the pieces of a large file, and what was counted while reading it
    clean/cleaned-00007-00003/  documents after the steps, their signatures, what was left out
    clean/removed/              which documents and lines repeat earlier ones
    clean/part-00007-00003/     the documents that are left: the output; the others are removed
"""

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from stillhouse.cleaning.counts import TextShape, left_out, summed
from stillhouse.cleaning.executors import cluster, run_tasks
from stillhouse.cleaning.job import Cleaning
from stillhouse.cleaning.reading import ReadCounts
from stillhouse.cleaning.repeats import find_duplicates
from stillhouse.cleaning.shard_work import clean_shard, divide, finish_shard
from stillhouse.cleaning.shards import PLAN, Group, Shard, save_plan
from stillhouse.cleaning.slurm import write_script
from stillhouse.errors import DataError, RunError
from stillhouse.runs.atomic import archive_existing, write_atomic
from stillhouse.runs.manifest import (
    commit_parts,
    facts_of,
    fingerprint,
    is_up_to_date,
    read_manifest,
)
from stillhouse.wording import counted

Say = Callable[[str], None]
ShardWork = Callable[[Cleaning, Shard], None]


def clean(cleaning: Cleaning, say: Say, *, overwrite: bool = False) -> None:
    """Clean all of the text.

    Raises:
        DataError: nothing is left of the text.
    """
    begin(cleaning, overwrite=overwrite)
    started = time.monotonic()
    with cluster(cleaning.recipe.executor):
        if cleaning.recipe.executor == "slurm":
            _require_cleaned(cleaning)
        clean_groups(cleaning, cleaning.groups, say)
        shards = cleaning.shards(cleaning.groups)
        find_duplicates(cleaning, shards, say)
        unfinished = [shard for shard in shards if not cleaning.is_finished(shard)]
        _run(cleaning, finish_shard, unfinished, "finished", say)
    facts = _facts(cleaning, shards)
    _refuse_nothing(cleaning, shards)
    facts["wall_seconds"] = round(time.monotonic() - started, 3)
    commit_parts(cleaning.folder, cleaning.inputs, facts)
    remove_work(cleaning.folder)
    read = counted(facts["read"]["documents"], "document")
    say(f"{facts['text']['documents']:,} of {read} are left{left_out(facts['steps'])}")


def _refuse_nothing(cleaning: Cleaning, shards: Sequence[Shard]) -> None:
    """Refuse text of which nothing is left, or of one of whose parts.

    Raises:
        DataError: nothing is left.
    """
    of_part: dict[str, list[Mapping[str, Any]]] = {}
    for shard in shards:
        of_part.setdefault(shard.group.part, []).append(facts_of(cleaning.part(shard)))
    for part, facts in of_part.items():
        if any(own["text"]["documents"] for own in facts):
            continue
        steps = {name: own.facts() for name, own in summed(each["steps"] for each in facts).items()}
        first = next(iter(steps.values()))
        whose = f"the part {part}" if part else "the text"
        raise DataError(
            f"Cleaning leaves nothing of {whose}: of "
            f"{counted(first['documents_in'], 'document')}{left_out(steps)}. Give "
            "other text, fewer steps, or other settings of these."
        )


def clean_share(cleaning: Cleaning, share: int, shares: int, say: Say) -> None:
    """Run the steps over every `shares`-th group of files from number `share` on, for jobs that
    divide the text among themselves; `clean` then does the rest."""
    if is_up_to_date(cleaning.folder, cleaning.inputs):
        say("clean is up to date")
        return
    clean_groups(cleaning, cleaning.groups[share::shares], say)


def _require_cleaned(cleaning: Cleaning) -> None:
    """Refuse to continue before Slurm has cleaned all shards.

    Raises:
        RunError: it has not; the script that does it is written.
    """
    missing = [group for group in cleaning.groups if unclean_shards(cleaning, [group]) != []]
    if not missing:
        return
    script = write_script(cleaning, cleaning.folder.parent / "clean.sbatch")
    raise RunError(
        f"{len(missing):,} of {counted(len(cleaning.groups), 'part')} of the text must be cleaned "
        f"by Slurm first: submit `sbatch {script}`, and run the same command again when its jobs "
        "have ended, such as in a job with `--dependency=afterok:JOB`."
    )


def remove_work(folder: Path) -> None:
    """Remove what a finished folder was made from."""
    for path in folder.iterdir():
        if path.is_dir() and not path.name.startswith("part-"):
            shutil.rmtree(path)
    for path in [folder / PLAN, *folder.glob("todo-*.json")]:
        path.unlink(missing_ok=True)


def begin(cleaning: Cleaning, *, overwrite: bool = False) -> None:
    """Keep an unfinished folder, whose shards tell whether they are of the same inputs; archive a
    finished one."""
    if read_manifest(cleaning.folder) is not None:
        groups = cleaning.groups
        archive_existing(cleaning.folder, overwrite=overwrite)
        save_plan(cleaning.folder, groups)


def clean_groups(cleaning: Cleaning, groups: Sequence[Group], say: Say) -> None:
    """Divide the large files of some groups, and run the steps over their shards."""
    undivided = [Shard(group) for group in groups if not cleaning.is_divided(group)]
    _run(cleaning, divide, undivided, "divided", say)
    _run(cleaning, clean_shard, unclean_shards(cleaning, groups) or [], "cleaned", say)


def unclean_shards(cleaning: Cleaning, groups: Sequence[Group]) -> list[Shard] | None:
    """The shards of groups that the steps have not run over; None where that is not known yet,
    since a large file is not divided."""
    if not all(map(cleaning.is_divided, groups)):
        return None
    return [
        shard
        for shard in cleaning.shards(groups)
        if not is_up_to_date(cleaning.cleaned(shard), cleaning.inputs_of(shard.group))
        and not cleaning.is_finished(shard)
    ]


def _run(
    cleaning: Cleaning,
    work: ShardWork,
    shards: Sequence[Shard],
    done: str,
    say: Say,
) -> None:
    """Call `work` with each shard, in several processes."""
    if not shards:
        return
    recipe, number = cleaning.recipe, len(shards)
    todo = [[shard.group.number, shard.piece] for shard in shards]
    file = cleaning.folder / f"todo-{fingerprint(todo)[:16]}.json"  # a name of its own for each job
    write_atomic(file, json.dumps(todo).encode())
    run_tasks(
        partial(_do, work, cleaning, file),
        number,
        executor="ray" if recipe.executor == "ray" else "local",
        workers=recipe.workers,
        report=lambda count: say(f"{count:,} of {counted(number, 'shard')} {done}"),
    )


def _do(work: ShardWork, cleaning: Cleaning, todo: Path, task: int) -> None:
    group, piece = _load_todo(todo)[task]
    work(cleaning, Shard(cleaning.groups[group], piece))


@lru_cache(maxsize=1)
def _load_todo(file: Path) -> list[list[int]]:
    return json.loads(file.read_text(encoding="utf-8"))


def _facts(cleaning: Cleaning, shards: list[Shard]) -> dict[str, Any]:
    """The counts of all shards."""
    parts = [facts_of(cleaning.part(shard)) for shard in shards]
    read, text = ReadCounts(), TextShape()
    divided = [facts_of(cleaning.divided(group)) for group in cleaning.groups if group.is_divided]
    for facts in [*parts, *divided]:
        read.add(facts["read"])
    for facts in parts:
        text.add(facts["text"])
    signing = Counter[str]()
    for facts in parts:
        signing.update(facts["signing"])
    steps = summed(facts["steps"] for facts in parts)
    found = facts_of(cleaning.removed)
    for name, own in found.items():
        steps[name].seconds += signing[name] + own["seconds"]
    return {
        "read": read.facts(),
        "steps": {name: own.facts() for name, own in steps.items()},
        "repeats": {
            name: {key: own[key] for key in ("removed", "group_sizes", "examples", "seconds")}
            for name, own in found.items()
        },
        "text": text.facts(),
        "shards": len(shards),
    }
