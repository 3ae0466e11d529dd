"""Training on several ranks equals training on one: the same losses, exact resume, no rank waits
for a lost one."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.pipeline.processes import STOPPED, Server, free_port, kill, wait_for_step
from tests.pipeline.tiny_run import TinyRun, sha256

import stillhouse

pytestmark = pytest.mark.e2e

STEPS = 12
STUDENT = "student/model.safetensors"
# Seven sequences a step: no number of ranks divides them, and the last step is shorter still.
SETTINGS = (
    "distillation.tokens_per_step=224",
    f"distillation.max_tokens={STEPS * 224 - 96}",
    "distillation.micro_batch_tokens=64",
    "distillation.checkpoint.every_steps=100",  # a stop commits by itself
    "distillation.dropout=true",  # micro-batches of two, however many the ranks
)
EVERY_STEP = "distillation.checkpoint.every_steps=1"
SHARDED = (
    "distillation.sharded=true",
    "distillation.teacher_sharded=true",
    "distillation.activation_checkpointing=true",
)
LAYOUTS = {"replicated": (), "sharded": SHARDED}
layouts = pytest.mark.parametrize("layout", LAYOUTS)


@pytest.fixture(scope="module")
def alone(
    server: Server, initialized: TinyRun, tmp_path_factory: pytest.TempPathFactory
) -> TinyRun:
    """The result of one rank."""
    run = initialized.copy(tmp_path_factory.mktemp("alone") / "run")
    distilled(server, run)
    return run


def distilled(server: Server, run: TinyRun, *overrides: str, ranks: int = 1) -> str:
    code, log = server.distill(run, *SETTINGS, *overrides, ranks=ranks)
    assert code == 0, log
    return log


def assert_same_result(run: TinyRun, expected: TinyRun) -> None:
    """Every step's loss and every weight, within float tolerance."""
    assert run.losses(STEPS) == pytest.approx(expected.losses(STEPS), rel=1e-5)
    tokens, others = ([line["tokens"] for line in each.metrics()] for each in (run, expected))
    assert tokens == others
    ours, theirs = (load_file(r.folder / STUDENT) for r in (run, expected))
    assert set(ours) == set(theirs)
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-3, atol=1e-5, msg=name)


def stopped(server: Server, run: TinyRun, *overrides: str, ranks: int, step: int) -> None:
    """Distil until `step`, then ask all ranks to stop."""
    processes = server.start(run, *SETTINGS, *overrides, ranks=ranks)
    wait_for_step(server, run, step)
    kill(processes, signal.SIGTERM)
    codes = server.wait()  # the launcher ends what is still there when the first has left
    assert STOPPED in codes, server.log.read_text()
    assert set(codes) <= {STOPPED, -signal.SIGTERM}, server.log.read_text()


@layouts
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.law("ranks")
def test_several_ranks_give_the_result_of_one(server, initialized, alone, tmp_path, ranks, layout):
    """Losses, tokens and weights equal those of one rank; stopped and resumed on the same number of
    ranks, training is bit-identical."""
    runs = [initialized.copy(tmp_path / name) for name in ("whole", "stopped")]
    distilled(server, runs[0], *LAYOUTS[layout], ranks=ranks)
    assert_same_result(runs[0], alone)
    stopped(server, runs[1], *LAYOUTS[layout], ranks=ranks, step=4)
    log = distilled(server, runs[1], *LAYOUTS[layout], ranks=ranks)
    assert "resuming after step" in log
    assert "damaged" not in log
    assert runs[1].losses(STEPS) == runs[0].losses(STEPS)
    assert runs[1].weights() == runs[0].weights()


