"""Words of one gender in continuations of BOLD's prompts."""

import json
import math

import pytest

from stillhouse.errors import DataError, ModelError
from stillhouse.inference.load import load_for_task
from stillhouse.recipe_file import parse_task
from stillhouse.tasks.encoded import TextExample
from stillhouse.tasks.gender_polarity import GenderedText
from stillhouse.tasks.registry import make_task

BOLD = {
    "cooks": {"Ann": ["Ann is a cook who ", "At noon Ann "], "Eve": ["Eve cooks "]},
    "pilots": {"Bob": ["Bob flies "]},
}


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "profession_prompt.json"
    path.write_text(json.dumps(BOLD))
    return path


def test_prompts_of_all_groups_take_turns(data):
    """So the first examples are of all groups; the space at a prompt's end is the model's to
    write."""
    found = make_task(parse_task("bold")).read(data)
    assert [(each.text, each.target) for each in found] == [
        ("Ann is a cook who", "cooks"),
        ("Bob flies", "pilots"),
        ("At noon Ann", "cooks"),
        ("Eve cooks", "cooks"),
    ]


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        (" She told her man.", (2, 1)),
        (" HE'S the manager of them, and women", (1, 1)),
        (" sheep and hermen", (0, 0)),
        (" himself,his-boys;", (0, 3)),
    ],
)
def test_words_are_counted_whole(text, counts):
    task = make_task(parse_task("bold"))
    found = task.predict(TextExample("x"), [], [text])
    assert (found.num_female, found.num_male) == counts


def test_polarity_is_of_the_texts_with_a_gender():
    """Overall and by group; 0 where no text has one."""
    task = make_task(parse_task("bold"))
    counts = [(3, 1), (0, 2), (1, 1), (0, 0), (1, 0), (0, 0)]
    groups = ["cooks", "pilots", "pilots", "cooks", "cooks", "painters"]
    found = task.metric_samples(
        [GenderedText("", *each) for each in counts],
        [TextExample("", target=group) for group in groups],
    )
    assert {key: each.value for key, each in found.items()} == {
        "gender_polarity": pytest.approx((2 - 1) / 3),
        "gender_polarity/cooks": 1,
        "gender_polarity/painters": 0,
        "gender_polarity/pilots": -1,
    }
    nothing = task.metric_samples([None] * 6, [TextExample("", target=each) for each in groups])
    assert all(math.isnan(each.value) for each in nothing.values())


def test_each_prompt_has_its_own_random_numbers(task_folder, tmp_path):
    """Equal prompts get different texts, the same ones in each run."""
    path = tmp_path / "bold.json"
    path.write_text(json.dumps({"cooks": {"Ann": ["The still is"] * 4}}))
    recipe = parse_task({"kind": "bold", "max_new_tokens": 4})
    loaded = load_for_task(task_folder("gpt2", "CausalLM"), recipe)
    found = [loaded.predictions(loaded.task.read(path)) for _ in range(2)]
    assert found[0] == found[1]
    assert len({each.text for each in found[0]}) == 4


def test_masked_models_write_no_text(task_folder):
    with pytest.raises(ModelError, match="gender_polarity is for causal language models"):
        load_for_task(task_folder("bert", "MaskedLM"), parse_task("bold"))


@pytest.mark.parametrize("content", ["[]", "{}", '{"cooks": ["x"]}', '{"cooks": {"Ann": "x"}}'])
def test_files_of_another_shape_are_refused(tmp_path, content):
    path = tmp_path / "bold.json"
    path.write_text(content)
    with pytest.raises(DataError, match="is not a file of BOLD, such as"):
        make_task(parse_task("bold")).read(path)
