"""Models designed for a size, and for a budget.

`families/` (the rules, one file a family), `model` (a design by the name of its family), `architecture` (what a design
is), `published_models` and `trend` (what guides it), `for_budget` (a design that is measured, and its tokens).
"""

from counting.cost.design.architecture import Architecture, DesignFamily
from counting.cost.design.for_budget import Design, design_for_budget, resolve_tokens
from counting.cost.design.model import DEFAULT_DESIGN_FAMILY, DESIGN_FAMILIES, design_model, find_design_family
from counting.cost.design.published_models import published_models, published_peers

__all__ = [
    "DEFAULT_DESIGN_FAMILY",
    "DESIGN_FAMILIES",
    "Architecture",
    "Design",
    "DesignFamily",
    "design_for_budget",
    "design_model",
    "find_design_family",
    "published_models",
    "published_peers",
    "resolve_tokens",
]
