"""The recipe: what a user writes is understood as written, or refused by name."""

import re

import pytest
import yaml

from stillhouse.errors import RecipeError
from stillhouse.objectives.settings import HardLossRecipe
from stillhouse.recipe import Recipe
from stillhouse.recipe_file import dump_recipe, load_recipe, parse_recipe, recipe_names, recipe_text
from stillhouse.section import recipe_part
from stillhouse.teacher.settings import TeacherRecipe
from stillhouse.tokens.settings import TrainedTokenizer
from stillhouse.training.settings import result_settings

LEAST = "teacher: some/model\ncorpus: {source: sample}\n"
TRAINED = """
teacher: {family: gpt2, num_layers: 2, hidden_size: 32, num_heads: 4, training: {epochs: 2}}
corpus: {source: [a.txt, b.txt]}
tokens: {tokenizer: {train: byte_bpe, vocabulary_size: 400}, sequence_length: 64}
seed: [0, 1]
"""


def parse(extra: str = "", *overrides: str) -> Recipe:
    return parse_recipe(LEAST + extra, overrides)


def refused(extra: str = "", *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        parse(extra, *overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize("name", recipe_names())
def test_every_packaged_recipe_is_valid(name):
    """By name, and it says the same once written out in full."""
    loaded, recipe = load_recipe(name)
    assert loaded == name
    assert parse_recipe(dump_recipe(recipe)) == recipe


def test_classic_is_2019():
    """The weights, rows, temperature and dropout of DistilBERT."""
    distillation = parse("distillation: {preset: classic}").distillation
    terms = distillation.losses.active()
    assert {name: (term.weight, term.rows) for name, term in terms.items()} == {
        "soft_target": (5.0, "all"),
        "language_modeling": (2.0, "predicted"),
        "hidden_cosine": (1.0, "all"),
    }
    assert (distillation.temperature, distillation.dropout) == (2.0, True)


def test_the_least_recipe_is_the_fast_one():
    """A teacher and a text: everything else has a default."""
    recipe = parse()
    distillation = recipe.distillation
    assert distillation.preset == "fast"
    weights = {name: term.weight for name, term in distillation.losses.active().items()}
    assert weights == {"soft_target": 5.0, "language_modeling": 1.0, "hidden_cosine": 20.0}
    assert {term.rows for term in distillation.losses.active().values()} == {"predicted"}
    assert (distillation.temperature, distillation.dropout) == (1.0, False)
    assert distillation.optimizer.learning_rate == 5e-4
    assert distillation.optimizer.betas == (0.9, 0.98)
    assert recipe.seeds == [0]
    assert recipe.text.sources == ["sample"]


@pytest.mark.parametrize("text", [LEAST, TRAINED])
def test_a_recipe_written_out_reads_back_as_itself(text):
    """dump_recipe loses nothing and invents nothing, and its output is stable."""
    recipe = parse_recipe(text)
    written = dump_recipe(recipe)
    assert parse_recipe(written) == recipe
    assert dump_recipe(parse_recipe(written)) == written
    assert set(yaml.safe_load(written)) == set(Recipe.model_fields)


def test_a_trained_teacher_and_tokenizer_are_sections():
    """A mapping in place of a name is a teacher, or a tokenizer, made here."""
    recipe = parse_recipe(TRAINED)
    assert isinstance(recipe.teacher, TeacherRecipe)
    assert recipe.teacher.training.epochs == 2
    assert recipe.tokens.tokenizer == TrainedTokenizer(train="byte_bpe", vocabulary_size=400)
    assert recipe.seeds == [0, 1]


def test_numbers_are_numbers():
    """3e-4 is text to YAML and a number to us; so is a quoted one."""
    extra = 'distillation: {optimizer: {learning_rate: 3e-4, eps: "1e-8"}, max_tokens: 1_000}'
    distillation = parse(extra).distillation
    assert distillation.optimizer.learning_rate == 3e-4
    assert distillation.optimizer.eps == 1e-8
    assert distillation.max_tokens == 1000


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("studnet: {}", "studnet is not a key of a recipe. Did you mean 'student'?"),
        ("tokens: {sequence_lenght: 8}", "tokens.sequence_lenght .* 'sequence_length'"),
        ("tokens: {masking: {fractoin: 0.1}}", "tokens.masking.fractoin .* 'fraction'"),
        (
            "tokens: {tokenizer: {train: byte_bpe, vocab_size: 400}}",
            ".vocab_size .* 'vocabulary_size'",
        ),
        ("distillation: {loses: {}}", "distillation.loses .* 'losses'"),
        (
            "distillation: {losses: {soft_targets: {weight: 1}}}",
            "losses.soft_targets .* 'soft_target'",
        ),
        ("distillation: {losses: {jsd: {weight: 1, bta: 0.1}}}", "losses.jsd.bta .* 'beta'"),
        (
            "distillation: {optimizer: {lerning_rate: 1}}",
            "optimizer.lerning_rate .* 'learning_rate'",
        ),
        ("student: {num_layers: 6}", "student.num_layers is not a key"),
        ("report: {qqqq: 6}", "report.qqqq is not .* Known here: model_name, license"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_name(extra, message):
    """At every level, with its whole path."""
    assert re.search(message, refused(extra))


def test_an_unknown_key_of_a_trained_teacher_is_refused():
    """The path says teacher.training, not how the parser got there."""
    text = TRAINED.replace("epochs: 2", "epoch: 2")
    with pytest.raises(RecipeError, match=r"teacher\.training\.epoch is not .*'epochs'"):
        parse_recipe(text)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("seed: abc", "seed: .*got 'abc'"),
        ("seed: []", "seed: .*at least 1"),
        ("seed: [1, 1]", "name each seed once"),
        (
            "tokens: {sequence_length: long}",
            "tokens.sequence_length: should be a whole number, got 'long'",
        ),
        ("tokens: {sequence_length: 4}", "tokens.sequence_length: .*8, got 4"),
        ("tokens: {language_modeling: prefix}", "'causal' or 'masked', got 'prefix'"),
        (
            "tokens: {masking: {mask_fraction: 0.9}}",
            "mask_fraction .* is 1.1; the three fractions must sum to 1",
        ),
        (
            "tokens: {language_modeling: masked, masking: {sampling: per_batch}}\n"
            "distillation: {teacher_outputs: {cache: sampled}}",
            "needs the same mask in every epoch, but tokens.masking.sampling is per_batch",
        ),
        ("student: {layer_map: []}", "student.layer_map: .*at least 1"),
        ("student: {layer_map: [0, x]}", r"student.layer_map(\.1)?: .*'x'"),
        ("student: {layer_map: 0}", "student.layer_map: .*greater than 0, got 0"),
        ("student: [1]", "student: .*got .1."),
        (
            "student: {budget: {parameters: 9M}, layer_map: 3, hidden_size: 9}",
            "student: budget chooses layer_map and hidden_size by a race; leave out",
        ),
        (
            "student: {budget: {parameters: 9M}, weights: random}",
            "weights is random, but a budget's candidates are cut from the teacher",
        ),
        ("student: {budget: {}}", "student.budget: give the size once"),
        ("student: {budget: {parameters: 9M, memory: 9MB}}", "budget: give the size once"),
        (
            "student: {budget: {parameters: 9 m}}",
            "budget.parameters: '9 m' is not a size; give a whole number, or .* 90M",
        ),
        ("student: {budget: {memory: 0.1kB, race: {finalists: 0}}}", "race.finalists: .*got 0"),
        ("student: {budget: {parameters: true}}", "parameters is true, which is not a number"),
        ("distillation: {temperature: 0}", "distillation.temperature: .*greater than 0"),
        ("distillation: {temperature: .inf}", "distillation.temperature: .*finite"),
        ("distillation: {temperature: .nan}", "distillation.temperature: "),
        ("distillation: {losses: {jsd: {weight: .inf}}}", "losses.jsd.weight: .*finite"),
        ("distillation: {losses: {jsd: {weight: -1}}}", "losses.jsd.weight: .*got -1"),
        ("distillation: {losses: {jsd: {weight: 1, beta: 1}}}", "losses.jsd.beta: .*less than 1"),
        ("distillation: {losses: {jsd: {}}}", "losses.jsd.weight is missing"),
        ("distillation: {losses: {jsd: {weight: 0}}}", "nothing to learn from"),
        ("distillation: {losses: {}}", "nothing to learn from"),
        (
            "distillation: {losses: {language_modeling: {weight: 1, rows: all}}}",
            "rows is not a key",
        ),
        ("distillation: {optimizer: {betas: [0.9]}}", r"optimizer.betas.1 is missing"),
        ("distillation: {micro_batch_tokens: -1}", "micro_batch_tokens: .*got -1"),
        ("distillation: {checkpoint: {keep_last: 1}}", "keep_last: .*2, got 1"),
        ("distillation: {preset: quick}", "preset: .*'fast' or 'classic', got 'quick'"),
        ("1: 2", "1: keys should be strings"),
    ],
)
def test_a_wrong_value_is_refused_with_its_path_and_what_was_found(extra, message):
    """Type, range, choice: lines that a person can read, with nothing of the parser's insides."""
    said = refused(extra)
    assert re.search(message, said), said
    for inside in ("constrained", "literal[", "list[", ".int:", ".str:", "pydantic", "https://"):
        assert inside not in said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("corpus: {source: sample}", "teacher is missing"),
        ("teacher: a", "neither a corpus to distill on nor a task"),
        ("teacher: a\ncorpus: {source: []}", "corpus: source names no text"),
        ("teacher: a\ncorpus: {source: 5}", "corpus.source: .*got 5"),
        ("teacher: 5\ncorpus: {source: a}", "teacher: .*got 5"),
        (
            TRAINED.replace("hidden_size: 32", "hidden_size: 33"),
            "33 is not a multiple of num_heads 4",
        ),
        (TRAINED.replace("family: gpt2", "family: bert"), "bert, which does not do causal"),
        (
            TRAINED.replace("tokenizer: {train: byte_bpe, vocabulary_size: 400}, ", ""),
            "has no token",
        ),
        (f"{TRAINED}\nstudent: {{vocabulary: 300}}", "give the teacher a tokenizer of this size"),
        (
            "teacher: a\nstudent: {vocabulary: 300}\nfinetuning: {t: {task: {kind: regression}, "
            "data: {train: a, validation: b}, models: {m: {start: teacher}}}}",
            r"student.vocabulary is chosen on the corpus",
        ),
        ("", "a recipe is a mapping of keys to values, got nothing: the file is empty"),
        ("[1, 2]", "got list"),
        ("just words", "got str"),
    ],
)
def test_parts_that_do_not_agree_are_refused(text, message):
    """What is missing, or cannot be together."""
    with pytest.raises(RecipeError, match=message):
        parse_recipe(text)


