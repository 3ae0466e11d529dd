"""A micro-batch is only queued on the device: nothing in it asks for a value, and so waits.

Without such a device the operations themselves are watched: those that must hand a number to
Python, or whose result has a size that depends on values.
"""

from typing import Any

import pytest
import torch
import transformers
from tests.tiny_models import PAIRS, WITH_RELATIONS, is_causal
from torch.utils._python_dispatch import TorchDispatchMode

from stillhouse.families import attention
from stillhouse.families.registry import family_named, family_of
from stillhouse.objectives.language_model import LanguageModelObjective, Teacher
from stillhouse.objectives.settings import LossesRecipe
from stillhouse.tokens.batches import Batch

CPU = torch.device("cpu")
LENGTH = 12
VALUE_READERS = {
    "_local_scalar_dense",
    "is_nonzero",
    "nonzero",
    "nonzero_numpy",
    "masked_select",
    "equal",
    "unique2",
    "unique_dim",
    "unique_consecutive",
    "bincount",
}


class Watch(TorchDispatchMode):
    """Notes every operation that waits for the device, and how attention is called."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.attention: list[dict[str, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__.strip("_")
        reads = name in {each.strip("_") for each in VALUE_READERS}
        if "index" in name and len(args) > 1 and isinstance(args[1], (list, tuple)):
            reads |= any(index is not None and index.dtype == torch.bool for index in args[1])
        if name == "repeat_interleave" and isinstance(args[-1], torch.Tensor):
            reads |= kwargs.get("output_size") is None
        if reads:
            self.waits.append(name)
        if "attention" in name and "backward" not in name:
            causal = kwargs.get("is_causal", args[4] if len(args) > 4 else False)
            self.attention.append({"mask": kwargs.get("attn_mask"), "causal": causal})
        return func(*args, **kwargs)


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x[x > 0],
        lambda x: x.masked_select(x > 0),
        lambda x: x.index_put_((x > 0,), torch.zeros(1)),
        torch.nonzero,
    ],
)
def test_the_watch_sees_what_waits(wait):
    """Each of these stops the host until the device is done."""
    with Watch() as watch:
        wait(torch.arange(4.0))
    assert watch.waits


@pytest.fixture(params=PAIRS)
def models(request, tiny_model):
    student, teacher = request.param
    return tiny_model(student).train(), tiny_model(teacher, num_layers=3, seed=1)


# Layers with a window, or a softcap on scores, cannot go without one; nor do those see PyTorch's
# attention that compute their own.
WITHOUT = {"sliding_window", "local_attention", "attn_logit_softcapping"}
whole_attention = pytest.mark.parametrize(
    "models",
    [
        pair
        for pair in PAIRS
        if not WITHOUT & {*family_named(str(pair.id)).tiny}
        and getattr(transformers, family_named(str(pair.id)).model_class)._supports_sdpa
    ],
    indirect=True,
)


def make_batch(batch_of, words, *, uniform: bool, causal: bool) -> Batch:
    rows = [[words(7), words(4, 1)], [words(12, 2)]]
    if uniform:
        rows = [[words(LENGTH, 1)], [words(LENGTH, 2)]]
    return batch_of(rows, LENGTH, causal=causal)


def micro_step(models, batch: Batch, rows: str, **more: dict[str, Any]) -> None:
    student, teacher = models
    losses = more | {
        "soft_target": {"weight": 5.0, "rows": rows},
        "language_modeling": {"weight": 2.0},
        "hidden_cosine": {"weight": 1.0, "rows": "predicted"},
    }
    objective = LanguageModelObjective(
        family_of(student.config),
        LossesRecipe.model_validate(losses),
        teacher=Teacher(family_of(teacher.config), teacher),
    )
    loss, _ = objective(student, batch, objective.weights)
    loss.backward()


@pytest.mark.parametrize("rows", ["all", "predicted"])
@pytest.mark.parametrize("uniform", [True, False])
def test_a_micro_batch_never_waits(models, batch_of, words, uniform, rows):
    """Forward of both models, losses and backward, once the batch is on its device."""
    causal = is_causal(models[0].config.model_type)
    batch = make_batch(batch_of, words, uniform=uniform, causal=causal).to(CPU)
    with Watch() as watch:
        more: dict[str, Any] = {"relation": {"weight": 1.0, "rows": rows}}
        if models[0].config.model_type not in WITH_RELATIONS:
            more = {}
        micro_step(models, batch, rows, **more)
    assert watch.waits == []


@pytest.mark.gpu
@pytest.mark.parametrize("uniform", [True, False])
def test_a_gpu_itself_sees_no_wait(models, batch_of, words, uniform):
    """CUDA itself refuses every synchronization, once a first step has set up its libraries."""
    device = torch.device("cuda")
    causal = is_causal(models[0].config.model_type)
    host = make_batch(batch_of, words, uniform=uniform, causal=causal)
    for model in models:
        model.to(device)
    try:
        for mode in ("default", "error"):
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode(mode)
            with torch.autocast("cuda", torch.bfloat16):
                micro_step(models, host.to(device), "all")
    finally:
        torch.cuda.set_sync_debug_mode("default")


@whole_attention
def test_whole_sequences_need_no_mask(models, batch_of, words, monkeypatch):
    """Every layer's attention is called without one, and told whether it is causal: so the fastest
    kernels take it."""
    monkeypatch.setattr(attention, "MAX_LENGTH", 0)
    causal = is_causal(models[0].config.model_type)
    batch = make_batch(batch_of, words, uniform=True, causal=causal).to(CPU)
    with Watch() as watch:
        micro_step(models, batch, "all")
    assert watch.attention == [{"mask": None, "causal": causal}] * (2 + 3)


@pytest.mark.e2e
@whole_attention
def test_whole_sequences_need_no_mask_when_compiled(models, batch_of, words):
    """A compiled body cannot look at values, and must not build a mask for want of them."""
    causal = is_causal(models[0].config.model_type)
    batch = make_batch(batch_of, words, uniform=True, causal=causal).to(CPU)
    found: list[Any] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        attention = torch.nn.functional.scaled_dot_product_attention
        calls = [node.kwargs for node in graph.graph.nodes if node.target is attention]
        found.extend((call["attn_mask"], call["is_causal"]) for call in calls)
        return graph.forward

    torch.compiler.reset()  # what other tests compiled counts against a limit
    for model in models:
        model.base_model.compile(backend=backend)
    micro_step(models, batch, "all")
    assert found == [(None, causal)] * (2 + 3)