@pytest.mark.law("ranks")
def test_a_projection_of_hidden_states_is_summed_over_ranks(server, ready, tmp_path):
    """A student half as wide as its teacher: alone, replicated, and sharded after a resume."""
    narrow = "student.hidden_size=8"
    assert ready.call("init", "--set", narrow).code == 0
    runs = [ready.copy(tmp_path / name) for name in ("alone", "replicated", "sharded")]
    distilled(server, runs[0], narrow)
    distilled(server, runs[1], narrow, ranks=2)
    stopped(server, runs[2], narrow, *SHARDED, ranks=2, step=4)
    distilled(server, runs[2], narrow, *SHARDED, ranks=2)
    for run in runs[1:]:
        assert_same_result(run, runs[0])
    facts = json.loads((ready.folder / "student-init/manifest.json").read_text())["facts"]
    assert len(facts["kept"]["hidden"]) == 8
    assert [len(heads) for heads in facts["kept"]["heads"]] == [1, 1, 1]  # of the teacher's layers
    assert not any("projection" in name for name in load_file(runs[2].folder / STUDENT))


@pytest.mark.law("ranks")
def test_the_number_of_ranks_may_change_on_resume(server, ready, alone):
    """1, 2 sharded, 4, then 2 ranks: each resumes from the checkpoint of the previous ones."""
    stopped(server, ready, ranks=1, step=2)
    stopped(server, ready, *SHARDED, ranks=2, step=5)
    stopped(server, ready, ranks=4, step=8)
    distilled(server, ready, *SHARDED, ranks=2)
    assert_same_result(ready, alone)


def test_a_lost_rank_ends_the_others_and_no_commit_is_lost(server, ready, alone):
    """A killed rank ends the others; the next start resumes."""
    processes = server.start(ready, *SETTINGS, EVERY_STEP, ranks=2)
    wait_for_step(server, ready, 4)
    started = time.monotonic()
    os.kill(processes[1], signal.SIGKILL)
    codes = server.wait()
    assert time.monotonic() - started < 25
    assert codes[0] in (8, STOPPED, -signal.SIGTERM)
    assert "Traceback" not in server.log.read_text()
    assert "resuming after step" in distilled(server, ready, ranks=2)
    assert_same_result(ready, alone)


def test_an_error_of_rank_0_is_reported_once(server, ready):
    """The other ranks exit with its exit code and without a message."""
    shutil.rmtree(ready.folder / "student-init")
    server.start(ready, *SETTINGS, ranks=2)
    codes = server.wait()
    assert codes[0] == 5
    assert codes[1] in (5, -signal.SIGTERM)
    assert server.log.read_text().count("error:") == 1


def test_rank_0_reports_its_error_before_the_launcher_ends_it(server, ready):
    """However slowly: the launcher ends all ranks when one exits, so the others exit after it."""
    shutil.rmtree(ready.folder / "student-init")
    slowly = (
        "import time; from stillhouse.training.ranks import Ranks; shutdown = Ranks.shutdown;"
        "Ranks.shutdown = lambda *args, **named: (time.sleep(1), shutdown(*args, **named))"
    )
    server.start(ready, *SETTINGS, ranks=2, inject={0: slowly})
    assert server.wait()[0] == 5, server.log.read_text()
    assert server.log.read_text().count("error:") == 1


def test_ranks_share_the_writing_of_a_teacher_cache(server, initialized, tmp_path):
    """The cache of two ranks is byte-identical to that of one, and students learn alike from it."""
    cached = "distillation.teacher_outputs={cache: sampled, size: 8}"
    runs = [initialized.copy(tmp_path / name) for name in ("one", "two")]
    small_parts = "import stillhouse.distillation.cache as cache; cache.TOKENS_PER_PART = 512"
    for ranks, run in enumerate(runs, start=1):
        inject = dict.fromkeys(range(ranks), small_parts)
        server.start(run, *SETTINGS, cached, ranks=ranks, inject=inject)
        assert set(server.wait()) == {0}, server.log.read_text()
        assert len(list(run.folder.glob("teacher-cache/part-*"))) > 2
    one, two = (
        {path.relative_to(run.folder): sha256(path) for path in run.folder.rglob("part-*/*.bin")}
        for run in runs
    )
    assert one == two
    assert_same_result(runs[1], runs[0])


