"""The old words of docs/glossary.md stay out of code, tests, documentation and --help."""

import re

import pytest
import typer
from docs.words import NAMES, PHRASES, ROOT, WORDS, Source, glossary_table, old_words, sources

from stillhouse.cli import app

# Files that still use old words, and which. A line goes when its file is done; none is added.
# ruff: noqa: E501
LEFT = """
--help: apart by commas | held against | likeliest | so many | with what is right
README.md: A less B | but for rounding | classes, numbers (of tasks) | floor (of speed) | going on | passage (of a question) | reads / writes (of speed) | task: {length} | vectors (of text) | what it says of
benchmarks/cache.py: held against | stands
benchmarks/cached.py: made anew | what it says of
benchmarks/generate.py: the processor
benchmarks/gpu.py: Floor | Work | floor (of speed) | floor_share | multiply-adds | multiply_adds
benchmarks/isa.py: is told
benchmarks/measure.py: floor (of speed) | made anew | stands | the processor
benchmarks/reference_2019.py: stands
benchmarks/scaling.py: Work | floor (of speed)
benchmarks/sentence_file.py: stands
benchmarks/sentences.py: visit (of a sequence)
benchmarks/step.py: Floor | Work | floor (of speed) | floor_share | the processor
benchmarks/task_speed.py: the processor
benchmarks/time_to_quality.py: going on | held against | stands
docs/bad-input.md: going on | hard_target | is none of | stands
docs/cli.md: apart by commas | held against | likeliest | so many | with what is right
docs/correctness.md: stands
docs/data.md: stands
docs/decisions/0002-documents-lead-with-end-of-text.md: stands
docs/decisions/0003-replaced-not-overwritten.md: going on
docs/decisions/0005-seeds-share-a-run.md: stands
docs/decisions/0006-a-cache-keeps-a-sample-without-replacement.md: likeliest | stands | visit (of a sequence)
docs/decisions/0008-ranks-share-whole-micro-batches.md: going on | made anew | the processor
docs/decisions/0009-checkpoints-in-parts-of-safetensors.md: going on
docs/decisions/0010-tasks-and-their-models-by-name.md: stands
docs/decisions/0011-texts-without-answers.md: data.transfer | hard_target | right answer | texts without answers | transfer
docs/decisions/0012-one-engine.md: the processor
docs/laws.py: stands
docs/ranks.md: going on | the processor
docs/recipe.md: data.transfer | hard_target | longest_answer | num_transfer | question_length | task: {length} | transfer | vector_cosine | vector_mse | vectors (of text)
docs/reliability.md: begun | going on | numbers that are none | stands | takes something damaged for something whole
docs/scaling.md: going on
docs/screenshots.py: going on
docs/serving.md: --seconds (of a server) | going on | in company | likeliest | makes room at once | the processor | vectors (of text)
docs/speed.py: is told
docs/tasks.md: A less B | classes, numbers (of tasks) | data.transfer | going on | hard_target | passage (of a question) | task: {length} | texts without answers | transfer | vectors (of text) | with what is right
src/stillhouse/__main__.py: stands
src/stillhouse/check.py: floor (of speed) | multiply-adds | multiply_adds | so many
src/stillhouse/cli.py: apart by commas | held against | likeliest | so many | with what is right
src/stillhouse/corpus/prepare.py: lead | stands
src/stillhouse/corpus/splits.py: held_out | so many
src/stillhouse/data/html.py: stands
src/stillhouse/data/lines.py: begun | stands
src/stillhouse/data/pieces.py: stands
src/stillhouse/data/records.py: stands
src/stillhouse/data/rows.py: stands
src/stillhouse/distillation/cache.py: begun | but for rounding | going on | made anew | stands | visit (of a sequence)
src/stillhouse/distillation/distill.py: Floor | Lesson | Work | begun | floor (of speed) | going on
src/stillhouse/doctor.py: the processor
src/stillhouse/errors.py: going on
src/stillhouse/estimate/language.py: multiply_adds | so many
src/stillhouse/estimate/speeds.py: Work | floor (of speed) | multiply-adds | multiply_adds | so many
src/stillhouse/estimate/tasks.py: multiply_adds | so many | task: {length} | visit | visit (of a sequence)
src/stillhouse/estimate/text.py: stands
src/stillhouse/export/check.py: likeliest | with what is right
src/stillhouse/export/exported.py: likeliest
src/stillhouse/export/llama_cpp.py: likeliest | stands | the processor
src/stillhouse/export/to_ctranslate2.py: the processor
src/stillhouse/export/to_gguf.py: is told
src/stillhouse/finetuning/data.py: made anew | so many | stands
src/stillhouse/finetuning/examples.py: data.transfer | hard_target | num_transfer | stands | transfer
src/stillhouse/finetuning/finetune.py: A less B | Work | data.transfer | floor (of speed) | going on | multiply-adds | num_transfer | stands | task: {length} | texts without answers | transfer | visit | visit (of a sequence)
src/stillhouse/finetuning/fitting.py: vector_cosine | vector_mse
src/stillhouse/finetuning/objective.py: hard_target | right answer | vector_cosine | vector_mse
src/stillhouse/finetuning/settings.py: data.transfer | hard_target | num_transfer | texts without answers | transfer | vector_cosine | vector_mse | with what is right
src/stillhouse/inference/engine/batcher.py: begun | is none of | likeliest | makes room at once | numbers that are none
src/stillhouse/inference/engine/kv_cache.py: the processor
src/stillhouse/inference/engine/sampling.py: likeliest
src/stillhouse/inference/engine/token_healing.py: going on
src/stillhouse/inference/generation.py: likeliest
src/stillhouse/inference/loaded.py: is none of | less precision | likeliest | so many | the processor | what it says of
src/stillhouse/inference/predict.py: what it says of
src/stillhouse/inference/quantization.py: less precision | so many | the processor
src/stillhouse/inference/quantization_check.py: less precision | stands | what it says of
src/stillhouse/inference/reference.py: begun | held against | is told | likeliest
src/stillhouse/kernels.py: so many | the processor
src/stillhouse/machine.py: begun | so many | stands | the processor
src/stillhouse/models/folder_check.py: is told
src/stillhouse/objectives/relation.py: stands
src/stillhouse/pipeline.py: going on | made anew | masking.draw
src/stillhouse/recipe_file.py: hard_target | longest_answer | num_transfer | question_length | vector_cosine | vector_mse
src/stillhouse/recipes/distilbert-base-cased-distilled-squad.yaml: hard_target | longest_answer | question_length | task: {length}
src/stillhouse/recipes/distilbert-base-cased.yaml: masking.draw
src/stillhouse/recipes/distilbert-base-german-cased.yaml: masking.draw
src/stillhouse/recipes/distilbert-base-multilingual-cased.yaml: masking.draw
src/stillhouse/recipes/distilbert-base-uncased.yaml: masking.draw
src/stillhouse/recipes/distilroberta-base.yaml: masking.draw
src/stillhouse/recipes/minilm-3layer-embeddings.yaml: hard_target | task: {length} | vector_cosine | vectors (of text)
src/stillhouse/recipes/minilm-ner.yaml: hard_target | task: {length}
src/stillhouse/recipes/minilm-squad.yaml: hard_target | task: {length}
src/stillhouse/recipes/minilm-sst2.yaml: data.transfer | hard_target | num_transfer | task: {length}
src/stillhouse/report/cards.py: data.transfer | num_transfer | transfer
src/stillhouse/report/tasks.py: hard_target
src/stillhouse/report/templates/task_card.md: task: {length}
src/stillhouse/runs/atomic.py: going on | stands
src/stillhouse/runs/manifest.py: stands
src/stillhouse/runs/seeds.py: going on | made anew
src/stillhouse/samples/teacher/README.md: made anew
src/stillhouse/serving/app.py: serving/bodies.py
src/stillhouse/serving/bodies.py: stands
src/stillhouse/serving/catalog.py: Hosted | serving/bodies.py
src/stillhouse/serving/classic_api.py: Hosted | Served | going on | serving/bodies.py | unless_gone
src/stillhouse/serving/depends.py: Hosted | Served | serving/bodies.py | unless_gone
src/stillhouse/serving/editor_api.py: Asked | Hosted | Served | going on | likeliest | serving/bodies.py | stands
src/stillhouse/serving/guards.py: serving/bodies.py
src/stillhouse/serving/hosted.py: Hosted | Told | serving/bodies.py
src/stillhouse/serving/hub_api.py: Hosted | Served | likeliest | serving/bodies.py | unless_gone
src/stillhouse/serving/limits.py: likeliest | so many
src/stillhouse/serving/metrics.py: serving/bodies.py
src/stillhouse/serving/openai_api.py: Hosted | Served | begun | likeliest | serving/bodies.py | unless_gone
src/stillhouse/serving/openai_schemas.py: likeliest | serving/bodies.py
src/stillhouse/serving/problems.py: stands
src/stillhouse/serving/ray_app.py: so many
src/stillhouse/serving/server.py: Hosted | is told | serving/bodies.py
src/stillhouse/serving/streaming.py: serving/bodies.py | unless_gone
src/stillhouse/serving/system_api.py: serving/bodies.py
src/stillhouse/serving/web/compare.js: going on
src/stillhouse/serving/web/heat.js: going on | likeliest | what it says of
src/stillhouse/serving/web/index.html: going on | stands
src/stillhouse/serving/web/main.js: stands
src/stillhouse/serving/web/manuscript.js: is none of | so many | stands
src/stillhouse/serving/web/story.js: going on
src/stillhouse/serving/web/tasks.js: stands
src/stillhouse/student/initialize.py: goes on from a model | going on
src/stillhouse/tasks/continuation.py: going on | held against | stands
src/stillhouse/tasks/encoded.py: right answer | what it says of | with what is right
src/stillhouse/tasks/labels.py: is none of
src/stillhouse/tasks/last_word.py: likeliest | stands
src/stillhouse/tasks/metrics.py: apart by commas | made anew | with what is right
src/stillhouse/tasks/question_answering.py: Found | passage (of a question) | stands
src/stillhouse/tasks/sentence_transformers.py: stands | task: {length}
src/stillhouse/tasks/settings.py: apart by commas | likeliest | longest_answer | passage (of a question) | question_length | so many | stands
src/stillhouse/tasks/squad.py: apart by commas | passage (of a question) | stands | with what is right
src/stillhouse/tasks/squad_windows.py: Found | longest_answer | passage (of a question) | question_length
src/stillhouse/tasks/tagged.py: apart by commas | is none of | stands
src/stillhouse/tasks/task.py: question_length | what it says of
src/stillhouse/tasks/text_classification.py: likeliest
src/stillhouse/tasks/texts.py: right answer | stands
src/stillhouse/tasks/token_classification.py: apart by commas | begun | is none of
src/stillhouse/teacher/train.py: Work | floor (of speed) | going on
src/stillhouse/tokens/batches.py: so many | stands | visit (of a sequence)
src/stillhouse/tokens/engines.py: made anew | so many
src/stillhouse/tokens/masking.py: made anew | stands | visit (of a sequence)
src/stillhouse/tokens/packing.py: made anew | visit (of a sequence)
src/stillhouse/tokens/settings.py: stands
src/stillhouse/tokens/shards.py: lead | made anew | stands
src/stillhouse/tokens/source.py: visit (of a sequence)
src/stillhouse/tokens/teacher_cache.py: going on | made anew | visit (of a sequence)
src/stillhouse/tokens/teacher_rows.py: what it says of
src/stillhouse/tokens/tokenizer.py: stands
src/stillhouse/training/__init__.py: floor (of speed)
src/stillhouse/training/allocator.py: made anew | the processor
src/stillhouse/training/checkpoint.py: begun | going on
src/stillhouse/training/device.py: the processor
src/stillhouse/training/engine.py: going on | lesson | whole_model
src/stillhouse/training/floor.py: Floor | Work | floor (of speed) | floor_share | floor_tokens_per_second | multiply-adds | multiply_adds
src/stillhouse/training/job.py: Floor | floor (of speed) | so many
src/stillhouse/training/metrics.py: stands
src/stillhouse/training/parallel.py: going on | lesson | made anew
src/stillhouse/training/parts.py: so many | the processor
src/stillhouse/training/progress.py: floor_share
src/stillhouse/training/ranks.py: going on | so many
src/stillhouse/training/signals.py: going on
src/stillhouse/training/step.py: _refused | floor_share | going on | lesson
src/stillhouse/training/work.py: Work | held against | multiply-adds | multiply_adds | so many
src/stillhouse/verification/layouts.py: stands
src/stillhouse/verification/scratch.py: so many
src/stillhouse/verification/split.py: Floor | Work | floor (of speed)
src/stillhouse/verification/tasks.py: hard_target | held against | vector_cosine | vector_mse
tests/benchmarks/test_gpu.py: Floor | Work | floor (of speed) | floor_share | multiply-adds | the processor
tests/benchmarks/test_time_to_quality.py: going on | stands
tests/corpus/test_prepare.py: held_out | lead | made anew
tests/corpus/test_splits.py: held_out | stands
tests/data/test_documents.py: going on | stands | what it says of
tests/data/test_html.py: stands
tests/data/test_hub.py: stands
tests/data/test_records.py: stands
tests/estimate/test_language.py: multiply-adds | multiply_adds
tests/estimate/test_tasks.py: data.transfer | question_length
tests/export/test_llama_cpp.py: likeliest
tests/families/test_qkv_hook.py: made anew
tests/faults/disk.py: stands
tests/faults/files.py: made anew | stands | takes something damaged for something whole
tests/faults/training.py: floor (of speed) | going on | so many
tests/finetuning/test_task_objective.py: hard_target | lesson | question_length | right answer | vector_cosine | vector_mse
tests/fixed_speeds.py: multiply-adds
tests/gpu/test_on_device.py: but for rounding
tests/inference/test_arguments.py: likeliest
tests/inference/test_batching.py: likeliest
tests/inference/test_gate.py: going on | less precision | stands
tests/inference/test_loaded.py: likeliest | stands
tests/inference/test_precision.py: less precision
tests/inference/test_predict.py: question_length | stands
tests/inference/test_resumed_words.py: going on
tests/model_shapes.py: so many
tests/models/test_folder_check.py: stands
tests/models/test_special_ids.py: likeliest
tests/models/test_weight_files.py: is told
tests/objectives/test_language_model.py: stands | what it says of
tests/page/test_marks.py: going on
tests/page/test_page_trouble.py: begun | stands
tests/page/test_views.py: begun | going on
tests/pipeline/processes.py: so many | stands
tests/pipeline/test_bad_input.py: going on
tests/pipeline/test_bad_task_data.py: is none of | question_length | stands | task: {length}
tests/pipeline/test_check_and_run.py: task: {length}
tests/pipeline/test_finetuning.py: hard_target | num_transfer | texts without answers | transfer
tests/pipeline/test_pipeline.py: floor_share | floor_tokens_per_second
tests/pipeline/test_ranks.py: going on | masking.draw
tests/pipeline/test_resume.py: going on
tests/pipeline/test_teacher_cache_run.py: but for rounding | going on | made anew
tests/pipeline/test_tuned_teacher.py: goes on from a model | going on
tests/pipeline/tiny_run.py: stands
tests/report/test_task_card.py: hard_target
tests/runs/test_manifest.py: stands | what it says of
tests/runs/test_seeds.py: aside
tests/serving/conftest.py: stands
tests/serving/test_editor.py: stands
tests/serving/test_hub.py: likeliest
tests/serving/test_lm_eval.py: likeliest
tests/serving/test_neutral.py: serving/bodies.py
tests/serving/test_odd_requests.py: is none of | is told
tests/serving/test_openai.py: likeliest
tests/serving/test_trouble.py: is told
tests/student/test_plan.py: stands
tests/tasks/test_asking.py: question_length | stands
tests/tasks/test_continuation.py: so many
tests/tasks/test_labels.py: is none of | is told
tests/tasks/test_question_answering.py: longest_answer | question_length
tests/tasks/test_resampling.py: with what is right
tests/tasks/test_squad.py: stands
tests/tasks/test_squad_no_answer.py: Found
tests/tasks/test_squad_windows.py: apart by commas | is none of | longest_answer | passage (of a question) | question_length
tests/tasks/test_tagged.py: is none of
tests/tasks/test_task_batch.py: stands
tests/tasks/test_task_metrics.py: held against
tests/tasks/test_text_tasks.py: likeliest
tests/tasks/test_token_classification.py: is none of | stands
tests/test_check.py: task: {length}
tests/test_machine.py: stands
tests/test_recipe_file.py: stands
tests/test_rules.py: stands | the processor
tests/tokens/test_batches.py: stands | visit | visit (of a sequence)
tests/tokens/test_engines.py: so many | stands
tests/tokens/test_held_out.py: held_out
tests/tokens/test_masking.py: is none of | stands | visit | visit (of a sequence)
tests/tokens/test_packing.py: stands | visit (of a sequence)
tests/tokens/test_shards.py: lead | made anew
tests/training/jobs.py: Floor | Work | floor (of speed)
tests/training/test_allocator.py: made anew
tests/training/test_checkpoint.py: begun | is told
tests/training/test_device.py: is told
tests/training/test_divergence.py: floor (of speed)
tests/training/test_engine.py: floor (of speed) | floor_share | going on
tests/training/test_floor.py: Floor | Work | floor (of speed) | floor_share | floor_tokens_per_second | going on | multiply-adds | multiply_adds
tests/training/test_metrics.py: stands
tests/training/test_work.py: Work | multiply_adds
tests/verification/test_tasks.py: hard_target | vector_cosine
"""
REMAINING = {
    path: set(words.split(" | "))
    for path, words in (line.split(": ", 1) for line in LEFT.strip().splitlines())
}
SOURCES = list(sources())
FOLDERS = ("training", "tasks", "inference", "serving", "finetuning", "tokens", "runs", "student")


