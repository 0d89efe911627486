"""Times of a step that are made by hand, so that runs and reports can be tested without measuring any."""

from typing import Any

from counting.step.time import StepTime, TimeBreakdown

BREAKDOWN = TimeBreakdown(
    products=9.0,
    attention=2.0,
    memory_bound=3.0,
    communication={"tp": 1.5, "fsdp": 0.5},
    bubble=1.0,
    optimizer=1.0,
)
TIME = StepTime(
    gpu="H100",
    basis="estimate",
    seconds=18.0,
    bound_seconds=15.0,
    low_seconds=16.0,
    high_seconds=20.0,
    tokens_per_second_per_gpu=8900.0,
    mfu=0.4,
    hfu=0.45,
    bound_mfu=0.48,
    breakdown=BREAKDOWN,
    rates_of="H100",
    assumptions=("experts receive equal numbers of tokens", "collectives run as rings"),
)


def step_time_like(**changes: Any) -> StepTime:
    """`TIME` with these fields changed."""
    fields = {field: getattr(TIME, field) for field in TIME.__struct_fields__}
    return StepTime(**(fields | changes))
