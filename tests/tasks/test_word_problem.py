"""Math word problems: prompts, generated solutions and scores of lm-eval."""

import importlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from stillhouse.errors import DataError, RecipeError
from stillhouse.inference.load import load_for_task
from stillhouse.inference.task_model import TaskModel
from stillhouse.models.hub import resolve_folder
from stillhouse.recipe_file import parse_task
from stillhouse.tasks.registry import make_task
from stillhouse.tasks.word_problem import flexible_answer, strict_answer

SHOT = {"question": "Two and two?", "answer": "It is 2+2 = <<2+2=4>>4.\n#### 4"}
ROWS = [
    SHOT,
    {"question": "Ann has 3 stills. Each is 1,000 dollars. How much is it?",
     "answer": "That is 3*1000 = <<3*1000=3000>>3,000 dollars.\n#### 3,000"},
    {"question": "It was 5 degrees and fell by 9. How cold is it?", "answer": "5-9 = -4\n#### -4"},
    {"question": "Eve reads 10 pages. How many?", "answer": "10 it is\n#### 10"},
]  # fmt: skip
# What models write after the prompt, and both answers that it holds.
TEXTS = [
    (" 3*1000 = 3000\n#### 3000", "3000", "3000"),
    (" So she pays $3,000.", None, "3000"),
    ("\n#### $3,000", None, "3000"),
    (" 3,000.\n#### 3,000. That is 3 stills.", "3000", "3"),
    (" #### 5\n#### 3000", "5", "3000"),
    (" #### -4.", "-4", "-4"),
    (" It is -4.", None, "-4"),
    (" #### 3000.00", "3000.00", "3000.00"),
    (" nobody knows ...", None, ".."),
    (" nobody knows", None, None),
    ("", None, None),
]
LM_EVAL = "pip install 'stillhouse[lm-eval]'"
SMALL = ("shots=2", "max_new_tokens=24", "max_length=480")


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def data(tmp_path):
    return write_rows(tmp_path / "rows.jsonl", ROWS)


def task_of(*settings):
    return make_task(parse_task("gsm8k", list(settings)))


def test_solved_problems_precede_each_prompt(data, tokenizer_of):
    """With a blank line between; they are not scored."""
    task, tokenizer = task_of("shots=1"), tokenizer_of("gpt2")
    examples = task.read(data)
    assert [each.text for each in examples] == [row["question"] for row in ROWS[1:]]
    ((sequence,), *_) = task.encode(examples, tokenizer)
    shown = "Question: Two and two?\nAnswer: It is 2+2 = <<2+2=4>>4.\n#### 4\n\n"
    asked = f"Question: {ROWS[1]['question']}\nAnswer:"
    assert sequence.input_ids.tolist() == tokenizer(shown + asked)["input_ids"]


def test_prepared_columns_give_the_same_problems(tmp_path, data):
    prepared = [
        {"context": row["question"], "chain_of_thought": steps, "answer": number}
        for row in ROWS
        for steps, _, number in [row["answer"].partition("\n#### ")]
    ]
    path = write_rows(tmp_path / "prepared.jsonl", prepared)
    assert task_of("shots=1").read(path) == task_of("shots=1").read(data)


@pytest.mark.parametrize(("text", "strict", "flexible"), TEXTS)
def test_answers_are_numbers_of_the_text(text, strict, flexible):
    """Strictly the first after ####, else the last of all; without commas, dollars, and the point
    at the end."""
    assert strict_answer(text) == strict
    assert flexible_answer(text) == flexible


def test_long_prompts_lose_their_beginning(data, tokenizer_of):
    """The problem itself stays."""
    task, tokenizer = task_of("shots=3", "max_new_tokens=8", "max_length=20"), tokenizer_of("gpt2")
    (example,) = task.read(data)
    ((sequence,),) = task.encode([example], tokenizer)
    assert sequence.is_truncated
    asked = tokenizer(f"Question: {example.text}\nAnswer:")["input_ids"]
    assert sequence.input_ids.tolist() == asked[-12:]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "x", "answer": "4"}, "row 5: .* a solution that ends with #### and a number"),
        ({"question": "x", "answer": 4}, "row 5: the column 'answer' must hold a text"),
        ({"question": "x"}, "row 5: .* it holds None"),
    ],
)
def test_rows_without_a_solution_are_refused(tmp_path, row, message):
    path = write_rows(tmp_path / "rows.jsonl", [*ROWS, row])
    with pytest.raises(DataError, match=message):
        task_of("shots=1").read(path)


def test_unlabeled_problems_have_solved_ones_before_them(tmp_path):
    """What is shown has a solution; what is predicted needs none."""
    path = write_rows(tmp_path / "rows.jsonl", [SHOT, {"question": "Three?"}])
    (found,) = task_of("shots=1").read(path, labeled=False)
    assert (found.text, found.target) == ("Three?", None)
    with pytest.raises(DataError, match=r"row 2: .* a solution that ends with"):
        task_of("shots=2").read(path, labeled=False)
    with pytest.raises(DataError, match="has 2 rows, of which 5 are shown"):
        task_of().read(write_rows(path, ROWS[:2]))


