"""A model of a given size, designed by the rules of one family; each family is one file of `families/`."""

import importlib
import pkgutil
from typing import cast

from counting.cost.design import families
from counting.cost.design.architecture import Architecture, DesignFamily
from torch_models.errors import ArgumentError

DESIGN_FAMILIES = tuple(sorted(module.name for module in pkgutil.iter_modules(families.__path__)))
DEFAULT_DESIGN_FAMILY = "llama"


def find_design_family(name: str) -> DesignFamily:
    """The family called `name`, in upper or lower case; raises an ArgumentError that lists the known ones."""
    known = name.strip().lower() if isinstance(name, str) else ""
    if known not in DESIGN_FAMILIES:
        raise ArgumentError("design_family", name, f"is not known: choose from {', '.join(DESIGN_FAMILIES)}")
    module = importlib.import_module(f"{families.__name__}.{known}")
    return cast(DesignFamily, getattr(module, f"{known.upper()}_DESIGNS"))


def design_model(target_parameters: int, family: str = DEFAULT_DESIGN_FAMILY) -> Architecture:
    """A config of `family` within 0.5 % of `target_parameters`, by the rules that the result lists.

    The target is of all parameters of a dense model, and of the active ones of a mixture of experts. Raises UserError
    for a family that is not known, and for a size outside the range that its rules hold for.
    """
    found = find_design_family(family)
    found.check_size(target_parameters)
    return found.design(target_parameters)
