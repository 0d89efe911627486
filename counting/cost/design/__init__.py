"""Models designed for a size, and for a budget.

`llama` (one file a family), `architecture` (what a design is), `published_models` (what guides it), `for_budget` (a
design that is measured, and its tokens).
"""

from counting.cost.design.architecture import Architecture
from counting.cost.design.for_budget import Design, design_for_budget, resolve_tokens
from counting.cost.design.llama import design_model
from counting.cost.design.published_models import published_models, published_peers

__all__ = [
    "Architecture",
    "Design",
    "design_for_budget",
    "design_model",
    "published_models",
    "published_peers",
    "resolve_tokens",
]
