"""Multiple choice: prompts and log-likelihoods of lm-eval, each choice as if it were alone."""

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from stillhouse.errors import DataError, ModelError
from stillhouse.families.registry import CAUSAL
from stillhouse.inference.load import load_for_task
from stillhouse.recipe_file import parse_task
from stillhouse.tasks import token_tree
from stillhouse.tasks.multiple_choice import MultipleChoice, encode_pair
from stillhouse.tasks.registry import make_task
from stillhouse.tasks.settings import ChoiceColumns, MultipleChoiceTask
from stillhouse.tasks.token_tree import TokenTree, log_likelihoods

CHOICES = {
    "choices": {"text": ["a stone", "the distiller", "wind"], "label": ["A", "B", "C"]},
    "answerKey": "B",
}
# Rows as the hub has them, for each format: the rows of two questions, both contexts and what is
# scored after them for the first, and its right choice.
ROWS = {
    "arc": (
        [{"question": "Which turns the still?", **CHOICES}, {"question": "Who sleeps?", **CHOICES}],
        ["Question: Which turns the still?\nAnswer:"] * 3,
        [" a stone", " the distiller", " wind"],
        1,
    ),
    "piqa": (
        [
            {"goal": "Dry a still", "sol1": "Use warm fire", "sol2": "Use wet fire", "label": 0},
            {"goal": "Fill it", "sol1": "drop by drop", "sol2": "drop by stone", "label": 1},
        ],
        ["Question: Dry a still\nAnswer:"] * 2,
        [" Use warm fire", " Use wet fire"],
        0,
    ),
    "openbookqa": (
        [
            {"question_stem": "Predators eat", **CHOICES},
            {"question_stem": "A fire is", **CHOICES},
        ],
        ["Predators eat"] * 3,
        [" a stone", " the distiller", " wind"],
        1,
    ),
    "hellaswag": (
        [
            {
                "ctx": "A man fills a still. [header] Now he",
                "activity_label": "Still life",
                "ctx_a": "A man fills a still. [header] Now",
                "ctx_b": "he",
                "endings": ["waits by  it. [step] It is warm.", "leaves."],
                "label": "0",
            },
            {
                "ctx": "The wind comes. the sea",
                "activity_label": "Wind",
                "ctx_a": "The wind comes.",
                "ctx_b": "the sea",
                "endings": ["rises.", "reads [title] files."],
                "label": "1",
            },
        ],
        ["Still life: A man fills a still. Now He"] * 2,
        [" waits by it. It is warm.", " leaves."],
        0,
    ),
    "winogrande": (
        [
            {"sentence": "Ann asked Eve and _ left.", "option1": "Ann", "option2": "Eve",
             "answer": "2"},
            {"sentence": "The fire warmed the stone as _ was hot .", "option1": "the fire",
             "option2": "the stone", "answer": "1"},
        ],
        ["Ann asked Eve and Ann", "Ann asked Eve and Eve"],
        [" left."] * 2,
        1,
    ),
    "copa": (
        [
            {"premise": "The man waited.", "question": "cause", "choice1": "The wind came.",
             "choice2": "He left the house.", "label": 0},
            {"premise": "The fire was warm.", "question": "effect", "choice1": "It rained.",
             "choice2": "The stone was dry.", "label": 1},
        ],
        ["The man waited because"] * 2,
        ["  the wind came.", "  he left the house."],
        0,
    ),
}  # fmt: skip
# The harness's own definitions, which the test puts on local files.
HARNESS = {
    "arc": "arc/arc_easy.yaml",
    "piqa": "piqa/piqa.yaml",
    "openbookqa": "openbookqa/openbookqa.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "winogrande": "winogrande/default.yaml",
    "copa": "super_glue/copa/default.yaml",
}
REAL_ROWS = 20


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", ROWS)
def test_prompts_are_those_of_the_data_set(tmp_path, name):
    """From the columns that the data set has on the hub."""
    rows, contexts, continuations, target = ROWS[name]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    found = make_task(parse_task(name)).read(path)
    assert len(found) == 2
    assert list(found[0].contexts) == contexts
    assert list(found[0].continuations) == continuations
    assert found[0].target == target
    unlabeled = [{key: row[key] for key in row if key not in ("label", "answerKey", "answer")}
                 for row in rows]  # fmt: skip
    path = write_rows(tmp_path / "unlabeled.jsonl", unlabeled)
    (first, _) = make_task(parse_task(name)).read(path, labeled=False)
    assert (first.contexts, first.target) == (found[0].contexts, None)


