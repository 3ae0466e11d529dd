"""A student of a budget: a race from the teacher to the report, and one that is interrupted."""

import html
import json
import math
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.pipeline.processes import Server, kill
from tests.pipeline.tiny_run import TinyRun, refused, sha256, write_recipe
from transformers import AutoModelForCausalLM, PretrainedConfig

from stillhouse.distillation.distill import Distillation
from stillhouse.errors import TrainingError
from stillhouse.race import cuts, speed
from stillhouse.race.speed import DecodingTimes
from stillhouse.runs.manifest import read_manifest, sha256_of
from stillhouse.student.axes import sizes_of
from stillhouse.tokens.packing import open_source
from stillhouse.tokens.settings import TokensRecipe

pytestmark = pytest.mark.e2e

LIMIT = 20_000
RACE = "{candidates: 4, finalists: 2, tokens: 1024}"
BUDGET = f"student: {{budget: {{parameters: {LIMIT}, race: {RACE}}}}}"


@pytest.fixture(scope="module")
def with_budget(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A run with tokens and a teacher of 6 layers and grouped heads; its student has a budget."""
    folder = tmp_path_factory.mktemp("budget")
    run = TinyRun(write_recipe(folder), folder / "run")
    text = run.recipe.read_text(encoding="utf-8")
    for old, new in (
        ("family: gpt2", "family: llama"),
        ("num_layers: 3", "num_layers: 6"),
        ("max_tokens: 2560,", "max_tokens: 25600, optimizer: {learning_rate: 0.01},"),
        ("num_heads: 2", "num_heads: 4\n  num_key_value_heads: 2"),
        ("student: {layer_map: 2}", BUDGET),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    run.recipe.write_text(text, encoding="utf-8")
    outcome = run.call("run", "--until", "teacher")
    assert outcome.code == 0, outcome.err
    return run


@pytest.fixture(scope="module")
def raced(with_budget: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """The same run at its end."""
    run = with_budget.copy(tmp_path_factory.mktemp("raced") / "run")
    outcome = run.call("run")
    assert outcome.code == 0, outcome.err
    return run


def race_of(run: TinyRun) -> dict:
    return json.loads((run.folder / "race.json").read_text(encoding="utf-8"))


def test_the_student_has_the_lowest_held_out_kl_of_the_finalists(raced):
    """Both rankings are by their figures; the winner's own weights are the initial student."""
    race = race_of(raced)
    by_name = {own["name"]: own for own in race["candidates"]}
    losses = [by_name[name]["loss"] for name in race["ranking_after_cut"]]
    assert losses == sorted(losses)
    assert len(losses) == len(by_name) >= 3
    finalists = race["ranking_after_distillation"]
    assert set(finalists) == {*race["ranking_after_cut"][:2]}
    distances = [by_name[name]["kl"] for name in finalists]
    assert distances == sorted(distances)
    assert race["winner"] == finalists[0]
    assert f"{race['winner']} has the lowest held-out KL" in race["reason"]
    ours = raced.folder / "student-init/model.safetensors"
    theirs = raced.folder / "candidates" / race["winner"] / "student-init/model.safetensors"
    assert sha256(ours) == sha256(theirs)
    model = AutoModelForCausalLM.from_pretrained(raced.folder / "student")
    assert 0.98 * LIMIT <= model.num_parameters() <= LIMIT


def test_the_held_out_kl_is_that_of_transformers(raced):
    """From the logits of both folders in float64, over all predicted tokens of the split."""
    race = race_of(raced)
    folders = (raced.folder / "teacher", raced.folder / "candidates" / race["winner"] / "student")
    models = [AutoModelForCausalLM.from_pretrained(folder) for folder in folders]
    tokens = TokensRecipe(sequence_length=32)
    source = open_source(raced.folder / "tokens", tokens, "validation")
    kl, same, num_rows, num_late = 0.0, 0, 0, 0
    for number in range(source.num_sequences):
        batch = source.batch(np.array([number]), np.array([0]), 0)
        rows = batch.rows("predicted")[0]
        for document in set(batch.segment_ids[0].tolist()) - {0}:
            own = batch.segment_ids[0] == document
            with torch.no_grad():
                p, q = (
                    model(batch.input_ids[:, own]).logits[0].double().log_softmax(-1)
                    for model in models
                )
            counted, late = rows[own], torch.arange(32)[own] >= 16
            kl += float((p.exp() * (p - q)).sum(-1)[counted].sum())
            same += int((p.argmax(-1) == q.argmax(-1))[counted & late].sum())
            num_rows += int(counted.sum())
            num_late += int((counted & late).sum())
    winner = next(own for own in race["candidates"] if own["name"] == race["winner"])
    assert math.isclose(winner["kl"], kl / num_rows, rel_tol=1e-4)
    assert winner["top1_agreement"] == same / num_late


def test_an_initial_student_is_what_its_shape_alone_gives(raced, tmp_path):
    """Scores that are measured once for all candidates cut as those of one student do."""
    race = race_of(raced)
    winner = next(own for own in race["candidates"] if own["name"] == race["winner"])
    run = raced.copy(tmp_path / "run")
    text = raced.recipe.read_text(encoding="utf-8")
    keys = ("feed_forward_size", "num_heads", "num_key_value_heads", "hidden_size")
    shape = {"layer_map": winner["layers"], **{key: winner[key] for key in keys}}
    recipe = tmp_path / "shape.yaml"
    recipe.write_text(text.replace(BUDGET, f"student: {json.dumps(shape)}"), encoding="utf-8")
    outcome = TinyRun(recipe, run.folder).call("init")
    assert outcome.code == 0, outcome.err
    files = [folder / "student-init/model.safetensors" for folder in (run.folder, raced.folder)]
    assert sha256(files[0]) == sha256(files[1])


def test_manifest_and_report_show_every_candidate(raced):
    """With both figures and places, and the reason of the choice."""
    race = race_of(raced)
    manifest = read_manifest(raced.folder / "student-init")
    assert manifest is not None
    facts = manifest.facts
    assert facts["race"]["candidates"] == race["candidates"]
    assert facts["race"]["reason"] == race["reason"]
    assert facts["layer_map"] == facts["importance"]["kept"]
    winner = read_manifest(raced.folder / "candidates" / race["winner"] / "student-init")
    assert winner is not None
    assert facts["kept"] == winner.facts["kept"]
    page = html.unescape((raced.folder / "report.html").read_text(encoding="utf-8"))
    assert race["reason"] in page
    assert f"{race['winner']} (student)" in page
    for own in race["candidates"]:
        assert own["name"] in page
        assert f"{own['loss']:.3f} nats" in page
        if "kl" in own:
            assert f"{own['kl']:.3f} nats" in page


def test_the_finalists_are_reconstructed(raced, tmp_path):
    """Each before its training, and the winner's weights are the student's; the cuts are ranked as
    they were."""
    run = raced.copy(tmp_path / "run")
    outcome = run.call("run", "--until", "init", "--set", "student.reconstruct=true")
    assert outcome.code == 0, outcome.err
    race = race_of(run)
    assert race["ranking_after_cut"] == race_of(raced)["ranking_after_cut"]
    assert outcome.err.count("to its teacher") == len(race["ranking_after_distillation"]) == 2
    manifest = read_manifest(run.folder / "student-init")
    assert manifest is not None
    after = manifest.facts["reconstruction"]["error_after"]
    assert 0 < after[-1] < manifest.facts["reconstruction"]["error_before"][-1]
    own = run.folder / "candidates" / race["winner"] / "student-init/model.safetensors"
    assert sha256(run.folder / "student-init/model.safetensors") == sha256(own)


def test_a_race_is_held_once(raced, tmp_path):
    """Run again, everything is up to date; more finalists keep what was cut and distilled."""
    run = raced.copy(tmp_path / "run")
    outcome = run.call("race")
    assert "race.json is up to date" in outcome.err
    before = {path: path.stat().st_mtime_ns for path in (run.folder / "candidates").rglob("*.s*")}
    outcome = run.call("race", "--set", "student.budget.race.finalists=3")
    assert outcome.code == 0, outcome.err
    assert len(race_of(run)["ranking_after_distillation"]) == 3
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.law("resume")
@pytest.mark.parametrize(
    "after", ["*.manifest.json", "*/student-init/manifest.json", "*/metrics.jsonl"]
)
def test_a_killed_race_resumes_to_the_same_bits(
    server: Server, with_budget: TinyRun, raced: TinyRun, tmp_path: Path, after: str
):
    """Killed after the first cut, the first initial weights, or in the first distillation."""
    run = with_budget.copy(tmp_path / "run")
    processes = server.start(run, command="race")
    deadline = time.monotonic() + 120
    while not [*(run.folder / "candidates").glob(after)]:
        assert time.monotonic() < deadline, server.log.read_text()
        time.sleep(0.002)
    kill(processes, signal.SIGKILL)
    assert server.wait() == [-signal.SIGKILL]
    assert not (run.folder / "race.json").exists()
    server.start(run, command="race")
    assert server.wait() == [0], server.log.read_text()
    said = server.log.read_text()
    assert " is up to date" in said
    assert race_of(run) == race_of(raced)
    for weights in sorted((raced.folder / "candidates").rglob("*.safetensors")):
        assert sha256(run.folder / weights.relative_to(raced.folder)) == sha256(weights)


def test_seeds_share_one_race(with_budget, tmp_path):
    """Their students have one shape."""
    run = with_budget.copy(tmp_path / "run")
    outcome = run.call("run", "--until", "init", "--set", "seed=[0, 1]")
    assert outcome.code == 0, outcome.err
    assert (run.folder / "race.json").exists()
    weights = [run.folder / f"seed-{seed}/student-init/model.safetensors" for seed in (0, 1)]
    assert sha256(weights[0]) == sha256(weights[1])


def test_a_cached_teacher_serves_the_race_and_the_student(with_budget, tmp_path, monkeypatch):
    """The cache is written once, before the first finalist, and hashed once for all of them."""
    run, hashed = with_budget.copy(tmp_path / "run"), []

    def count(path: Path) -> str:
        hashed.append(path)
        return sha256_of(path)

    monkeypatch.setattr("stillhouse.runs.manifest.sha256_of", count)
    settings = ("--set", "distillation.teacher_outputs={cache: top_k, size: 8}")
    settings += ("--set", "distillation.losses={soft_target: {weight: 1}}")
    outcome = run.call("race", *settings)
    assert outcome.code == 0, outcome.err
    written = (run.folder / "teacher-cache/manifest.json").stat().st_mtime_ns
    caches = [path for path in hashed if path.parent.name == "teacher-cache"]
    assert sorted(caches) == sorted(2 * [*{*caches}])  # written, then verified
    outcome = run.call("run", "--until", "distill", *settings)
    assert outcome.code == 0, outcome.err
    assert (run.folder / "teacher-cache/manifest.json").stat().st_mtime_ns == written


def test_check_names_the_candidates_and_what_they_cost(with_budget):
    """How many, of which size, and the time of the race."""
    outcome = with_budget.call("check", "--json")
    found = json.loads(outcome.out)
    assert len(found["race"]["candidates"]) >= 3
    assert found["race"]["finalists"] == 2
    (part,) = [part for part in found["time"]["parts"] if part["name"] == "race"]
    assert part["seconds"] > 0
    shown = with_budget.call("check").out
    assert f"race: {len(found['race']['candidates'])} candidates of up to " in shown
    assert "the 2 best after the cut are distilled on 1,024 tokens each" in shown


def test_a_budget_that_cannot_be_met_is_refused_before_work(with_budget, tmp_path):
    """By check and by run alike."""
    run = with_budget.copy(tmp_path / "run")
    for command in ("check", "run"):
        for size, message in ((100, "one narrow layer have"), (10**6, "all layers of the teacher")):
            outcome = run.call(command, "--set", f"student.budget.parameters={size}")
            refused(outcome, 2, r"tiny\.yaml: student\.budget allows", message)
    outcome = run.call("run", "--set", "student.layer_map=2")
    refused(outcome, 2, "student: budget chooses layer_map by a race; leave out one or the other")
    assert not (run.folder / "candidates").exists()


def test_init_without_the_race_names_the_stage(with_budget, tmp_path):
    run = with_budget.copy(tmp_path / "run")
    refused(run.call("init"), 5, "run the stage race first")


@pytest.mark.law("ranks")
def test_two_ranks_hold_the_race_of_one(server, with_budget, raced, tmp_path):
    """The first one cuts and scores, both distil; up to rounding the figures are the same."""
    run = with_budget.copy(tmp_path / "run")
    server.start(run, command="race", ranks=2)
    assert server.wait() == [0, 0], server.log.read_text()
    one, two = race_of(raced), race_of(run)
    assert two["ranking_after_cut"] == one["ranking_after_cut"]
    assert two["winner"] == one["winner"]
    for ours, theirs in zip(two["candidates"], one["candidates"], strict=True):
        assert ours.keys() == theirs.keys()
        assert ours["loss"] == theirs["loss"]
        assert ours.get("kl", 0) == pytest.approx(theirs.get("kl", 0), rel=1e-3)


def test_the_winner_is_cut_again_where_its_folder_is_gone(raced, tmp_path):
    """Such as for a further seed, with the bits it had."""
    run = raced.copy(tmp_path / "run")
    race = race_of(run)
    before = sha256(run.folder / "student-init/model.safetensors")
    for gone in (run.folder / "candidates", run.folder / "student-init"):
        shutil.rmtree(gone)
    outcome = run.call("run", "--until", "init")
    assert outcome.code == 0, outcome.err
    assert sha256(run.folder / "student-init/model.safetensors") == before
    assert race_of(run) == race
    assert [each.name for each in (run.folder / "candidates").iterdir() if each.is_dir()] == [
        race["winner"]
    ]


def test_a_finalist_that_diverges_is_out_of_the_race(with_budget, tmp_path, monkeypatch):
    """The other one is the student; where all diverge, the race ends with the reason."""
    run, make, out = with_budget.copy(tmp_path / "run"), Distillation.make, []

    def diverge(self: Distillation, model: Any) -> None:
        out.append(self.run.path.name)
        if len(out) != 2:
            raise TrainingError("it diverged")
        make(self, model)

    monkeypatch.setattr(Distillation, "make", diverge)
    outcome = run.call("race")
    assert outcome.code == 0, outcome.err
    assert f"race: {out[0]} is out of the race: it diverged" in outcome.err
    assert race_of(run)["ranking_after_distillation"] == out[1:]
    ruined = with_budget.copy(tmp_path / "ruined")
    outcome = ruined.call("race")
    assert outcome.code == TrainingError.exit_code
    assert "error: it diverged" in outcome.err
    assert not (ruined.folder / "race.json").exists()


def seconds_of(config: PretrainedConfig) -> float:
    """A millisecond for the head, and for each layer 100 us and 2 us for each channel."""
    return 1e-3 + config.num_hidden_layers * (1e-4 + 2e-6 * sizes_of(config).feed_forward)


def test_candidates_of_a_speed_are_timed_beside_their_teacher(with_budget, tmp_path, monkeypatch):
    """Those that are slower than the budget once they are measured are not distilled; where all
    are, the race is refused with the speed that there is. Times of this machine are replaced."""

    def turns() -> tuple[float, float]:
        return 600.0, next(speeds)

    speeds = iter([100.0, *8 * [1000.0], *99 * [100.0]])
    monkeypatch.setattr(DecodingTimes, "of", lambda _, configs: [*map(seconds_of, configs)])
    monkeypatch.setattr(
        cuts, "interleaved_rates", lambda works: dict(zip(works, turns(), strict=True))
    )
    settings = ("--set", "student.budget.parameters=null")
    settings += ("--set", "student.budget.tokens_per_second=520")
    settings += ("--set", "student.budget.race.candidates=9")
    run = with_budget.copy(tmp_path / "run")
    said = run.call("check", *settings).out
    assert "candidates of about 520.0 tokens/s" in said
    assert "each candidate is timed beside it" in said
    outcome = run.call("run", *settings)
    assert outcome.code == 0, outcome.err
    assert "after the cut, 100.0 tokens/s (teacher 600.0)" in outcome.err
    race = race_of(run)
    assert race["speed"]["tokens_per_second"] == 520
    slow, *_ = [own for own in race["candidates"] if own["tokens_per_second"] == 100]
    assert "kl" not in slow
    assert "1,000.0 tokens/s (teacher 600.0)" in race["reason"]
    page = html.unescape((run.folder / "report.html").read_text(encoding="utf-8"))
    assert f"Decoding, {race['speed']['precision']}" in page
    assert "1,000.0 tokens/s" in page
    other = with_budget.copy(tmp_path / "other")
    refused(other.call("race", *settings), 2, r"asks for 520\.0 .* Give at most 100\.0")


def test_a_race_by_speed_keeps_its_times(with_budget, tmp_path, monkeypatch):
    """Other stages do not measure them, the next race reads them, a race by parameters in the same
    folder has no speeds, and a winner that is gone is cut again whatever the times are by then."""
    slower, measured = [1.0], []

    def measure(self: DecodingTimes, configs: list[PretrainedConfig]) -> list[float]:
        for config in configs:
            key = f"{config.num_hidden_layers} {sizes_of(config)}"
            if key not in self.seconds:
                measured.append(key)
                self.seconds[key] = slower[0] * seconds_of(config)
        return [self.seconds[f"{own.num_hidden_layers} {sizes_of(own)}"] for own in configs]

    monkeypatch.setattr(DecodingTimes, "of", measure)
    monkeypatch.setattr(cuts, "interleaved_rates", lambda works: dict.fromkeys(works, 520.0))
    by_speed = ("--set", "student.budget.parameters=null")
    by_speed += ("--set", "student.budget.tokens_per_second=520")
    run = with_budget.copy(tmp_path / "run")
    outcome = run.call("run", "--until", "teacher", *by_speed)
    assert (outcome.code, measured) == (0, []), outcome.err
    assert run.call("race").code == 0  # by parameters first
    outcome = run.call("race", *by_speed)
    assert outcome.code == 0, outcome.err
    assert "race: measuring decoding speeds" in outcome.err
    race, number = race_of(run), len(measured)
    assert all(own["tokens_per_second"] == 520 for own in race["candidates"])
    speed._times.cache_clear()  # as in another process
    outcome = run.call("race", *by_speed)
    assert "race.json is up to date" in outcome.err
    assert "measuring" not in outcome.err
    assert len(measured) == number > 0
    speed._times.cache_clear()
    slower[0] = 0.93
    for name in ("decoding-times.json", "decoding-times.manifest.json"):
        (run.folder / name).unlink()
    for name in ("candidates", "student-init"):
        shutil.rmtree(run.folder / name, ignore_errors=True)
    outcome = run.call("run", "--until", "init", *by_speed)
    assert outcome.code == 0, outcome.err
    assert race_of(run) == race
    outcome = run.call("race")
    assert outcome.code == 0, outcome.err
    assert "tokens/s" not in race_of(run)["reason"]
