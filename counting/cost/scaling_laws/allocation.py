"""Laws that say only how to divide compute, N or D for C, and predict no loss: `configs/allocation_laws.json`.

Each gives one quantity as k (C / unit)^e, and counts N and C in its own way. Converted to ours, where N are all
parameters and C = 6 N D:

    share = the law's FLOPs a token / 6 N, of a model's shape (1 for a law that says D)
    C of the law = share C

    non-embedding parameters N':      share = N' / N,   N' = k (share C / unit)^e,   N = N' / share
    non-embedding FLOPs a token M:    share = M / 6 N,   M = k (share C / unit)^e,   N = M / (6 share)
    tokens D:                                            D = k (C / unit)^e,         N = C / (6 D)

and in the first two D = C / (6 N).
"""

from functools import cache
from typing import Literal

import msgspec

from counting.cost.scaling_laws.optimum import FLOPS_PER_PARAMETER_AND_TOKEN, affordable_tokens
from torch_models.errors import UserError
from torch_models.fields.bundled import bundled_data

AllocatedQuantity = Literal["non_embedding_parameters", "non_embedding_flops_per_token", "tokens"]


class AllocationLaw(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One entry of the table: quantity = `coefficient` (C / `flops_per_unit_of_compute`)^`exponent`."""

    name: str
    gives: AllocatedQuantity
    coefficient: float
    exponent: float
    flops_per_unit_of_compute: float  # 8.64e19 if C is in PF-days, 1 if in FLOPs
    parameters_mean: str
    compute_means: str
    source: str
    fitted_compute: tuple[float, float]  # FLOPs, in the law's own count


class Allocation(msgspec.Struct, frozen=True, kw_only=True):
    """What such a law says of a compute budget, in its own quantity and in ours."""

    quantity: float  # what the law gives
    parameters: int
    tokens: int
    extrapolated: bool  # C is outside the range that the law was fitted to


@cache
def allocation_laws() -> tuple[AllocationLaw, ...]:
    """All entries of the table, in file order; the file is read on the first call."""
    table = (bundled_data() / "allocation_laws.json").read_bytes()
    return msgspec.json.decode(table, type=tuple[AllocationLaw, ...])


def allocate(law: AllocationLaw, training_flops: float, share: float) -> Allocation:
    """N and D of `law` for C = `training_flops`; `share` is that of a model's shape, 1 for a law that says D.

    Raises UserError if N or D would be 0.
    """
    own_compute = share * training_flops
    quantity = law.coefficient * (own_compute / law.flops_per_unit_of_compute) ** law.exponent
    if law.gives == "non_embedding_parameters":
        exact = quantity / share
    elif law.gives == "non_embedding_flops_per_token":
        exact = quantity / (FLOPS_PER_PARAMETER_AND_TOKEN * share)
    else:
        exact = training_flops / (FLOPS_PER_PARAMETER_AND_TOKEN * quantity)
    parameters = round(exact)
    tokens = affordable_tokens(training_flops, FLOPS_PER_PARAMETER_AND_TOKEN * max(parameters, 1))
    if not (parameters and tokens):
        raise UserError(f"{training_flops:.3g} training FLOPs are too few for any model by the law {law.name}")
    low, high = law.fitted_compute
    return Allocation(
        quantity=quantity, parameters=parameters, tokens=tokens, extrapolated=not low <= own_compute <= high
    )