def test_all_mistakes_are_said_at_once():
    """Two mistakes are two lines, after the recipe's name."""
    with pytest.raises(RecipeError) as caught:
        parse_recipe(LEAST + "sede: 1\ntokens: {sequence_length: 1}", where="mine.yaml")
    first, *lines = str(caught.value).splitlines()
    assert first.startswith("mine.yaml:")
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("seed: 0\nseed: 1", r"line 4, column 1 .*'seed' appears twice"),
        ("tokens: {sequence_length: 8, sequence_length: 9}", "'sequence_length' appears twice"),
        ("report: &x {}\nstudent: *x", r"line 4, column 10.*aliases \(\*name\) are not allowed"),
        ("tokens: {a: b: c}", "line 3, column 14 is not YAML"),
        ("tokens\n  a: 1", r"line 4, column 4 .*; often a missing colon .* or the one before\.$"),
        ("tokens: [", "is not YAML"),
        ("seed: !!python/object/apply:os.getpid []", "is not YAML.*tag"),
        ("? [a]\n: 1", "line 3.*is not YAML"),
        ("? {a: b}\n: 1", "line 3.*is not YAML"),
        ("\0", "is not YAML"),
    ],
)
def test_yaml_that_is_broken_or_too_clever_is_refused(extra, message):
    """With line and column; nothing is run and nothing expands."""
    assert re.search(message, refused(extra))


