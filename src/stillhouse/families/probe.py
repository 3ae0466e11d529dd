"""Where an architecture keeps its parts, found by building a tiny model of it on the meta device.

A tiny forward pass is traced: the matrices of a layer that run before attention give its queries,
keys and values, those after it are position-wise. Attention is where transformers' attention
function is called or, in architectures that compute it themselves, a softmax.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface, AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from stillhouse.families.attention import attention_named
from stillhouse.section import LanguageModeling

NAME = "stillhouse_probe"
NUM_LAYERS = 3
VOCABULARY, POSITIONS, WIDTH, HEADS = 29, 19, 8, 2
SPECIAL_IDS = ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")
ATTENTION = "attention"  # in a trace, beside names of modules
MODEL_CLASSES = {
    "causal": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "masked": MODEL_FOR_MASKED_LM_MAPPING_NAMES,
}


def probe(
    model_type: str, language_modeling: LanguageModeling, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The fields of a `Family` that follow from the architecture's own modules.

    Args:
        settings: Keys of the configuration, beside those of its size.
    """
    model = _tiny_model(model_type, language_modeling, settings)
    modules = dict(model.named_modules())
    layers = next(
        name
        for name, module in modules.items()
        if isinstance(module, nn.ModuleList) and len(module) == NUM_LAYERS
    )
    first, *_, last = modules[layers].children()
    outputs: list[Any] = []
    last.register_forward_hook(lambda *given: outputs.append(given[-1]))
    trace = _trace(model, last)
    assert ATTENTION in trace, f"{model_type}: no layer calls attention or a softmax"
    attention = trace.index(ATTENTION)
    projections = tuple(dict.fromkeys(trace[:attention]))
    after = [name for name in trace[attention + 1 :] if name != ATTENTION]
    return {
        "model_type": model_type,
        "language_modeling": language_modeling,
        "model_class": type(model).__name__,
        "body": model.base_model_prefix,
        "layers": layers,
        "attention_projections": projections,
        "position_wise": _largest_without(after, projections),
        "embeddings": _embeddings(model),
        "first_layer_differs": first.state_dict().keys() != last.state_dict().keys(),
        "layer_outputs": len(outputs[0]) if isinstance(outputs[0], tuple) else 0,
        "masked_modules": tuple(
            name
            for name, module in model.base_model.named_children()
            if "mask" in inspect.signature(module.forward).parameters
        ),
    }


def _tiny_model(
    model_type: str, language_modeling: LanguageModeling, settings: Mapping[str, Any]
) -> PreTrainedModel:
    config = AutoConfig.for_model(
        model_type,
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=POSITIONS,
        **dict.fromkeys(SPECIAL_IDS, 0),
        **settings,
    )
    with torch.device("meta"):
        return getattr(transformers, MODEL_CLASSES[language_modeling][model_type])(config).eval()


def _trace(model: PreTrainedModel, layer: nn.Module) -> list[str]:
    """Names of a layer's modules with a matrix of their own, in the order in which they run, and
    `ATTENTION` where attention is computed."""
    return _trace_modules(
        model,
        layer,
        [
            name
            for name, module in layer.named_modules()
            if any(parameter.dim() == 2 for parameter in module.parameters(recurse=False))
        ],
    )


def last_module(model: PreTrainedModel, layer: nn.Module) -> str:
    """The module of a layer that runs last of those with parameters of their own.

    Args:
        model: With this layer, on the meta device.
    """
    own = [name for name, module in layer.named_modules() if [*module.parameters(recurse=False)]]
    return _trace_modules(model, layer, own)[-1]


def _trace_modules(model: PreTrainedModel, layer: nn.Module, names: Sequence[str]) -> list[str]:
    """The same of these modules."""
    trace: list[str] = []
    hooks = [
        layer.get_submodule(name).register_forward_hook(lambda *_, name=name: trace.append(name))
        for name in names
    ]
    hooks.append(layer.register_forward_pre_hook(lambda *_: trace.clear()))
    with _noted_attention(model.config, trace), torch.device("meta"), torch.no_grad():
        ids = torch.zeros(1, POSITIONS - 4, dtype=torch.long)
        model.base_model(input_ids=ids, attention_mask=torch.ones_like(ids))
    for hook in hooks:
        hook.remove()
    return trace


@contextmanager
def _noted_attention(config: PretrainedConfig, trace: list[str]) -> Iterator[None]:
    """Within this context calls of the attention function, and softmaxes, are noted in `trace`."""

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None,
        **settings: Any,
    ) -> tuple[Tensor, None]:  # fmt: skip
        trace.append(ATTENTION)
        return query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[3]), None

    AttentionInterface.register(NAME, attention)
    with attention_named(config, NAME), _Softmaxes(trace):
        yield


class _Softmaxes(TorchDispatchMode):
    def __init__(self, trace: list[str]) -> None:
        super().__init__()
        self._trace = trace

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket is torch.ops.aten._softmax:
            self._trace.append(ATTENTION)
        return func(*args, **(kwargs or {}))


def _largest_without(names: Sequence[str], others: Sequence[str]) -> tuple[str, ...]:
    """The largest modules that hold the named ones, and none of the others."""
    with_others = {parent for other in others for parent in _parents(other)}
    largest = (next(each for each in _parents(name) if each not in with_others) for name in names)
    return tuple(dict.fromkeys(largest))


def _parents(name: str) -> list[str]:
    """The modules around a module and itself, the largest first."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


def _embeddings(model: PreTrainedModel) -> dict[str, str]:
    """Parameters of the embeddings of words, positions and token types."""
    words = model.get_input_embeddings()
    names: dict[Tensor, str] = {each: name for name, each in model.named_parameters()}  # tied: one
    found = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Embedding):
            continue
        if module is words:
            found["word_embeddings"] = names[module.weight]
        elif POSITIONS <= module.num_embeddings < VOCABULARY:  # some have rows before the first
            found["position_embeddings"] = f"{name}.weight"
        elif "token_type" in name:
            found["token_type_embeddings"] = f"{name}.weight"
    return found
