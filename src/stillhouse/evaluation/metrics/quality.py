"""Loss, perplexity and calibration on held-out text, as `evaluation.perplexity` measures them."""

from functools import partial
from typing import Any

from stillhouse import units
from stillhouse.evaluation.calibration import NUM_BINS, CalibrationError
from stillhouse.evaluation.metrics.base import Metric, Subjects, progress
from stillhouse.evaluation.perplexity import Observer


def measure(subjects: Subjects) -> dict[str, dict[str, Any]]:
    """Score each model that is not in the cache, under one progress bar."""
    scored = subjects.cache.quality
    waiting = [name for name, folder in subjects.folders.items() if folder not in scored]
    title = f"{subjects.label}quality of {', '.join(waiting)}"
    total = sum(subjects.protocol.num_batches[name] for name in waiting)
    with progress(subjects.reporter, title, total) as tick:
        for name in waiting:
            calibration = CalibrationError()
            found, losses = subjects.protocol.score(name, Observer(tick, calibration.add))
            found["calibration_error"] = calibration.value()
            if losses.parts:
                found["loss_by_part"] = {
                    part: {"tokens": int(own.tokens.sum()), "loss": own.mean}
                    for part, own in losses.parts.items()
                }
            scored[subjects.folders[name]] = found, losses
    return {name: scored[folder][0] for name, folder in subjects.folders.items()}


_loss = partial(Metric, "quality", measure=measure, lower_is_better=True, missing="no finite value")
_causal = partial(_loss, language_modeling="causal")
METRICS = [
    _causal("validation_loss", "Validation loss per token", units.NATS, short="loss"),
    _causal(
        "perplexity.token",
        "Perplexity per token",
        units.PERPLEXITY,
        short="perplexity",
        compared=True,
    ),
    _causal("perplexity.token_sliding", "Perplexity per token, sliding window", units.PERPLEXITY),
    _causal("perplexity.word", "Perplexity per word", units.PERPLEXITY, compared=True),
    _causal("perplexity.bits_per_byte", "Bits per byte", units.BITS, compared=True),
    _loss(
        "masked_loss",
        "Masked loss per token",
        units.NATS,
        language_modeling="masked",
        short="loss",
        compared=True,
    ),
    Metric(
        "quality",
        "calibration_error",
        f"ECE, {NUM_BINS} bins",
        units.Unit("{:.1%}".format),
        measure,
        lower_is_better=True,
        short="ECE",
        compared=True,
    ),
]
