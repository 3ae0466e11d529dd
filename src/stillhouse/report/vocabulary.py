"""What a smaller vocabulary costs, in words for page, card and terminal."""

from stillhouse import units
from stillhouse.evaluation.metrics.base import read
from stillhouse.report.results import SeedResult


def vocabulary_note(result: SeedResult) -> str:
    """The tokens of a run's models, and the teacher with all of its tokens; empty where the models
    have all."""
    found = result.evaluation.get("vocabulary")
    if not found:
        return ""
    per_byte, unknown = found["tokens_per_byte"], found["unknown_share"]
    more = per_byte["trimmed"] / per_byte["whole"] - 1
    sentences = [
        f"All models have {found['tokens']:,} of the teacher's {found['of']:,} tokens, which are "
        f"{found['kept_share']:.2%} of those in the text they were chosen on: it has {more:+.2%} "
        "tokens. Figures per token are of these."
    ]
    if any(unknown.values()):
        sentences.append(
            f"{unknown['trimmed']:.3%} of its tokens are unknown ({unknown['whole']:.3%} with all)."
        )
    if whole := found["whole_teacher"]:
        bits = [
            read(each, "perplexity.bits_per_byte")
            for each in (whole, result.evaluation["models"]["teacher"])
        ]
        share = result.evaluation["models"]["student"]["parameters"] / whole["parameters"]
        shown = [units.BITS.show(each) if each is not None else "no finite value" for each in bits]
        sentences.append(
            f"The teacher with all tokens has {units.count(whole['parameters'])} parameters, of "
            f"which the student has {units.percent(share)}; on the same text it has {shown[0]} "
            f"per byte ({shown[1]} with these)."
        )
        if result.evaluation.get("zero_shot"):
            sentences.append("The teacher's zero-shot scores are those with all tokens.")
    return " ".join(sentences)