@pytest.mark.parametrize(
    ("name", "row", "context", "continuation"),
    [
        ("arc", {"query": "Question: Why?"}, "Question: Why?\nAnswer:", " two"),
        ("piqa", {"query": "Question: Do it.\n"}, "Question: Do it.\nAnswer:", " two"),
        ("openbookqa", {"query": "Predators eat"}, "Predators eat", " two"),
        ("hellaswag", {"query": "Still: He"}, "Still: He", " two"),
        ("copa", {"query": "It rained, because"}, "It rained, because", "  two"),
        ("plain", {"query": "One and"}, "One and", " two"),
    ],
)
def test_prepared_columns_give_the_same_prompts(tmp_path, name, row, context, continuation):
    """`query`, `choices`, `gold`, with the start of the prompt in them."""
    path = write_rows(tmp_path / "rows.jsonl", [{**row, "choices": ["one", "two"], "gold": 1}])
    (found,) = MultipleChoice(MultipleChoiceTask(format=name)).read(path)
    assert (found.contexts[1], found.continuations[1], found.target) == (context, continuation, 1)


def test_prepared_winogrande_scores_one_ending_after_each_option(tmp_path):
    row = {"context_options": ["So Ann", "So Eve"], "continuation": "left.", "gold": 0}
    (found,) = make_task(parse_task("winogrande")).read(write_rows(tmp_path / "rows.jsonl", [row]))
    assert found.contexts == ("So Ann", "So Eve")
    assert found.continuations == (" left.", " left.")


def test_other_columns_are_named_in_the_recipe(tmp_path):
    columns = {"question": "q", "choices": ["a", "b"], "label": "right"}
    path = write_rows(tmp_path / "rows.jsonl", [{"q": "One", "a": "x", "b": "y", "right": 1}])
    (found,) = MultipleChoice(MultipleChoiceTask(columns=ChoiceColumns(**columns))).read(path)
    assert (found.contexts, found.continuations, found.target) == (("One",) * 2, (" x", " y"), 1)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"query": "x", "options": ["a", "b"]}, "expected are question, choices, answerKey or"),
        ({"query": "x", "choices": ["a"], "gold": 0}, "row 1: .* two or more choices"),
        ({"query": "x", "choices": ["a", " "], "gold": 0}, "row 1: .* two or more choices"),
        ({"query": "x", "choices": ["a", "b"], "gold": 2}, "row 1: .* one of 0, 1; it holds 2"),
        ({"query": "x", "choices": ["a", "b"], "gold": True}, "one of 0, 1; it holds True"),
        ({"query": "x", "choices": ["a", "b"]}, "has no column 'gold'"),
    ],
)
def test_unusable_rows_are_refused(tmp_path, row, message):
    """With the row, the column and what it should hold."""
    with pytest.raises(DataError, match=message):
        make_task(parse_task("arc")).read(write_rows(tmp_path / "rows.jsonl", [row]))


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        (
            "hellaswag",
            {"query": "He", "choices": ["[step]", "leaves"], "gold": 1},
            "row 1: the column 'choices' must hold a text outside of brackets",
        ),
        (
            "winogrande",
            {"sentence": "So came _", "option1": "Ann", "option2": "Eve", "answer": "1"},
            "row 1: the column 'sentence' must hold a text that continues after the options",
        ),
    ],
)
def test_a_choice_without_a_text_to_score_is_refused(tmp_path, name, row, message):
    with pytest.raises(DataError, match=message):
        make_task(parse_task(name)).read(write_rows(tmp_path / "rows.jsonl", [row]))


def test_a_blank_row_is_refused_where_each_row_has_a_prediction(tmp_path):
    """Among examples with their right choice it is left out."""
    row = json.dumps({"question": "One", "choices": ["a", "b"], "label": 1})
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{row}\n\n{row}\n")
    task = make_task(parse_task("multiple_choice"))
    assert len(task.read(path)) == 2
    with pytest.raises(DataError, match="row 2: the column 'choices' must hold two or more"):
        task.read(path, labeled=False)


def test_a_tree_shares_beginnings_and_keeps_each_text():
    """Also of texts of which one begins another, and of equal ones."""
    texts = [[1, 2, 3, 4], [1, 2, 3], [1, 2, 5, 6, 7], [1, 2, 3, 4]]
    tree = TokenTree.of(texts, [2, 1, 3, 2])
    assert tree.ids.tolist() == [1, 2, 3, 5, 6]
    assert tree.depths.tolist() == [0, 1, 2, 2, 3]
    visible = tree.visible()
    for text, ids in enumerate(texts):
        own = tree.texts == text
        node = tree.nodes[own][-1]
        assert tree.ids[visible[node]].tolist() == ids[:-1]
        assert tree.tokens[own].tolist() == ids[-own.sum() :]