def test_yaml_nested_without_end_is_refused():
    """A thousand brackets are an error, not a crash."""
    assert "YAML" in refused("tokens: " + "[" * 5000)


@pytest.mark.parametrize(
    ("override", "path", "expected"),
    [
        ("seed=3", "seed", 3),
        ("seed=[0, 1]", "seed", [0, 1]),
        ("tokens.sequence_length=128", "tokens.sequence_length", 128),
        ("distillation.optimizer.learning_rate=3e-4", "distillation.optimizer.learning_rate", 3e-4),
        ("corpus.source=hf://owner/name:part", "corpus.source", "hf://owner/name:part"),
        ("student.layer_map=[0, 11]", "student.layer_map", [0, 11]),
        ("evaluation.speed=false", "evaluation.speed", False),
        ("distillation.max_tokens=null", "distillation.max_tokens", None),
        ("report.model_name=a=b", "report.model_name", "a=b"),
        ("corpus={source: other}", "corpus.source", "other"),
        ("distillation.losses.jsd.weight=1", "distillation.losses.jsd.weight", 1.0),
    ],
)
def test_a_setting_can_be_overridden(override, path, expected):
    """--set a.b=c reaches any depth, and its value is YAML."""
    value = parse("", override)
    for key in path.split("."):
        value = getattr(value, key)
    assert value == expected


