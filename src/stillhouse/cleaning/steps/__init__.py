"""The steps that judge one document, one file each; the file's name is the step's in a recipe.

Adding one is adding a file that defines `STEP`, and its name where it runs: cheap steps first, and
those that read the text after those that make it.
"""

from importlib import import_module

from stillhouse.cleaning.step import Step

ORDER = (
    "urls",
    "main_text",
    "books",
    "length",
    "language",
    "gopher",
    "c4",
    "fineweb",
    "contamination",
    "personal_data",
)
STEPS: dict[str, Step] = {name: import_module(f"{__name__}.{name}").STEP for name in ORDER}