@pytest.mark.parametrize("source", SOURCES, ids=[source.path for source in SOURCES])
def test_a_file_uses_no_old_word(source):
    """Exactly the words that are listed as remaining: a line of a finished file must be removed.
    `python docs/words.py PATH` shows each place."""
    assert old_words(source) == REMAINING.get(source.path, set())


def test_remaining_files_exist():
    assert set(REMAINING) <= {source.path for source in SOURCES} | {"--help"}


@pytest.mark.parametrize("word", WORDS, ids=[word.key for word in WORDS])
def test_each_old_word_is_found_where_it_is_planted(word):
    paths = ["README.md", *(f"src/stillhouse/{folder}/module.py" for folder in FOLDERS)]
    path = next(path for path in paths if re.search(word.within, path) and _reads(word, path))
    for planted in word.planted:
        assert word.search(Source(path, planted)), planted


def _reads(word, path: str) -> bool:
    """Names are found in Python's code, phrases in any text."""
    return word in PHRASES or path.endswith(".py")


def test_a_phrase_is_found_across_lines_of_a_docstring_a_comment_and_a_message():
    (word,) = (word for word in PHRASES if word.key == "held against")
    for text in (
        '"""What is held\n    against."""',
        "# is held\n# against",
        '("is held "\n "against")',
        "// is held\n  // against",
    ):
        assert word.search(Source("src/module.py", text)), text


def test_a_name_is_found_in_code_and_in_backticks_only():
    (word,) = (word for word in NAMES if word.key == "Encoded")
    assert word.search(Source("src/module.py", "x = Encoded(1)"))
    assert word.search(Source("docs/page.md", "an `Encoded` example"))
    assert not word.search(Source("src/module.py", '"""Encoded text."""  # Encoded'))


def test_help_uses_no_old_word():
    group = typer.main.get_command(app)
    lines = []
    for name, command in group.commands.items():  # pyright: ignore[reportAttributeAccessIssue]
        context = typer.Context(command, info_name=name)
        records = [each.get_help_record(context) for each in command.get_params(context)]
        lines += [command.help or "", *(" ".join(record) for record in records if record)]
    assert old_words(Source("docs/cli.md", "\n".join(lines))) == REMAINING.get("--help", set())


def test_the_glossary_lists_every_word():
    page = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    assert glossary_table(NAMES) in page
    assert glossary_table(PHRASES) in page
