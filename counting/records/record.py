"""One row of a table to take away."""

from typing import TypedDict


class TidyRow(TypedDict):
    """One number of a result; a list of these is what pandas and polars read in one call."""

    scope: str  # what it is about: the model, a layer, a rank class, a GPU
    component: str  # a part of the scope, as `attention`; empty for the whole
    quantity: str  # as in the JSON document: `forward_flops`
    value: int | float | str | bool | None
    unit: str  # as `FLOP`, `byte`, `parameter`, `token`; empty for a ratio or a name
    convention: str  # what it is counted by; empty where there is nothing to choose