def test_a_prompt_without_room_is_refused(data, tokenizer_of):
    task = task_of("shots=1", "max_new_tokens=256", "max_length=256")
    with pytest.raises(RecipeError, match="leaves no room for the prompt"):
        task.encode(task.read(data), tokenizer_of("gpt2"))


def harness(model: Any, tmp_path: Path, rows, shots, max_new_tokens) -> tuple[list[str], Any]:
    """The texts and the scores of a model by the harness's own definition of gsm8k; the first rows
    are shown."""
    own: Any = importlib.import_module("lm_eval")
    definition = Path(own.__file__).parent / "tasks" / "gsm8k" / "gsm8k.yaml"
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    shown = write_rows(tmp_path / "shown.jsonl", rows[:shots])
    asked = write_rows(tmp_path / "asked.jsonl", rows[shots:])
    (tasks / "here.yaml").write_text(
        f"include: {definition}\ntask: here\ntag: []\ndataset_path: json\ndataset_name: null\n"
        f"dataset_kwargs: {{data_files: {{train: {shown}, test: {asked}}}}}\n"
        f"num_fewshot: {shots}\nfewshot_config: {{sampler: first_n}}\n"
        f"generation_kwargs: {{until: ['Question:', '</s>', '<|im_end|>'], do_sample: false, "
        f"temperature: 0.0, max_gen_toks: {max_new_tokens}}}\n"
    )
    manager = importlib.import_module("lm_eval.tasks").TaskManager(
        include_path=str(tasks), include_defaults=False
    )
    found = own.simple_evaluate(
        model, tasks=["here"], task_manager=manager, log_samples=True, bootstrap_iters=0
    )
    samples = {each["doc_id"]: each["resps"][0][0] for each in found["samples"]["here"]}
    return [samples[number] for number in sorted(samples)], found["results"]["here"]


def assert_equal_scores(metrics, theirs):
    for ours, name in (("strict_match", "strict-match"), ("flexible_match", "flexible-extract")):
        assert metrics[ours].value == theirs[f"exact_match,{name}"]


def assert_equals_harness(loaded: TaskModel, rows, path, tmp_path):
    """The same texts, and the same scores of them."""
    recipe, examples = loaded.task.recipe, loaded.task.read(path)
    wrapped = importlib.import_module("lm_eval.models.huggingface").HFLM(
        pretrained=loaded.model, tokenizer=loaded.tokenizer, backend="causal", batch_size=4
    )
    texts, scores = harness(wrapped, tmp_path, rows, recipe.shots, recipe.max_new_tokens)
    found = loaded.predictions(examples)
    assert found == texts
    assert_equal_scores(loaded.task.metric_samples(found, examples), scores)


@pytest.fixture
def harness_here(tmp_path, monkeypatch):
    pytest.importorskip("lm_eval", reason=LM_EVAL)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.mark.filterwarnings("default")  # of libraries that the harness loads
@pytest.mark.e2e
@pytest.mark.usefixtures("harness_here")
def test_answers_score_as_in_the_harness(tmp_path):
    """Each text as the solution of a problem whose answer is 3,000, and of one with -4."""
    rows = [SHOT, *(row for row in ROWS[1:3] for _ in TEXTS)]
    texts = [text for text, _, _ in TEXTS] * 2
    base = importlib.import_module("lm_eval.api.model").LM

    class Fixed(base):
        def generate_until(self, requests, disable_tqdm=False):
            return [texts[each.doc_id] for each in requests]

        loglikelihood = loglikelihood_rolling = None

    _, scores = harness(Fixed(), tmp_path, rows, 1, 24)
    task = task_of("shots=1")
    examples = task.read(write_rows(tmp_path / "rows.jsonl", rows))
    metrics = task.metric_samples(texts, examples)
    assert_equal_scores(metrics, scores)
    assert 0 < metrics["strict_match"].value < metrics["flexible_match"].value < 1


@pytest.mark.filterwarnings("default")  # of libraries that the harness loads
@pytest.mark.e2e
@pytest.mark.usefixtures("harness_here")
def test_generated_solutions_equal_the_harness(tmp_path, data):
    loaded = load_for_task(resolve_folder("sample", offline=True), parse_task("gsm8k", list(SMALL)))
    assert_equals_harness(loaded, ROWS, data, tmp_path)


@pytest.mark.filterwarnings("default")  # of libraries that the harness loads
@pytest.mark.slow
@pytest.mark.usefixtures("harness_here")
def test_a_real_model_solves_as_in_the_harness(shared_data, smollm2_folder, tmp_path):
    """Two problems of GSM8K after three, in the columns of the hub."""
    lines = (shared_data / "zero_shot" / "gsm8k.jsonl").read_text().splitlines()[:5]
    rows = [
        {
            "question": row["context"],
            "answer": f"{row['chain_of_thought']}\n#### {row['answer']}",
        }
        for row in map(json.loads, lines)
    ]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    recipe = parse_task("gsm8k", ["shots=3", "max_new_tokens=96"])
    loaded = load_for_task(smollm2_folder, recipe)
    assert_equals_harness(loaded, rows, path, tmp_path)
