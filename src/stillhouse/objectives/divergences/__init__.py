"""The divergences of an objective, one file each; the file's name is the term's in a recipe.

Adding one is adding a file that defines `DIVERGENCE`.
"""

from importlib import import_module
from pkgutil import iter_modules

from stillhouse.objectives.divergence import Divergence

DIVERGENCES: dict[str, Divergence] = {
    module.name: import_module(f"{__name__}.{module.name}").DIVERGENCE
    for module in iter_modules(__path__)
}