def alone(model, tokenizer, context, continuation):
    """One text through transformers, in float64 from its logits on."""
    ids, number = encode_pair(context, continuation, tokenizer)
    with torch.no_grad():
        shares = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(float(shares[at - 1, ids[at]]) for at in range(len(ids) - number, len(ids)))


# mistral has a window of 7 tokens, gemma2 a softcap on the logits and here a window of 64.
FAST = ("gpt2", "mistral", "gemma2")
OTHERS = (pytest.param(name, marks=pytest.mark.e2e) for name in CAUSAL if name not in FAST)


@pytest.mark.parametrize("family", [*FAST, *OTHERS])
def test_log_likelihoods_equal_each_choice_alone(task_folder, tmp_path, family):
    """Of choices that share tokens, of options in the context, and where a window of attention
    forbids to share; with a softcap on the logits."""
    long = {"sliding_window": 64} if family == "gemma2" else {}
    folder = task_folder(family, "CausalLM", **long)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    num_trees = set()
    for name in ("piqa", "winogrande"):
        loaded = load_for_task(folder, parse_task(name))
        examples = loaded.task.read(write_rows(tmp_path / f"{name}.jsonl", ROWS[name][0]))
        num_trees |= {len(trees) for trees in loaded.task.encode(examples, loaded.tokenizer)}
        for example, found in zip(examples, loaded.predictions(examples), strict=True):
            pairs = zip(example.contexts, example.continuations, strict=True)
            expected = [alone(model, loaded.tokenizer, *pair) for pair in pairs]
            assert found == pytest.approx(expected, abs=1e-4)
    window = getattr(model.config, "sliding_window", None)
    assert num_trees == ({1} if window is None or window == 64 else {2})


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_parts_of_rows_and_vocabulary_change_nothing(tiny_model, monkeypatch, family):
    """The same sums in parts that divide neither."""
    model, trees = tiny_model(family), some_trees()
    whole = torch.cat(log_likelihoods(model, trees))
    monkeypatch.setattr(token_tree, "LOGITS_AT_ONCE", {"cpu": (3, 7)})
    torch.testing.assert_close(torch.cat(log_likelihoods(model, trees)), whole, rtol=0, atol=1e-5)


def test_no_text_is_more_than_certain_in_bfloat16(tiny_model):
    """A logit and its row's normalizer are rounded alike."""
    model = tiny_model("gpt2")
    with torch.no_grad():
        model.get_output_embeddings().weight *= 300
    sums = torch.cat(log_likelihoods(model.bfloat16(), some_trees()))
    assert bool((sums <= 0).all())
    assert bool((sums > -1).any())


def some_trees() -> list[TokenTree]:
    """Questions with every token as a choice."""
    return [
        TokenTree.of([[*start, token] for token in range(60)], [1] * 60)
        for start in ([5, 7, 9], [11, 6], [30, 31, 40, 8], [12])
    ]


def test_tokens_are_split_as_in_the_harness(tokenizer_of):
    """Spaces at a context's end belong to the continuation; without a context the start of text
    precedes it."""
    tokenizer = tokenizer_of("gpt2")
    whole, number = encode_pair("the still ", "is warm", tokenizer)
    assert whole == tokenizer("the still is warm")["input_ids"]
    assert whole[:-number] == tokenizer("the still")["input_ids"]
    whole, number = encode_pair("  ", "warm", tokenizer)
    assert whole == [tokenizer.bos_token_id, *tokenizer("  warm")["input_ids"]]
    assert number == len(whole) - 1
    with pytest.raises(DataError, match="adds no token"):
        encode_pair("the", "", tokenizer)


def test_accuracy_per_character_divides_by_the_length(task_folder, tmp_path):
    """The most likely choice, and the most likely per character; neither is known where a number is
    not finite."""
    row = {"query": "x", "choices": ["a", "a long one"], "gold": 1}
    loaded = load_for_task(task_folder("gpt2", "CausalLM"), MultipleChoiceTask())
    examples = loaded.task.read(write_rows(tmp_path / "rows.jsonl", [row]))
    found = loaded.task.metric_samples([torch.tensor([-4.0, -9.0]).numpy()], examples)
    assert {name: each.value for name, each in found.items()} == {
        "accuracy": 0.0,
        "accuracy_norm": 1.0,
    }
    examples = loaded.task.read(write_rows(tmp_path / "rows.jsonl", [{**row, "gold": 0}]))
    found = loaded.task.metric_samples([torch.tensor([torch.nan, -9.0]).numpy()], examples)
    assert math.isnan(found["accuracy"].value)
    assert math.isnan(found["accuracy_norm"].value)
    assert loaded.task.chance(examples) == 0.5