def test_later_overrides_win():
    """In the order given."""
    assert parse("seed: 1", "seed=2", "seed=3").seed == 3


def test_an_override_leaves_its_neighbours_alone():
    """One key of a section that the recipe wrote changes, no other."""
    extra = "distillation: {losses: {jsd: {weight: 1}, logit_mse: {weight: 2}}}"
    losses = parse(extra, "distillation.losses.jsd.weight=4").distillation.losses
    weights = {name: term.weight for name, term in losses.active().items()}
    assert weights == {"jsd": 4.0, "logit_mse": 2.0}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "takes KEY.KEY=VALUE.*got 'seed'"),
        ("=1", "takes KEY.KEY=VALUE"),
        ("tokens.=1", "takes KEY.KEY=VALUE"),
        ("teacher.num_layers=2", "teacher is a value here, not a section"),
        ("student.layer_map=[0,1", "--set student.layer_map.*is not YAML"),
        ("distilation.epochs=1", "distilation is not a key.*'distillation'"),
        ("tokens.sequence_length=", "tokens.sequence_length: .*got None"),
    ],
)
def test_an_override_that_cannot_be_right_is_refused(override, message):
    """Bad form, bad path, bad value: the error names the override or its key."""
    assert re.search(message, refused("", override))


def test_a_recipe_is_a_name_or_a_path(tmp_path):
    """A file's stem is the run's name; a missing one is answered with the nearest packaged name."""
    path = tmp_path / "mine.yaml"
    path.write_text(LEAST)
    assert load_recipe(str(path)) == ("mine", parse())
    assert recipe_text("quickstart")[0] == "quickstart"
    with pytest.raises(RecipeError, match=r"no recipe 'quikstart'.*Did you mean 'quickstart'"):
        load_recipe("quikstart")
    path.write_bytes(b"teacher: \xff\xfe")
    with pytest.raises(RecipeError, match=r"not UTF-8 text .* byte 9"):
        load_recipe(str(path))


def test_a_recipe_cannot_be_changed():
    """Frozen: what was validated is what runs."""
    recipe = parse()
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 4  # pyright: ignore[reportAttributeAccessIssue]


def test_language_modeling_counts_predicted_rows_only():
    """It has no other rows to count, so a recipe cannot ask for them."""
    assert HardLossRecipe(weight=1).rows == "predicted"


def test_how_often_a_training_is_committed_does_not_shape_it():
    """Another checkpoint interval resumes the same training; another learning rate does not."""
    one = parse().distillation
    often = parse("distillation: {checkpoint: {every_steps: 5}}").distillation
    other = parse("distillation: {optimizer: {learning_rate: 1}}").distillation
    assert result_settings(one) == result_settings(often) != result_settings(other)
    assert recipe_part(one) != recipe_part(often)
    assert recipe_part("sample") == "sample"


@pytest.mark.parametrize(
    ("budget", "key", "expected"),
    [
        ("{parameters: 90M}", "parameters", 90_000_000),
        ("{parameters: 1.5 B}", "parameters", 1_500_000_000),
        ("{parameters: 12_500}", "parameters", 12_500),
        ("{memory: 200MB}", "memory", 200_000_000),
        ("{memory: 1.1GB}", "memory", 1_100_000_000),
    ],
)
def test_sizes_of_a_budget_are_decimal(budget, key, expected):
    """As hubs count parameters, and disks bytes."""
    recipe = parse_recipe(f"teacher: t\ncorpus: {{source: sample}}\nstudent: {{budget: {budget}}}")
    assert recipe.student.budget is not None
    assert getattr(recipe.student.budget, key) == expected
