"""A script that cleans the shards of a run in an array of Slurm jobs, which it only writes.

Each job runs `stillhouse clean --shard I/N` on the recipe in the run folder, from the folder in
which the script was made, with the Python that made it. A job that is repeated goes on with what it
had not cleaned.
"""

import shlex
import sys
from pathlib import Path

from stillhouse.cleaning.job import Cleaning
from stillhouse.runs.atomic import write_atomic

MOST_JOBS = 1000  # below the largest array that Slurm's default settings allow (MaxArraySize 1001)

SCRIPT = """\
#!/bin/bash
#SBATCH --job-name=stillhouse-clean
#SBATCH --array=0-{last}{at_once}
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --mem-per-cpu=4G
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --chdir={folder}
#SBATCH --output={log}

exec {python} -m stillhouse clean {recipe} --run-dir {run} \\
  --shard "$SLURM_ARRAY_TASK_ID/{number}" --workers "$SLURM_CPUS_PER_TASK"
"""


def write_script(cleaning: Cleaning, target: Path) -> Path:
    """Write the script for all shards; `cleaning.workers` limits how many jobs run at once."""
    run, number = target.parent.absolute(), min(len(cleaning.groups), MOST_JOBS)
    workers = cleaning.recipe.workers
    text = SCRIPT.format(
        last=number - 1,
        at_once=f"%{workers}" if workers else "",
        folder=shlex.quote(str(Path.cwd())),
        log=shlex.quote(f"{run}/clean-%a.log"),
        python=shlex.quote(sys.executable),
        recipe=shlex.quote(str(run / "recipe.yaml")),
        run=shlex.quote(str(run)),
        number=number,
    )
    write_atomic(target, text.encode())
    return target