def test_long_questions_lose_their_beginning(task_folder, tmp_path):
    """They are counted, and their choices are still scored."""
    loaded = load_for_task(task_folder("gpt2", "CausalLM"), MultipleChoiceTask(max_length=8))
    row = {"query": "the still " * 9, "choices": ["warm", "cold"], "gold": 0}
    examples = loaded.task.read(write_rows(tmp_path / "rows.jsonl", [row]))
    (found,), num_cut = loaded.predictions_and_cuts(examples)
    assert num_cut == 1
    assert len(found) == 2
    assert (found < 0).all()


def test_masked_models_are_refused(task_folder):
    with pytest.raises(ModelError, match="multiple_choice is for causal language models"):
        load_for_task(task_folder("bert", "Body"), MultipleChoiceTask())


def harness_samples(folder, name, data, tmp_path):
    """The harness's log-likelihoods of each choice of each row, and its scores, by its own
    definition of the task."""
    harness: Any = importlib.import_module("lm_eval")
    own = Path(harness.__file__).parent / "tasks" / HARNESS[name]
    tasks = tmp_path / f"tasks-{name}"
    tasks.mkdir()
    (tasks / "here.yaml").write_text(
        f"include: {own}\ntask: here\ntag: []\ndataset_path: json\ndataset_name: null\n"
        f"dataset_kwargs: {{data_files: {{validation: {data}}}}}\n"
        "training_split: null\nvalidation_split: validation\ntest_split: null\n"
    )
    model = load_for_task(folder, MultipleChoiceTask())
    wrapped = importlib.import_module("lm_eval.models.huggingface").HFLM(
        pretrained=model.model, tokenizer=model.tokenizer, backend="causal", batch_size=8
    )
    manager = importlib.import_module("lm_eval.tasks").TaskManager(
        include_path=str(tasks), include_defaults=False
    )
    found = harness.simple_evaluate(
        wrapped, tasks=["here"], task_manager=manager, log_samples=True, bootstrap_iters=0
    )
    samples = sorted(found["samples"]["here"], key=lambda each: each["doc_id"])
    rows = [[float(response[0][0]) for response in each["resps"]] for each in samples]
    return rows, found["results"]["here"]


def assert_equals_harness(folder, name, path, tmp_path):
    """The same log-likelihood of each choice, and equal scores."""
    loaded = load_for_task(folder, parse_task(name))
    examples = loaded.task.read(path)
    found = loaded.predictions(examples)
    expected, scores = harness_samples(folder, name, path, tmp_path)
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-4)
    measured = loaded.task.metric_samples(found, examples)
    assert measured["accuracy"].value == scores["acc,none"]
    if "acc_norm,none" in scores:
        assert measured["accuracy_norm"].value == scores["acc_norm,none"]


@pytest.mark.filterwarnings("default")  # of libraries that the harness loads
@pytest.mark.e2e
@pytest.mark.parametrize("name", HARNESS)
def test_choices_score_as_in_the_harness(task_folder, tmp_path, monkeypatch, name):
    """By the harness's own definition of each task, on the same rows."""
    pytest.importorskip("lm_eval", reason="pip install 'stillhouse[lm-eval]'")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    path = write_rows(tmp_path / "rows.jsonl", ROWS[name][0])
    assert_equals_harness(task_folder("gpt2", "CausalLM"), name, path, tmp_path)


@pytest.mark.filterwarnings("default")  # of libraries that the harness loads
@pytest.mark.slow
@pytest.mark.parametrize("name", ["arc", "piqa"])
def test_a_real_model_scores_as_in_the_harness(
    shared_data, smollm2_folder, tmp_path, monkeypatch, name
):
    """The first rows of ARC-easy and PIQA, in the columns of the hub, which the harness reads."""
    pytest.importorskip("lm_eval", reason="pip install 'stillhouse[lm-eval]'")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    file = shared_data / "zero_shot" / {"arc": "arc_easy.jsonl", "piqa": "piqa.jsonl"}[name]
    rows = [json.loads(line) for line in file.read_text().splitlines()[:REAL_ROWS]]
    for row in rows:
        asked = row.pop("query").removeprefix("Question: ").strip()
        if name == "arc":
            letters = "ABCDE"[: len(row["choices"])]
            row["choices"] = {"text": row["choices"], "label": list(letters)}
            row |= {"question": asked, "answerKey": letters[row.pop("gold")]}
        else:
            first, second = row.pop("choices")
            row |= {"goal": asked, "sol1": first, "sol2": second, "label": row.pop("gold")}
    path = write_rows(tmp_path / "rows.jsonl", rows)
    assert_equals_harness(smollm2_folder, name, path, tmp_path)
