"""The objective of a task: the library's own losses, nothing to learn from a copy, the same when
split."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from stillhouse.errors import RecipeError
from stillhouse.finetuning.data import TaskSource, subsample
from stillhouse.finetuning.objective import TaskObjective, check_terms
from stillhouse.finetuning.settings import TaskLossesRecipe
from stillhouse.models.task_models import load_task_model
from stillhouse.objectives.projection import add_projection
from stillhouse.objectives.settings import RelationRecipe
from stillhouse.tasks.encoded import EncodedExample, TextExample, inputs_of
from stillhouse.tasks.registry import make_task
from stillhouse.tasks.settings import (
    ClassificationTask,
    EmbeddingsTask,
    QuestionAnsweringTask,
    RegressionTask,
    TokenClassificationTask,
)
from stillhouse.tasks.squad import Answer, Question
from stillhouse.tasks.token_classification import words_of
from stillhouse.tokens.batches import IGNORED
from stillhouse.tokens.tokenizer import load_tokenizer

TEXTS = (
    "The still turns what is thin",
    "Who?",
    "nobody asked, but everyone",
    "drop by drop, and then once more.",
    "the sea",
    "A cold wind",
)
TAGS = ("B-PER", "O", "I-PER", "O", "B-PER", "O", "O", "O")
TASKS = {
    "classification": (
        ClassificationTask(labels=["no", "yes", "maybe"], max_length=48),
        [TextExample(text, target=place % 3) for place, text in enumerate(TEXTS)],
    ),
    "multi_label": (
        ClassificationTask(labels=["no", "yes", "maybe"], multi_label=True, max_length=48),
        [TextExample(text, target=(place % 3,)) for place, text in enumerate(TEXTS)],
    ),
    "regression": (
        RegressionTask(max_length=48),
        [TextExample(text, target=place / 2) for place, text in enumerate(TEXTS)],
    ),
    "token_classification": (
        TokenClassificationTask(max_length=48),
        [words_of(text.split(), TAGS[: len(text.split())]) for text in TEXTS],
    ),
    "question_answering": (
        QuestionAnsweringTask(max_length=48, doc_stride=8, max_question_length=12),
        [Question(str(n), "Who?", text, (Answer(text[:3], 0),)) for n, text in enumerate(TEXTS)],
    ),
    "embeddings": (
        EmbeddingsTask(max_length=48, group=2),
        [TextExample(text, target=0.0) for text in TEXTS],
    ),
}
RELATION = RelationRecipe(weight=1.0)
TERMS = {
    "embeddings": TaskLossesRecipe(
        hard_label=0.0,
        soft_target=0.0,
        embedding_cosine=1.0,
        embedding_mse=1.0,
        similarity=1.0,
        relation=RELATION,
    )
}
TAUGHT = TaskLossesRecipe(hard_label=0.0, soft_target=1.0, relation=RELATION)


@pytest.fixture
def make_case(task_folder):
    """make_case(name, ...): a task, a model with its head, and the examples as one batch."""

    def make(name, family="bert", *, unit_size=1, twice=False, unlabeled=(), only=range(6)):
        """`unlabeled` are the indices of examples without labels."""
        recipe, examples = TASKS[name]
        examples = [
            without_answer(examples[place]) if place in unlabeled else examples[place]
            for place in only
        ]
        task = make_task(recipe, ["O", "B-PER", "I-PER"])
        folder = task_folder(family, task.head, **task.model_settings)
        model, tokenizer = load_task_model(folder, task.head, {}), load_tokenizer(folder)
        sequences = [each for own in task.encode(examples, tokenizer) for each in own]
        source = TaskSource(
            sequences, pad_token_id=0, per_token=task.per_token, group=unit_size, twice=twice
        )
        units = np.arange(source.num_sequences)
        return task, model, source.batch(units, np.zeros_like(units), 0)

    return make


def without_answer(example):
    if isinstance(example, Question):
        return replace(example, answers=())
    return replace(example, **{"target" if isinstance(example, TextExample) else "tags": None})


def changed(model):
    """The same model with other weights."""
    other = type(model)(model.config).eval()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(
                0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
            )
    return other


@pytest.mark.parametrize("family", ["bert", "gpt2"])
@pytest.mark.parametrize(
    "name", ["classification", "multi_label", "regression", "token_classification"]
)
@pytest.mark.law("formula")
def test_hard_label_loss_equals_transformers(make_case, name, family):
    """Its mean times the number of targets."""
    task, model, batch = make_case(name, family)
    objective = TaskObjective(task, TaskLossesRecipe())
    assert objective.weights == {"hard_label": 1.0}
    total, values = objective(model, batch, {"hard_label": 1.0})
    labels = (
        batch.targets if name in ("multi_label", "token_classification") else batch.targets[:, 0]
    )
    if name == "token_classification":
        labels = torch.where(batch.target_mask, labels, IGNORED)
    expected = model(**inputs_of(model, batch), labels=labels).loss * batch.num_rows("predicted")
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert float(values["hard_label"]) == pytest.approx(expected.item(), rel=1e-5)


def test_question_answering_loss_is_over_start_and_end(make_case):
    """By the formula in float64, over the context and the first token only."""
    task, model, batch = make_case("question_answering")
    total, _ = TaskObjective(task, TaskLossesRecipe())(model, batch, {"hard_label": 1.0})
    with torch.no_grad():
        found = model(**inputs_of(model, batch))
    expected = 0.0
    for row in range(len(batch.input_ids)):
        for side, logits in enumerate((found.start_logits, found.end_logits)):
            allowed = logits[row].double().numpy()[batch.output_mask[row].numpy()]
            right = float(logits[row, batch.targets[row, side]])
            expected += np.log(np.exp(allowed).sum()) - right
    assert total.item() == pytest.approx(expected, rel=1e-5)
    assert batch.num_rows("predicted") == 2 * len(batch.input_ids)


@pytest.mark.parametrize("name", [name for name in TASKS if name != "embeddings"])
def test_unlabeled_examples_count_only_in_teacher_terms(make_case, name):
    """The loss on labels equals that without those examples; teacher terms count all examples,
    whichever answers are known."""
    task, model, whole = make_case(name)
    some, fewer = make_case(name, unlabeled=(1, 4))[2], make_case(name, only=(0, 2, 3, 5))[2]
    objective = TaskObjective(task, TaskLossesRecipe(), teacher=changed(model), temperature=2.0)
    terms = {"hard_label": 1.0, "soft_target": 1.0}
    ours, right, taught = (objective(model, each, terms)[1] for each in (some, fewer, whole))
    assert ours["hard_label"].item() == pytest.approx(right["hard_label"].item(), rel=1e-4)
    assert ours["soft_target"].item() == pytest.approx(taught["soft_target"].item(), rel=1e-4)
    kinds = objective.rows
    assert some.num_rows(kinds["hard_label"]) == fewer.num_rows(kinds["hard_label"])
    assert some.num_rows(kinds["soft_target"]) == whole.num_rows(kinds["soft_target"])
    assert fewer.num_rows(kinds["hard_label"]) < whole.num_rows(kinds["hard_label"])


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.law("copy")
def test_teacher_terms_are_zero_for_a_copy(make_case, name):
    """Every term of a teacher is zero for a student that equals it, and not for another."""
    task, model, batch = make_case(name, unit_size=2 if name == "embeddings" else 1)
    losses = TERMS.get(name, TAUGHT)
    objective = TaskObjective(task, losses, teacher=model, temperature=2.0)
    coefficients = dict.fromkeys(objective.weights, 1.0)
    _, values = objective(model, batch, coefficients)
    assert {name: float(value) for name, value in values.items()} == pytest.approx(
        dict.fromkeys(values, 0.0), abs=2e-4
    )
    _, values = objective(changed(model), batch, coefficients)
    assert all(float(value) > 1e-3 for value in values.values())


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.law("accumulation")
def test_micro_batches_add_up_and_blank_ones_add_nothing(make_case, name):
    """Each term over the whole batch, and over its parts with a blank one among them."""
    task, model, batch = make_case(name, unit_size=2 if name == "embeddings" else 1)
    losses = TERMS.get(name, TAUGHT.model_copy(update={"hard_label": 1.0}))
    objective = TaskObjective(task, losses, teacher=changed(model), temperature=2.0)
    coefficients = dict.fromkeys(objective.weights, 1.0)
    whole, _ = objective(model, batch, coefficients)
    parts = list(batch.split(1 if name == "embeddings" else 2))
    found = [objective(model, part, coefficients)[0] for part in [*parts, parts[0].blank()]]
    assert len(parts) > 1
    assert found[-1].item() == pytest.approx(0.0, abs=1e-6)
    assert sum(each.item() for each in found) == pytest.approx(whole.item(), rel=1e-5)


def test_contrastive_pairs_are_dropout_copies(make_case):
    """Twins without dropout are nearest, so the loss is that of one text among two, by formula."""
    task, model, _ = make_case("embeddings")
    batch = make_case("embeddings", unit_size=2, twice=True)[2]
    objective = TaskObjective(task, TaskLossesRecipe())
    assert objective.weights == {"hard_label": 1.0}
    total, _ = objective(model, batch, {"hard_label": 1.0})
    vectors = task.outputs(model, batch).detach().double().numpy()
    expected = 0.0
    for place, vector in enumerate(vectors):
        unit = range(place // 4 * 4, place // 4 * 4 + 4)
        others = [other for other in unit if other % 2 != place % 2]  # the other side
        cosines = np.array([vector @ vectors[other] for other in others]) / 0.05
        expected += np.log(np.exp(cosines).sum()) - 1 / 0.05
    assert total.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_relation_term_equals_last_layer_reference(make_case, family):
    """By the formula in float64, padding left out."""
    task, model, batch = make_case("classification", family)
    teacher = changed(model)
    objective = TaskObjective(task, TAUGHT, teacher=teacher)
    _, values = objective(model, batch, {"relation": 1.0})
    kinds = [queries_keys_values(each, batch) for each in (model, teacher)]
    num_heads = model.config.num_attention_heads
    expected = 0.0
    for row, length in enumerate(batch.attention_mask.sum(1).tolist()):
        for ours, theirs in zip(*kinds, strict=True):
            for head in range(num_heads):
                logs = [log_relations(each[row, :length], head, num_heads, family == "gpt2")
                        for each in (ours, theirs)]  # fmt: skip
                p = np.exp(logs[1])
                seen = p > 0
                kl = (p[seen] * (logs[1][seen] - logs[0][seen])).sum()
                expected += kl / (3 * num_heads)
    assert values["relation"].item() == pytest.approx(expected, rel=1e-4)
    assert objective.rows["relation"] == "all"


def queries_keys_values(model, batch):
    """Of the last layer, in float64: from the layer's input and its own projections."""
    caught = []
    last = layers_of(model)[-1]
    attention = last.attn if hasattr(last, "attn") else last.attention.self
    hook = attention.register_forward_pre_hook(
        lambda module, args, kwargs: caught.append((args or [kwargs["hidden_states"]])[0]),
        with_kwargs=True,
    )
    with torch.no_grad():
        model(**inputs_of(model, batch))
        hook.remove()
        if hasattr(attention, "c_attn"):
            found = attention.c_attn(caught[0]).chunk(3, dim=-1)
        else:
            found = [getattr(attention, kind)(caught[0]) for kind in ("query", "key", "value")]
    return [each.double().numpy() for each in found]


