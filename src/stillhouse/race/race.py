"""The race: candidates of a budget -> race.json, which names the student's shape.

Every candidate is cut from the teacher and ranked by its loss on the calibration text. The best are
distilled for a short time by the recipe's own distillation, and ranked by KL(teacher || student) on
held-out text. Each step is committed, so that an interrupted race resumes.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from stillhouse.distillation.distill import Distillation
from stillhouse.errors import RecipeError, TrainingError
from stillhouse.models.folder_check import load_config, weight_dtype
from stillhouse.models.load import save_model
from stillhouse.race.candidates import (
    SPEED_TOLERANCE,
    Candidate,
    candidate_of,
    parameter_limit,
    plan_candidates,
)
from stillhouse.race.cuts import Cuts
from stillhouse.race.score import score
from stillhouse.race.speed import DecodingTimes, decoding_times, times_inputs
from stillhouse.runs.manifest import Inputs, commit_folder, commit_json, is_up_to_date
from stillhouse.section import recipe_part
from stillhouse.stages.context import StageContext
from stillhouse.student.calibration import calibration_of, calibration_sources
from stillhouse.student.settings import StudentRecipe
from stillhouse.tokens.packing import open_source
from stillhouse.tokens.tokenizer import open_tokenizer
from stillhouse.training.settings import result_settings
from stillhouse.wording import counted

MakeCuts = Callable[[], Cuts]


class Race:
    """One recipe's race, for all of its seeds."""

    def __init__(self, context: StageContext) -> None:
        recipe = context.recipe
        assert recipe.student.budget is not None
        self.context = context
        self.run = context.run
        self.teacher = context.models.teacher
        self.budget = recipe.student.budget
        self.config = load_config(self.teacher.folder)
        self.config.dtype = weight_dtype(self.teacher.folder, self.config)
        short = {"max_tokens": self.budget.race.tokens, "epochs": 1, "control": "none"}
        self.distillation = recipe.distillation.model_copy(update=short)

    @cached_property
    def candidates(self) -> list[Candidate]:
        """The candidates; to be asked for on every rank first, for their times may be measured."""
        return self._plan(self.times)

    def _plan(self, times: DecodingTimes | None) -> list[Candidate]:
        recipe = self.context.recipe
        relation = recipe.distillation.losses.relation
        return plan_candidates(self.config, recipe.student, relation, times)

    @cached_property
    def times(self) -> DecodingTimes | None:
        """Where the budget is a speed, the times that the candidates follow from. They are measured
        on the first rank, and kept: a race that resumes has the same candidates."""
        if self.budget.tokens_per_second is None:
            return None
        saved, inputs = self.run.decoding_times, times_inputs(self.teacher)

        def measure() -> str:
            if fresh := not is_up_to_date(saved, inputs):
                self.context.reporter.say("race: measuring decoding speeds")
            times = decoding_times(self.config, self.teacher, saved)
            self._plan(times)
            if fresh:
                commit_json(saved, asdict(times), inputs)
            return json.dumps(asdict(times))

        return DecodingTimes(**json.loads(self.context.ranks.on_rank0(measure)))

    def inputs(self) -> Inputs:
        """All that decides the race."""
        recipe = self.context.recipe
        settings = {
            "student": recipe_part(recipe.student),
            "distillation": result_settings(self.distillation),
            "tokens": recipe_part(recipe.tokens),
        }
        return Inputs("race", settings, self._sources(), self.context.seed)

    def hold(self, inputs: Inputs) -> None:
        """Cut, distil, score, and commit the result; on every rank.

        Raises:
            TrainingError: every finalist diverges.
        """
        context = self.context
        context.reporter.say(f"race: {counted(len(self.candidates), 'candidate')}")
        finalists = self._cut()
        distilled: list[Candidate] = []
        for place, candidate in enumerate(finalists, 1):
            context.reporter.say(f"race: distilling {candidate.name}, {place} of {len(finalists)}")
            own = self.run.candidate(candidate.name)
            short = {"student": candidate.recipe, "distillation": self.distillation}
            recipe = context.recipe.model_copy(update=short)
            try:
                Distillation(replace(context, recipe=recipe, run=own)).make("student")
            except TrainingError as error:  # on every rank
                context.reporter.say(f"race: {candidate.name} is out of the race: {error}")
                if place == len(finalists) and not distilled:
                    raise
            else:
                distilled.append(candidate)
        context.ranks.on_rank0(lambda: self._commit(distilled, inputs))

    def restore_winner(self) -> None:
        """Cut the winner again if its folder is gone: `init` starts from it."""
        self._make_student(cache(self._cuts), raced_candidate(self.run.race, self.config))

    def _cut(self) -> list[Candidate]:
        """Cut every candidate, and commit the initial weights of those with the lowest losses."""
        # The teacher is loaded, and its parts are scored, where a candidate is still to be cut.
        cuts = cache(self._cuts)
        for candidate in self.candidates:
            self.context.once(
                self._cut_file(candidate),
                partial(self._timed_inputs, candidate),
                partial(self._commit_cut, cuts, candidate),
            )
        fast = self._fast_enough()
        ranked = sorted(fast, key=lambda own: _last_if_missing(self._facts(own)["loss"]))
        finalists = ranked[: self.budget.race.finalists]
        for candidate in finalists:
            self._make_student(cuts, candidate)
        return finalists

    def _fast_enough(self) -> list[Candidate]:
        """The candidates that were measured to have the budget's speed, where it is one.

        Raises:
            RecipeError: none has.
        """
        wanted = self.budget.tokens_per_second
        if wanted is None:
            return self.candidates
        speeds = [self._facts(own)["tokens_per_second"] for own in self.candidates]
        fast = [
            own
            for own, speed in zip(self.candidates, speeds, strict=True)
            if speed >= (1 - SPEED_TOLERANCE) * wanted
        ]
        if not fast:
            raise RecipeError(
                f"student.budget asks for {wanted:,.1f} tokens/s, but the fastest of "
                f"{counted(len(speeds), 'candidate')} decodes {max(speeds):,.1f}, measured beside "
                f"its teacher. Give at most {max(speeds):,.1f}, or measure again on a machine "
                f"without other work: remove {self.run.decoding_times} and {self.run.candidates}."
            )
        return fast

    def _make_student(self, cuts: MakeCuts, candidate: Candidate) -> None:
        """Its initial weights, where they are not there yet."""
        self.context.once(
            self.run.candidate(candidate.name).student_init,
            partial(self._cut_inputs, candidate),
            partial(self._commit_student, cuts, candidate),
        )

    def _cuts(self) -> Cuts:
        recipe, context = self.context.recipe, self.context
        importance, tokens = recipe.student.importance, self.run.tokens
        text = calibration_of(
            importance, recipe.tokens, tokens, self.config, offline=context.offline
        )
        number = counted(text.num_tokens, "token")
        context.reporter.say(f"race: measuring the teacher on {number}")
        return Cuts(self.teacher.folder, text)

    def _sources(self) -> dict[str, str]:
        importance = self.context.recipe.student.importance
        return {"teacher": self.teacher.fingerprint, **calibration_sources(importance, self.run)}

    def _cut_inputs(self, candidate: Candidate) -> Inputs:
        settings = {"student": recipe_part(candidate.recipe)}
        return Inputs("cut", settings, self._sources())

    def _timed_inputs(self, candidate: Candidate) -> Inputs:
        """Those of a cut, and whether and in which precision it is timed."""
        inputs = self._cut_inputs(candidate)
        timed = self.times and self.times.precision
        return replace(inputs, settings={**inputs.settings, "timed": timed})

    def _cut_file(self, candidate: Candidate) -> Path:
        return self.run.candidates / f"{candidate.name}.json"

    def _facts(self, candidate: Candidate) -> dict[str, Any]:
        return json.loads(self._cut_file(candidate).read_text(encoding="utf-8"))

    def _commit_cut(self, cuts: MakeCuts, candidate: Candidate, inputs: Inputs) -> None:
        loss, layers = cuts().loss(candidate), cuts().layers(candidate)
        speeds = {} if self.times is None else cuts().decoding_speeds(candidate, self.times)
        facts = {
            "name": candidate.name,
            **candidate.shape,
            "parameters": candidate.num_parameters,
            **speeds,
            "layer_map": layers.kept,
            "loss": loss if math.isfinite(loss) else None,
            "importance": {**asdict(layers), "tokens": cuts().text.num_tokens},
        }
        said = f"race: {candidate.name}: loss {loss:.3f} after the cut"
        self.context.reporter.say(f"{said}{_speeds(facts)}")
        self.run.candidates.mkdir(exist_ok=True)
        commit_json(self._cut_file(candidate), facts, inputs)

    def _commit_student(self, cuts: MakeCuts, candidate: Candidate, inputs: Inputs) -> None:
        target = self.run.candidate(candidate.name).student_init
        student, widths = cuts().student(candidate)
        facts, overwrite = {"kept": widths.facts()}, self.context.overwrite
        if candidate.recipe.reconstruct:
            self.context.reporter.say(f"race: fitting {candidate.name} to its teacher")
            facts["reconstruction"] = cuts().reconstruct(candidate, student, widths).facts()
        with commit_folder(target, inputs, facts, overwrite=overwrite) as folder:
            save_model(student, open_tokenizer(self.run.tokens), folder)

    def _commit(self, finalists: Sequence[Candidate], inputs: Inputs) -> None:
        source = open_source(self.run.tokens, self.context.recipe.tokens, "validation")
        candidates = {own.name: self._facts(own) for own in self.candidates}
        importance = {name: facts.pop("importance") for name, facts in candidates.items()}
        for own in finalists:
            student = self.run.candidate(own.name).student
            candidates[own.name] |= asdict(score(self.teacher.folder, student, source))
        after_cut = sorted(candidates.values(), key=lambda own: _last_if_missing(own["loss"]))
        raced = [own for own in after_cut if "kl" in own]
        raced.sort(key=lambda own: _last_if_missing(own["kl"]))
        if raced[0]["kl"] is None:
            raise TrainingError(
                "race: the logits of every finalist, or of the teacher, are not finite on held-out "
                "text. Lower distillation.optimizer.learning_rate, or set distillation.precision "
                "to fp32."
            )
        winner = next(own for own in finalists if own.name == raced[0]["name"])
        shape = {"layer_map": raced[0]["layer_map"], "weights": "teacher"}
        speed, times = self.budget.tokens_per_second, self.times
        result = {
            "limit": None if times else parameter_limit(self.budget, self.config),
            "speed": times and {"tokens_per_second": speed, **times.precision_facts},
            "tokens": self.budget.race.tokens,
            "candidates": after_cut,
            "ranking_after_cut": [own["name"] for own in after_cut],
            "ranking_after_distillation": [own["name"] for own in raced],
            "winner": winner.name,
            "reason": reason(after_cut, raced),
            "student": recipe_part(winner.recipe.model_copy(update=shape)),
            "importance": importance[winner.name],
        }
        self.context.reporter.say(f"race: {result['reason']}")
        commit_json(self.run.race, result, inputs)