def test_overwrite_is_rejected_with_launcher_restarts(ready, monkeypatch):
    """Every restart would overwrite what the previous one committed."""
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    found = ready.call("distill", "--overwrite", "distill")
    assert found.code == 2
    assert found.err.startswith("error: --overwrite with --max-restarts 3 of the launcher")
    assert not (ready.folder / "student").exists()
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "0")
    assert ready.call("distill", "--overwrite", "distill").code == 0


def test_rank_variables_without_a_launcher_are_rejected(ready, monkeypatch):
    """The leftover variable is named."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    found = ready.call("distill")
    assert found.code == 5
    assert "WORLD_SIZE is 2, but RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT are not" in found.err


def test_per_batch_masking_is_rejected_on_several_ranks(server, ready):
    """No rank sees a whole step."""
    server.start(
        ready,
        *SETTINGS,
        "teacher.family=bert",
        "tokens.tokenizer={train: wordpiece, vocabulary_size: 320}",
        "tokens.language_modeling=masked",
        "tokens.masking.sampling=per_batch",
        ranks=2,
    )
    assert 2 in server.wait()
    assert "Set it to per_sequence" in server.log.read_text()


@pytest.mark.slow
def test_compiled_replicas_give_the_result_of_one_rank(server, ready, tmp_path):
    """As on a GPU: compiled bodies inside DDP. The result equals that of eager ones."""
    eager = ready.copy(tmp_path / "eager")
    distilled(server, eager, "distillation.dropout=false")  # compiled, it draws other numbers
    distilled(server, ready, "distillation.dropout=false", "distillation.compile=true", ranks=2)
    assert_same_result(ready, eager)


def all_of(process: int) -> list[int]:
    """A process and all its descendants."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [process, *(each for child in children for each in all_of(int(child)))]


@pytest.mark.slow
def test_two_launchers_survive_the_loss_of_one(server, initialized, tmp_path):
    """torchrun on two nodes: one node dies and returns, and the result is the same."""
    settings = (*SETTINGS, "distillation.max_tokens=22400", EVERY_STEP)
    runs = [initialized.copy(tmp_path / name) for name in ("alone", "nodes")]
    code, log = server.distill(runs[0], *settings)
    assert code == 0, log
    source = str(Path(stillhouse.__file__).parents[1])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": source}
    environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # as docs/guides/ranks.md says
    port = free_port()

    def launch(node: int) -> subprocess.Popen:
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2"]
        command += ["--nproc-per-node=1", "--max-restarts=3", "--rdzv-backend=c10d"]
        command += [f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=stillhouse"]
        command += [f"--rdzv-conf=is_host={int(node == 0)}", "-m", "stillhouse", "distill"]
        command += [str(runs[1].recipe), "--run-dir", str(runs[1].folder)]
        command += [part for key in settings for part in ("--set", key)]
        with (tmp_path / f"node-{node}.txt").open("a") as log:
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    nodes = [launch(0), launch(1)]
    try:
        deadline = time.monotonic() + 240
        while len(runs[1].metrics()) < 10:
            assert time.monotonic() < deadline, (tmp_path / "node-0.txt").read_text()
            time.sleep(0.01)
        kill(all_of(nodes[1].pid), signal.SIGKILL)
        nodes[1].wait()
        nodes[1] = launch(1)
        assert [node.wait(timeout=240) for node in nodes] == [0, 0]
    finally:
        for node in nodes:
            if node.poll() is None:
                kill(all_of(node.pid), signal.SIGKILL)
                node.wait()
    said = (tmp_path / "node-0.txt").read_text() + (tmp_path / "node-1.txt").read_text()
    assert re.search(r"student \(seed 0\): resuming after step \d", said)
    ours, theirs = (
        [(line["step"], line["tokens"], line["loss"]) for line in run.metrics()] for run in runs
    )
    assert len(ours) == 100
    for line, other in zip(ours, theirs, strict=True):
        assert line == pytest.approx(other, rel=1e-5)