def layers_of(model):
    body = model.base_model
    return body.h if hasattr(body, "h") else body.encoder.layer


def log_relations(vectors, head, num_heads, causal):
    """log softmax of the scaled dot products of one head, row by row."""
    size = vectors.shape[1] // num_heads
    own = vectors[:, head * size : (head + 1) * size]
    products = own @ own.T / np.sqrt(size)
    if causal:
        products = np.where(np.tri(len(products), dtype=bool), products, -np.inf)
    return products - np.log(np.exp(products).sum(1, keepdims=True))


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_soft_targets_are_divergences_at_the_recipes_temperature(make_case, temperature):
    """KL(teacher || student) of softened classes, times the temperature squared, in float64."""
    task, model, batch = make_case("classification")
    teacher = changed(model)
    objective = TaskObjective(task, TAUGHT, teacher=teacher, temperature=temperature)
    _, values = objective(model, batch, {"soft_target": 1.0})
    with torch.no_grad():
        logits = [
            each(**inputs_of(each, batch)).logits.double().numpy() for each in (model, teacher)
        ]
    ours, theirs = (
        each / temperature - np.log(np.exp(each / temperature).sum(1, keepdims=True))
        for each in logits
    )
    expected = temperature**2 * (np.exp(theirs) * (theirs - ours)).sum()
    assert values["soft_target"].item() == pytest.approx(expected, rel=1e-4)


