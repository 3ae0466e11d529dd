"""The importance of a model's layers on a text, without a run: `stillhouse importance`."""

from dataclasses import asdict
from typing import Any, Literal

from stillhouse import terminal
from stillhouse.families.base import layers_from
from stillhouse.models.folder_check import load_model_tokenizer
from stillhouse.models.hub import resolve_folder
from stillhouse.models.load import load_model
from stillhouse.student.calibration import check_source, read_calibration, sequence_length_of
from stillhouse.student.importance import choose_layers, loss_on
from stillhouse.student.settings import ImportanceRecipe, LayerChoice
from stillhouse.tokens.settings import TokensRecipe
from stillhouse.training.device import pick_device
from stillhouse.wording import counted

NAMES = {
    "all": "all",
    "influence": "chosen by influence",
    "greedy": "chosen greedily",
    "even": "evenly spread",
}


def rank_layers(
    name: str,
    text: ImportanceRecipe,
    *,
    num_layers: int | None,
    by: Literal["influence", "greedy"],
    offline: bool,
) -> dict[str, Any]:
    """The importance of the layers of a model, and the losses of the model with fewer of them.

    Args:
        num_layers: Layers to keep; by default half.

    Raises:
        RecipeError: more layers than the model has.
        DataError: text that cannot be read.
    """
    check_source(text.text, "--text", offline=offline)
    folder = resolve_folder(name, offline=offline)
    tokenizer = load_model_tokenizer(folder)
    family, model = load_model(folder, tokenizer)
    kept = layers_from(num_layers, model.config.num_hidden_layers, key="--layers")
    length = sequence_length_of(text, model.config)
    tokens = TokensRecipe(language_modeling=family.language_modeling, sequence_length=length)
    calibration = read_calibration(text, tokens, tokenizer, key="--text", offline=offline)
    model.to(device=pick_device())  # pyright: ignore[reportCallIssue]
    found = choose_layers(LayerChoice(layers=len(kept), by=by), family, model, calibration)
    candidates = {"all": None, by: found.kept, "even": kept}
    return {
        "model": str(folder),
        "text": text.text,
        "tokens": calibration.num_tokens,
        "sequence_length": length,
        **asdict(found),
        "loss": {
            candidate: loss_on(family, model, calibration, layers=layers)
            for candidate, layers in candidates.items()
        },
    }


def print_ranking(result: dict[str, Any]) -> None:
    """Print the layers with their scores, and the losses, on stdout."""
    kept, dropped = set(result["kept"]), result["dropped"]
    rows = [
        [str(layer), f"{score:.4f}", "kept" if layer in kept else f"{dropped.index(layer) + 1}"]
        for layer, score in enumerate(result["scores"])
    ]
    score = "influence" if result["by"] == "influence" else "distance without it"
    losses = [
        [NAMES[name], str(len(result["scores"]) if name == "all" else len(kept)), f"{loss:.3f}"]
        for name, loss in result["loss"].items()
    ]
    text = f"on {counted(result['tokens'], 'token')} of {result['text']}"
    terminal.show(
        terminal.table(["layer", score, "dropped as number"], rows, title=text),
        terminal.table(["layers", "number", "loss"], losses),
        f"student.layer_map: {result['kept']}",
    )
