"""The teacher layer that initializes each student layer.

For n student and L teacher layers, student layer i is teacher layer round(i * (L - 1) / (n - 1)),
halves to even; n = 1 takes layer 0. For 6 of 12 that is 0, 2, 4, 7, 9, 11, the map of 2019.
"""

from stillhouse.errors import RecipeError
from stillhouse.wording import counted


def evenly_spread(num_student_layers: int, num_teacher_layers: int) -> list[int]:
    """Teacher layers for a student of `num_student_layers`, evenly spread over the teacher's."""
    if num_student_layers == 1:
        return [0]
    step = (num_teacher_layers - 1) / (num_student_layers - 1)
    return [round(layer * step) for layer in range(num_student_layers)]


def layers_from(wanted: int | list[int] | None, num_teacher_layers: int, *, key: str) -> list[int]:
    """The layer map of the recipe's `key`; by default half the layers.

    Raises:
        RecipeError: a layer that the teacher does not have, or more layers than it has.
    """
    last, half = num_teacher_layers - 1, max(1, num_teacher_layers // 2)
    if isinstance(wanted, list):
        unknown = [layer for layer in wanted if not 0 <= layer <= last]
        if unknown:
            raise RecipeError(
                f"{key} names teacher layers {unknown}, but the teacher has layers 0 to {last}. "
                f"Choose from those, such as {evenly_spread(half, num_teacher_layers)}."
            )
        return wanted
    num_layers = wanted or half
    if num_layers > num_teacher_layers:
        raise RecipeError(
            f"{key} asks for {counted(num_layers, 'layer')}, but the teacher has "
            f"{num_teacher_layers}. Give a number from 1 to {num_teacher_layers}."
        )
    return evenly_spread(num_layers, num_teacher_layers)
