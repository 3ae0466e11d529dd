"""The stages of a run, by name and in order; and the names a user may give for them."""

from stillhouse.errors import RecipeError

STAGES = ("prepare", "teacher", "init", "distill", "finetune", "evaluate", "report")


def stages_until(last: str | None) -> tuple[str, ...]:
    """All stages, or those up to and including `last`.

    Raises:
        RecipeError: no such stage.
    """
    if last is None:
        return STAGES
    if last not in STAGES:
        raise RecipeError(
            f"--until {last}: there is no such stage; stages are {', '.join(STAGES)}."
        )
    return STAGES[: STAGES.index(last) + 1]


def stages_named(names: str) -> frozenset[str]:
    """The stages in a comma-separated list, such as "distill,report"; "all" is every stage.

    Raises:
        RecipeError: no such stage.
    """
    wanted = frozenset(name.strip() for name in names.split(",") if name.strip())
    unknown = wanted - {*STAGES, "all"}
    if unknown:
        raise RecipeError(
            f"--overwrite names {', '.join(sorted(unknown))}; stages are {', '.join(STAGES)}, or "
            "all."
        )
    return frozenset(STAGES) if "all" in wanted else wanted