def test_blank_batch_of_pairs_has_zero_loss(make_case):
    """As on a rank that has no more sequences: neither a value nor a gradient."""
    task, model, batch = make_case("embeddings", unit_size=2, twice=True)
    objective = TaskObjective(task, TaskLossesRecipe())
    total, values = objective(model, batch.blank(), {"hard_label": 1.0})
    total.backward()
    assert values["hard_label"].item() == 0
    assert all(not p.grad.any() for p in model.parameters() if p.grad is not None)


def test_similarity_allows_different_embedding_sizes(make_case):
    """The embeddings of a wider teacher are compared only with each other."""
    task, model, batch = make_case("embeddings", unit_size=2)
    teacher = type(model)(type(model.config)(**model.config.to_dict() | {"hidden_size": 32}))
    losses = TaskLossesRecipe(hard_label=0, soft_target=0, similarity=1.0)
    objective = TaskObjective(task, losses, teacher=teacher.eval())
    _, values = objective(model, batch, {"similarity": 1.0})
    assert values["similarity"].item() > 0


@pytest.mark.parametrize("name", ["embedding_cosine", "embedding_mse"])
def test_embeddings_of_two_sizes_are_compared_through_a_projection(make_case, name):
    """The loss of W times the student's embeddings, and the teacher's."""
    task, model, batch = make_case("embeddings", unit_size=2)
    teacher = type(model)(type(model.config)(**model.config.to_dict() | {"hidden_size": 32}))
    add_projection(model, teacher.config, seed=1)
    losses = TaskLossesRecipe.model_validate({"hard_label": 0, "soft_target": 0, name: 1.0})
    objective = TaskObjective(task, losses, teacher=teacher.eval())
    _, values = objective(model, batch, {name: 1.0})
    with torch.no_grad():
        ours, theirs = (task.outputs(each, batch).flatten(0, -2) for each in (model, teacher))
        ours = ours @ model.get_parameter("hidden_projection.weight").T
    if name == "embedding_mse":
        expected = (ours - theirs).square().mean(1).sum()
    else:
        expected = (1 - (ours * theirs).sum(1) / ours.norm(dim=1) / theirs.norm(dim=1)).sum()
    torch.testing.assert_close(values[name], expected)


