"""`stillhouse verify` for language models: every check holds, and fails on a planted mistake."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.model_shapes import write_words
from tests.pipeline.tiny_run import write_text
from transformers import OPTConfig, OPTForCausalLM

from stillhouse.distillation.cache import cache_format
from stillhouse.objectives.divergence import LogitPair
from stillhouse.objectives.divergences import DIVERGENCES
from stillhouse.recipe_file import parse_recipe
from stillhouse.tokens.batches import Batch
from stillhouse.tokens.packing import CausalSequences, MaskedSequences
from stillhouse.tokens.teacher_cache import TeacherCache
from stillhouse.training.step import TrainStep
from stillhouse.verification import checks as shared
from stillhouse.verification import language
from stillhouse.verification.checks import Check
from stillhouse.verification.language import LanguageCase, language_case
from stillhouse.verification.verify import print_checks, verify_recipe

CAUSAL = """
teacher: {{family: gpt2, num_layers: 3, hidden_size: 16, num_heads: 2, training: {{max_tokens: 1}}}}
corpus: {{source: {text}, documents: per_line}}
tokens:
  language_modeling: causal
  tokenizer: {{train: byte_bpe, vocabulary_size: 320}}
  sequence_length: 32
student: {{layer_map: 2}}
distillation:
  temperature: 2.0
  losses:
    soft_target: {{weight: 5.0, rows: all}}
    jsd: {{weight: 1.0, beta: 0.3}}
    language_modeling: {{weight: 2.0}}
    hidden_cosine: {{weight: 1.0}}
"""
MASKED = CAUSAL.replace("family: gpt2", "family: bert").replace("causal", "masked")
MASKED = MASKED.replace("byte_bpe, vocabulary_size: 320", "wordpiece, vocabulary_size: 300")


@pytest.fixture(scope="module", params=["causal", "masked"])
def case(request: Any, tmp_path_factory: pytest.TempPathFactory) -> LanguageCase:
    """A tiny recipe, prepared once. What a test changes it changes by monkeypatch alone."""
    folder = tmp_path_factory.mktemp(request.param)
    text = write_text(folder / "text.txt", num_lines=60)
    recipe = CAUSAL if request.param == "causal" else MASKED
    case = language_case(parse_recipe(recipe.format(text=text)), folder, offline=True)
    torch.manual_seed(0)
    with torch.no_grad():  # so that no parameter is idle, and no loss is near zero
        for model in (case.student, case.teacher.model):
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return case


def checks_of(case: LanguageCase) -> dict[str, Check]:
    case = replace(case)  # without the batch it has kept
    return {check.name: check for check in language.language_checks(case)}


def failed(case: LanguageCase) -> set[str]:
    return {name for name, check in checks_of(case).items() if not check.passed}


@pytest.mark.e2e
def test_every_check_passes(case: LanguageCase) -> None:
    """And every loss there is has been looked at."""
    checks = checks_of(case)
    assert {name for name, check in checks.items() if not check.passed} == set()
    losses = {*DIVERGENCES, "language_modeling"}
    others = {"labels", "student = teacher", "split of a step", "packed vs alone"}
    others |= {"padded vs alone", "cached vs live (top_k)", "cached vs live (sampled)"}
    assert set(checks) == losses | others


def wrapped(change: Callable[[Any], Any], original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *arguments, **more: change(original(*arguments, **more))


@pytest.mark.e2e
@pytest.mark.law("shift")
def test_labels_shifted_by_one_are_found(
    case: LanguageCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every position learns the token after the next."""

    def shift(batch: Batch) -> Batch:
        return replace(batch, labels=batch.labels.roll(-1, dims=1))

    for sequences in (CausalSequences, MaskedSequences):
        monkeypatch.setattr(sequences, "batch", wrapped(shift, sequences.batch))
    found = failed(case)
    assert "labels" in found
    if case.batch.causal:
        assert "language_modeling" in found


