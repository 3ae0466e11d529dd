"""The routes of the writing page's Inspect tab: the neurons of a model, and what its layers make of
a text. Both run between two steps of generation, and only in float32."""

from typing import Any

from fastapi import APIRouter
from pydantic import Field

from stillhouse.inspection.collect import layer_rows
from stillhouse.inspection.lens import inspect_text
from stillhouse.inspection.neuron import describe_neuron
from stillhouse.inspection.units import Neuron
from stillhouse.serving.dialects.base import ModelsDep
from stillhouse.serving.schemas import APIError, RequestModel
from stillhouse.serving.served_model import ServedModel, ServedModels

router = APIRouter(tags=["The writing page"])


class NeuronRequest(RequestModel):
    """`POST /editor/neuron`."""

    model: str
    layer: int = Field(ge=0)
    number: int = Field(ge=0)


class LayersRequest(RequestModel):
    """`POST /editor/layers`."""

    model: str
    text: str


def _float_model(models: ServedModels, name: str) -> ServedModel:
    """A model whose layers can be observed.

    Raises:
        APIError: 404; 400, it is quantized.
    """
    model = models.named(name)
    if model.precision != "fp32":
        raise APIError(
            400,
            f"{model.name} is served in {model.precision}; to inspect it, serve it with "
            "--precision fp32.",
        )
    return model


@router.post("/editor/neuron")
async def neuron(body: NeuronRequest, models: ModelsDep) -> dict[str, Any]:
    """A neuron's strongest contexts, and its effect by ablation and by its direct path."""
    model = _float_model(models, body.model)
    if model.inspection is None:
        raise APIError(
            404,
            f"There are no neurons of {model.name} here. Collect them with `stillhouse inspect`, "
            "and give its folder to `stillhouse write` as --inspection.",
        )
    wanted = Neuron(body.layer, body.number)
    return await model.run(describe_neuron, model.language_model, model.inspection, wanted)


@router.post("/editor/layers")
async def layers(body: LayersRequest, models: ModelsDep) -> dict[str, Any]:
    """The predictions of every layer at every token of a text (the logit lens)."""
    model = _float_model(models, body.model)
    return await model.run(inspect_text, model.language_model, body.text)


def described(model: ServedModel) -> list[dict[str, Any]]:
    """The layers of a model whose neurons were collected; none of others."""
    return [] if model.inspection is None else layer_rows(model.inspection.statistics)