def test_unknown_loss_term_is_refused(make_case):
    """With those it has."""
    task, _, _ = make_case("classification")
    with pytest.raises(
        RecipeError, match="similarity is not a term of classification; its terms are"
    ):
        check_terms(task, TaskLossesRecipe(similarity=1.0))


def test_subsample_is_deterministic():
    """In their order, and spread over the file."""
    examples = list(range(1000))
    taken = subsample(examples, 100)
    assert taken == subsample(examples, 100) == sorted(taken)
    assert len(set(taken)) == 100
    assert 400 < np.mean(taken) < 600
    assert subsample(examples, None) == subsample(examples, 5000) == examples


def test_groups_are_reshuffled_each_epoch():
    """The same for the same seed and epoch; what does not fill a group waits."""
    sequences = [EncodedExample(np.array([n]), np.array([0]), np.array(0.0)) for n in range(11)]
    source = TaskSource(sequences, pad_token_id=0, per_token=False, group=3, twice=True)
    units = np.arange(source.num_sequences)
    assert (source.num_sequences, source.unit_size) == (3, 6)

    def drawn(epoch, seed=0):
        batch = source.batch(units, np.full_like(units, epoch), seed)
        assert batch.unit_size == 6
        ids = batch.input_ids[:, 0].tolist()
        assert ids[0::2] == ids[1::2]
        return ids[0::2]

    assert len(set(drawn(0))) == 9
    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)
    assert drawn(0, seed=1) != drawn(0)
