"""Datasets of the hub as a task's data: fetched once, classes by name, then read without a
network."""

import pytest
from datasets import ClassLabel, Dataset, Features, Sequence, Value

from stillhouse.data.rows import fetch, path_of
from stillhouse.errors import DataError, NetworkError
from stillhouse.recipe_file import parse_task
from stillhouse.tasks.registry import make_task
from stillhouse.training.progress import QuietReporter


@pytest.fixture
def source(tmp_path):
    """source(rows, features): a dataset with a validation split, as the hub has them."""

    def make(rows, **features):
        folder = tmp_path / "dataset"
        folder.mkdir()
        dataset = Dataset.from_list(rows, features=Features(features))
        dataset.to_parquet(folder / "validation-00000-of-00001.parquet")
        return f"hf://{folder}#validation"

    return make


def fetched(source, folder, *, offline=False):
    fetch(source, folder, "finetuning.t.data.train", QuietReporter().say, offline=offline)
    return path_of(source, folder)


def test_a_hub_dataset_is_fetched_once_with_class_names(source, tmp_path):
    """Later runs read the run's own file, also offline."""
    texts = [{"sentence": "a warm fire", "label": 1}, {"sentence": "a cold wind", "label": 0}]
    name = source(texts, sentence=Value("string"), label=ClassLabel(names=["negative", "positive"]))
    with pytest.raises(NetworkError, match=r"finetuning\.t\.data\.train 'hf://.*--offline forbids"):
        fetched(name, tmp_path / "data", offline=True)
    path = fetched(name, tmp_path / "data")
    made = path.stat().st_ino
    assert fetched(name, tmp_path / "data", offline=True).stat().st_ino == made
    task = make_task(parse_task("sst2", ["labels=[negative, positive]"]))
    found = task.read(path)
    assert [(each.text, each.target) for each in found] == [("a warm fire", 1), ("a cold wind", 0)]


def test_questions_and_entities_have_the_columns_of_their_datasets(source, tmp_path):
    """As in rajpurkar/squad and in sets of tagged sentences."""
    answers = {"text": ["sea", "the sea"], "answer_start": [16, 12]}
    row = {
        "id": "q", "question": "Where?", "context": "A house by  the sea.", "answers": answers,
        "tokens": ["Islay", "is", "old"], "ner_tags": [1, 0, 0],
    }  # fmt: skip
    strings = Sequence(Value("string"))
    name = source(
        [row],
        id=Value("string"),
        question=Value("string"),
        context=Value("string"),
        answers={"text": strings, "answer_start": Sequence(Value("int32"))},
        tokens=strings,
        ner_tags=Sequence(ClassLabel(names=["O", "B-LOC", "I-LOC"])),
    )
    path = fetched(name, tmp_path / "data")
    (question,) = make_task(parse_task("squad", [])).read(path)
    assert [(each.text, each.start) for each in question.answers] == [("sea", 16), ("the sea", 12)]
    (words,) = make_task(parse_task("conll", []), ["O", "B-LOC", "I-LOC"]).read(path)
    assert (words.text, words.tags) == ("Islay is old", ("B-LOC", "O", "O"))


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        ("squad", '{"id": "q", "question": "?", "context": "sea", "answers": {"text": ["sea"],'
         ' "answer_start": []}}', "row 1: `text` has 1 answers, `answer_start` 0"),
        ("squad", '{"id": "q", "question": "?", "context": "sea", "answers": {"text": ["sky"],'
         ' "answer_start": [0]}}', "row 1, question q: the answer 'sky' is not at"),
        ("squad", '{"question": "?"}', "row 1: 'answers' is missing"),
        ("conll", '{"tokens": ["a", "b"], "ner_tags": ["O"]}', "row 1 has 2 tokens and 1 tags"),
        ("conll", '{"tokens": ["a"], "ner_tags": ["LOC"]}', r"'LOC' is no tag \(O, or one of B-,"),
        ("conll", '{"tokens": ["a"], "ner_tags": [0]}', "row 1: the tags are numbers, such as 0,"),
        ("conll", '{"tokens": ["a"]}', "row 1 has no column 'ner_tags'"),
    ],
)  # fmt: skip
def test_malformed_rows_are_named(tmp_path, task, row, message):
    """With their file and number."""
    path = tmp_path / "rows.jsonl"
    path.write_text(row + "\n")
    with pytest.raises(DataError, match=message) as error:
        make_task(parse_task(task, []), ["O", "B-LOC", "I-LOC"]).read(path)
    assert "rows.jsonl" in str(error.value)


def test_similar_dataset_names_have_separate_files(tmp_path):
    """Of a dataset and of a configuration, say."""
    names = ("hf://a/b#train", "hf://a/b:train", "hf://a-b#train", "hf://a/b#train ")
    assert len({path_of(name, tmp_path) for name in names}) == len(names)
    assert path_of("hf/train.tsv", tmp_path).parts == ("hf", "train.tsv")


def test_messages_name_the_dataset_and_not_its_copy(source, tmp_path):
    """A person knows the row of what they named; blank rows of it, too."""
    rows = [{"sentence": "a", "label": 0}, {"sentence": "", "label": 7}]
    name = source(rows, sentence=Value("string"), label=Value("int64"))
    path = fetched(name, tmp_path / "data")
    task = make_task(parse_task("sst2", []))
    with pytest.raises(DataError, match="row 2: the column 'label' must hold one of") as error:
        task.read(path)
    assert str(error.value).startswith(f"{name} row 2")
    assert [each.text for each in task.read(path, labeled=False)] == ["a", ""]


def test_a_foreign_manifest_beside_a_file_is_ignored(tmp_path):
    """Such as one of another program."""
    (tmp_path / "a.jsonl").write_text('{"sentence": 1}\n')
    (tmp_path / "a.manifest.json").write_text("{}")
    with pytest.raises(DataError, match=r"a\.jsonl row 1: the column 'sentence' must hold a text"):
        make_task(parse_task("sst2", [])).read(tmp_path / "a.jsonl", labeled=False)