@pytest.mark.e2e
@pytest.mark.law("padding")
def test_counted_padding_is_found(case: LanguageCase, monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding positions take part in the losses of all rows."""
    original = Batch.rows

    def rows(batch: Batch, kind: Any) -> torch.Tensor:
        return (
            torch.ones_like(batch.labels, dtype=torch.bool)
            if kind == "all"
            else original(batch, kind)
        )

    monkeypatch.setattr(Batch, "rows", rows)
    assert "padded vs alone" in failed(case)


@pytest.mark.e2e
@pytest.mark.law("accumulation")
def test_a_dropped_micro_batch_is_found(
    case: LanguageCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last of several never contributes its gradient."""
    original = TrainStep._micro_batches

    def all_but_the_last(steps: TrainStep) -> Iterator[Any]:
        parts = list(original(steps))
        yield from parts[:-1] or parts

    monkeypatch.setattr(TrainStep, "_micro_batches", all_but_the_last)
    assert failed(case) == {"split of a step"}


@pytest.mark.e2e
@pytest.mark.law("accumulation")
def test_a_mean_of_micro_batch_means_is_found(
    case: LanguageCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradient accumulation bug of many trainers: each micro-batch divided by its own rows."""
    original = TrainStep._counts

    def counts(steps: TrainStep, parts: list[Any]) -> dict[str, int]:
        return {name: value // len(parts) for name, value in original(steps, parts).items()}

    monkeypatch.setattr(TrainStep, "_counts", counts)
    assert failed(case) == {"split of a step"}


@pytest.mark.e2e
@pytest.mark.law("cache")
def test_a_cache_of_other_tokens_is_found(
    case: LanguageCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each cached probability is given to the token after its own."""

    def others(rows: Any) -> Any:
        ids = (rows.targets.ids + 1) % case.teacher.model.config.vocab_size
        return replace(rows, targets=replace(rows.targets, ids=ids))

    monkeypatch.setattr(TeacherCache, "rows", wrapped(others, TeacherCache.rows))
    assert failed(case) == {"cached vs live (top_k)", "cached vs live (sampled)"}


@pytest.mark.e2e
@pytest.mark.law("packing")
def test_documents_that_see_each_other_are_found(
    case: LanguageCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention ignores where a packed document begins."""

    def visible(batch: Batch) -> torch.Tensor:
        every = torch.ones(*batch.input_ids.shape, batch.input_ids.shape[1], dtype=torch.bool)
        return every.tril() if batch.causal else every

    monkeypatch.setattr(Batch, "visible", visible)
    assert {"packed vs alone", "language_modeling"} <= failed(case)


@pytest.mark.e2e
@pytest.mark.law("formula")
def test_a_divergence_in_the_other_direction_is_found(
    case: LanguageCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Student and teacher exchanged: still zero for a copy, and wrong for everything else."""
    original = LogitPair.softened

    def exchanged(pair: LogitPair) -> Any:
        log_p, log_q, _ = original(pair)
        return log_q, log_p, log_p.exp()

    monkeypatch.setattr(LogitPair, "softened", exchanged)
    assert failed(case) == {"reverse_kl", "jsd", "skew_kl"}


@pytest.mark.e2e
def test_a_step_of_an_odd_number_of_sequences_is_split(case: LanguageCase) -> None:
    """So that the last micro-batch is shorter than the others."""
    assert case.source.num_sequences >= shared.SEQUENCES
    assert shared.SEQUENCES % 2 == 1


@pytest.mark.e2e
def test_a_loss_that_no_formula_checks_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the result and below the table; all divergences have a formula."""
    text = write_text(tmp_path / "text.txt", num_lines=60)
    recipe = parse_recipe(CAUSAL.format(text=text) + "    relation: {weight: 1.0}\n")
    result = verify_recipe("tiny", recipe, offline=True)
    assert result["not_verified"] == {"distillation": ["relation"]}
    print_checks(result)
    assert "not compared with a formula: relation" in capsys.readouterr().out


def test_a_nan_never_passes() -> None:
    """Whatever the bound."""
    assert not Check("x", "y", float("nan"), float("inf"), "").passed


@pytest.mark.e2e
@pytest.mark.e2e
def test_a_student_of_a_budget_is_verified(tmp_path: Path) -> None:
    """On one of its candidates, without a race."""
    text = write_text(tmp_path / "text.txt", num_lines=60)
    recipe = CAUSAL.format(text=text).replace("{layer_map: 2}", "{budget: {parameters: 12.5k}}")
    case = language_case(parse_recipe(recipe), tmp_path, offline=True)
    assert 12_250 <= case.student.num_parameters() <= 12_500
    assert {name for name, check in checks_of(case).items() if not check.passed} == set()


@pytest.mark.e2e
@pytest.mark.e2e
def test_a_student_of_a_smaller_hidden_size_is_verified(tmp_path: Path) -> None:
    """Losses of its hidden states are those of what its projection makes of them."""
    text = write_text(tmp_path / "text.txt", num_lines=60)
    recipe = CAUSAL.format(text=text).replace("{layer_map: 2}", "{layer_map: 2, hidden_size: 8}")
    case = language_case(parse_recipe(recipe), tmp_path, offline=True)
    found = checks_of(case)
    assert {name for name, check in found.items() if not check.passed} == set()
    assert {"hidden_cosine", "hidden_mse"} <= found.keys()


@pytest.mark.e2e
def test_hidden_states_narrower_than_the_layers_are_verified(tmp_path: Path) -> None:
    """OPT's may have the width of its embeddings (facebook/opt-350m), in a cache as well."""
    size: Any = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 32}
    config = OPTConfig(
        **size, word_embed_proj_dim=8, vocab_size=320, max_position_embeddings=64, dropout=0.0
    )
    write_words(tmp_path / "opt", config.vocab_size)
    OPTForCausalLM(config).save_pretrained(tmp_path / "opt")
    text = write_text(tmp_path / "text.txt", num_lines=60)
    recipe = CAUSAL.format(text=text).replace("teacher: {", f"teacher: {tmp_path / 'opt'} # ")
    recipe = recipe.replace("{train: byte_bpe, vocabulary_size: 320}", "teacher")
    case = language_case(parse_recipe(recipe), tmp_path, offline=True)
    assert failed(case) == set()
    outputs = "distillation.teacher_outputs={cache: top_k, size: 8}"
    cached = parse_recipe(recipe, ["distillation.losses.jsd.weight=0", outputs])
    assert cache_format(cached, config, 32).hidden_size == 8
