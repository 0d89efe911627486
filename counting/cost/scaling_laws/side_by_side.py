"""Laws side by side for one compute budget: N, D and loss by each, in one count of N and C."""

from collections.abc import Sequence
from typing import Literal

import msgspec

from counting.cost.scaling_laws.allocation import AllocatedQuantity, AllocationLaw, allocation_laws
from counting.cost.scaling_laws.intervals import OptimumIntervals, optimum_intervals
from counting.cost.scaling_laws.law import ScalingLaw, extrapolates, predicted_loss
from counting.cost.scaling_laws.optimum import compute_optimum
from counting.cost.scaling_laws.published import LAWS
from counting.cost.scaling_laws.shapes import LawShape, allocate_in_shape
from counting.cost.scaling_laws.wrong_choice import excess_loss, wasted_compute
from counting.records.tidy import Tidy


class LawRow(msgspec.Struct, frozen=True, kw_only=True):
    """What one law says of the budget; N are all parameters and C = 6 N D, whatever the law counts."""

    law: str
    source: str
    parameters: int
    tokens: int
    tokens_per_parameter: float
    predicted_loss: float | None  # by this law, nats per token; None if it says only N or D
    intervals: OptimumIntervals | None  # None for a law without draws of a bootstrap
    excess_loss: float  # what this N and D cost if the law that the budget follows holds, nats per token
    wasted_compute: float  # the same as a share of C
    extrapolated: bool
    parameters_mean: str  # what the law calls N
    compute_means: str  # and C
    gives: Literal["loss"] | AllocatedQuantity  # what the law predicts
    quantity: float | None  # that number, in the law's own count; None for a loss
    converted_by: LawShape | None  # the model whose shape converts N and C


class LawsSideBySide(Tidy, frozen=True, kw_only=True):
    """The law that the budget follows, and all others asked for."""

    training_flops: int
    followed: str
    rows: tuple[LawRow, ...]


def laws_side_by_side(
    training_flops: int,
    law: ScalingLaw,
    others: Sequence[ScalingLaw | AllocationLaw] | None = None,
    shape: LawShape | None = None,
) -> LawsSideBySide:
    """`law`, which the budget follows, and then `others`: all published ones if None; of one name only the first.

    `shape` is that of a model at hand; without one, models are designed for what needs a shape. Raises UserError if
    the budget is too small for the N or D of a law.
    """
    chosen = (*LAWS, *allocation_laws()) if others is None else others
    best = compute_optimum(law, training_flops).parameters
    rows: dict[str, LawRow] = {}
    for one in (law, *chosen):
        if one.name in rows:
            continue
        if isinstance(one, ScalingLaw):
            rows[one.name] = _row_of_loss(one, training_flops, law)
        else:
            rows[one.name] = _row_of_allocation(one, training_flops, law, best, shape)
    return LawsSideBySide(training_flops=training_flops, followed=law.name, rows=tuple(rows.values()))


def _row_of_loss(law: ScalingLaw, training_flops: int, followed: ScalingLaw) -> LawRow:
    optimum = compute_optimum(law, training_flops)
    return LawRow(
        law=law.name,
        source=law.source,
        parameters=optimum.parameters,
        tokens=optimum.tokens,
        tokens_per_parameter=optimum.tokens / optimum.parameters,
        predicted_loss=predicted_loss(law, optimum.parameters, optimum.tokens),
        intervals=optimum_intervals(law, training_flops),
        excess_loss=0.0 if law == followed else excess_loss(followed, training_flops, optimum.parameters),
        wasted_compute=0.0 if law == followed else wasted_compute(followed, training_flops, optimum.parameters),
        extrapolated=extrapolates(law, optimum.parameters, optimum.tokens),
        parameters_mean="all parameters",
        compute_means="6 N D",
        gives="loss",
        quantity=None,
        converted_by=None,
    )


def _row_of_allocation(
    law: AllocationLaw, training_flops: int, followed: ScalingLaw, near: int, shape: LawShape | None
) -> LawRow:
    found, converted_by = allocate_in_shape(law, training_flops, near, shape)
    return LawRow(
        law=law.name,
        source=law.source,
        parameters=found.parameters,
        tokens=found.tokens,
        tokens_per_parameter=found.tokens / found.parameters,
        predicted_loss=None,
        intervals=None,
        excess_loss=excess_loss(followed, training_flops, found.parameters),
        wasted_compute=wasted_compute(followed, training_flops, found.parameters),
        extrapolated=found.extrapolated,
        parameters_mean=law.parameters_mean,
        compute_means=law.compute_means,
        gives=law.gives,
        quantity=found.quantity,
        converted_by=converted_by,
    )