def raced_candidate(race: Path, teacher: PretrainedConfig) -> Candidate:
    """The winner of a race that was held, as the candidate that it was."""
    student = json.loads(race.read_text(encoding="utf-8"))["student"]
    student["layer_map"] = len(student["layer_map"])
    return candidate_of(teacher, StudentRecipe.model_validate(student))


def reason(after_cut: Sequence[Mapping[str, Any]], raced: Sequence[Mapping[str, Any]]) -> str:
    """Why the first of those that were distilled is the student.

    Args:
        after_cut: All candidates by their losses, the lowest first.
        raced: Those that were distilled by their KL, the lowest first.
    """
    first, place = raced[0], after_cut.index(raced[0]) + 1
    others = ", ".join(_figure(own["kl"]) for own in raced[1:])
    agreement = max(raced, key=lambda own: own["top1_agreement"] or 0)
    if len(raced) == 1:
        also = "no other candidate was distilled to the end"
    elif agreement is first:
        also = "its most likely tokens agree with the teacher's most often too"
    else:
        also = f"the most likely tokens of {agreement['name']} agree with the teacher's more often"
    return (
        f"{first['name']} has the lowest held-out KL to the teacher after distillation, "
        f"{_figure(first['kl'])} nats a token{f' (others {others})' if others else ''}; it was "
        f"number {place} of {len(after_cut)} by loss after the cut{_speeds(first)}; {also}."
    )


def _speeds(facts: Mapping[str, Any]) -> str:
    """The speeds of a candidate and of its teacher, where they were measured."""
    if "tokens_per_second" not in facts:
        return ""
    ours, theirs = facts["tokens_per_second"], facts["teacher_tokens_per_second"]
    return f", {ours:,.1f} tokens/s (teacher {theirs:,.1f})"


def _figure(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3f}"


def _last_if_missing(value: float | None) -> float:
    return math.inf if value is None else value
