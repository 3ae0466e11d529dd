"""From hidden states to the vocabulary: what a model computes after its last layer.

Axes: B sequences, T positions, N rows, D hidden size, V vocabulary.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stillhouse.inference.loaded import LoadedModel
from stillhouse.inspection.text import batch_of
from stillhouse.student.reconstruction import output_projection


@torch.inference_mode()
def modules_after_layers(loaded: LoadedModel) -> list[nn.Module]:
    """The body's modules that run after its last layer, in order: in most models a norm, none
    where the layers end in one. Found by a pass over one token."""
    family, model = loaded.family, loaded.model
    layers = family.layers_of(model)
    inside = {id(module) for module in layers.modules()}
    ran: list[nn.Module] = []

    def note(module: nn.Module, *_: Any) -> None:
        ran.append(module)

    body = model.get_submodule(family.body)
    own = [
        module
        for module in body.modules()
        if id(module) not in inside and [*module.parameters(recurse=False)]
    ]
    hooks = [module.register_forward_hook(note) for module in (*own, layers[-1])]
    ids = torch.zeros(1, 1, dtype=torch.int32)
    batch = batch_of(ids, torch.ones_like(ids), causal=family.language_modeling == "causal")
    family.run_body(model, batch.to(model.device))
    for hook in hooks:
        hook.remove()
    return ran[ran.index(layers[-1]) + 1 :]


def log_probabilities(
    loaded: LoadedModel, hidden: Float[Tensor, "N D"], after: list[nn.Module] | None = None
) -> Float[Tensor, "N V"]:
    """Log-probabilities of last hidden states, or, with the modules that run after the layers, of
    the hidden states of any layer (the logit lens: nostalgebraist 2020)."""
    for module in after or ():
        hidden = module(hidden)
    head = loaded.family.head(loaded.model)
    return head.logits(head.transform(hidden)).double().log_softmax(-1)


def direct_path(
    loaded: LoadedModel, written: Float[Tensor, " D"]
) -> tuple[Float[Tensor, " V"] | None, str]:
    """What something written into the hidden states adds to the logits on its direct path, past
    all later layers; or None, and the reason.

    With g the weight of the final norm and U the unembedding:

        U (g * w)                 after an RMSNorm
        U (g * (w - mean(w)))     after a LayerNorm

    less its mean over the vocabulary, which no probability depends on. The model divides it by the
    norm's denominator, which is the same for all tokens (Geva et al. 2022, "Transformer
    Feed-Forward Layers Build Predictions by Promoting Concepts in the Vocabulary Space", section 3;
    there without the norm).
    """
    if loaded.family.language_modeling == "masked":
        return None, "the head of a masked model is not linear"
    after = modules_after_layers(loaded)
    if output_projection(loaded.model.config) is None:
        return None, "a norm lies between the neurons and the hidden states"
    if len(after) != 1 or getattr(after[0], "weight", written).dim() != 1:
        return None, "the model has more than a norm after its layers"
    norm: Any = after[0]
    if isinstance(norm, nn.LayerNorm):
        written = written - written.mean()
    head = loaded.family.head(loaded.model)
    logits = head.weight.double() @ (norm.weight * written).double()
    return logits - logits.mean(), ""
