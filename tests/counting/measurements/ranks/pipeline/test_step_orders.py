"""The order of all passes of a step, against the schedules that torch runs with messages, and against the formula's."""

from functools import partial
from typing import Any

import pytest

from counting.formulas.layouts.pipeline.order import Pass, passes_in_order
from counting.measurements.meta_device import measuring
from counting.measurements.ranks.pipeline.prepared import (
    computed_dtype,
    local_micro_batch,
    shares_embedding,
    states_of_stage,
)
from counting.measurements.ranks.pipeline.schedules import run_order
from counting.measurements.ranks.pipeline.step_orders import step_orders
from counting.ranks.pipeline import MOST_ORDERED, micro_batches_to_order
from counting.work import OrderedPass
from tests.counting.measurements.rank_runs import layout_of, resolved
from tests.shrunken import FAMILIES
from torch_models.errors import ArgumentError
from torch_models.fields.config import spec_from_fields
from torch_models.layout import Layout
from torch_models.stages import stages_of

OF_BATCHES = ("forward", "backward", "input_backward", "weight_backward")
LAYOUTS: list[tuple[str, dict[str, Any], int]] = [
    ("llama", {"pp": 3, "schedule": "gpipe"}, 4),
    ("llama", {"pp": 3}, 7),
    ("llama", {"pp": 2, "fsdp": 2}, 5),
    ("llama", {"pp": 2, "fsdp": 2, "schedule": "interleaved", "stages_per_rank": 4}, 6),
    ("llama", {"pp": 2, "fsdp": 2, "schedule": "zb"}, 4),
    ("llama", {"pp": 2, "schedule": "zbv"}, 5),
    ("deepseek_v3", {"pp": 2, "fsdp": 2, "ep": 2, "schedule": "dualpipev"}, 6),
    ("deepseek_v3", {"pp": 2}, 3),
]


def orders_of(family: str, axes: dict[str, Any], number: int) -> tuple[list[tuple[OrderedPass, ...]], Any, Any, Layout]:
    layout = layout_of(**axes)
    spec = spec_from_fields(FAMILIES[family] | {"num_hidden_layers": 9}, family)
    setup = resolved(spec, sequence_length=32, micro_batches=number, mtp=bool(spec.mtp_layers))
    stages = stages_of(spec, layout)
    states_of, shares = partial(states_of_stage, setup, layout), partial(shares_embedding, setup, layout)
    return list(step_orders(stages, layout, number, states_of, shares)), stages, setup, layout


@pytest.mark.parametrize(("family", "axes", "number"), LAYOUTS)
def test_orders_are_those_of_torch_and_of_the_formula(family: str, axes: dict[str, Any], number: int) -> None:
    """Torch's own stages, which send messages, are run in this order; and so does the rule of each schedule."""
    orders, stages, setup, layout = orders_of(family, axes, number)
    for rank, order in enumerate(orders):
        own = [stages[index] for index in layout.stages_of_rank(rank)]
        with measuring():
            ran = run_order(
                own,
                layout,
                rank,
                local_micro_batch(setup, layout),
                number,
                computed_dtype(setup),
                partial(states_of_stage, setup, layout),
                partial(shares_embedding, setup, layout),
            )
        expected = [(one.kind, f"{one.kind} {one.found}", one.stage, one.micro_batch) for one in ran.passes]
        assert [(one.kind, one.key, one.stage, one.micro_batch) for one in order] == expected
        of_batches = [Pass(one.kind, one.stage, one.micro_batch or 0) for one in order if one.kind in OF_BATCHES]
        assert of_batches == passes_in_order(layout, rank, number)


def test_golden_order_of_1f1b() -> None:
    """2 stages, 3 micro-batches: the first rank runs 2 forward passes, then B and F in turn; the second 1."""
    orders, *_ = orders_of("llama", {"pp": 2}, 3)
    letters = [" ".join(f"{one.kind[0]}{one.micro_batch}" for one in order) for order in orders]
    assert letters == ["f0 f1 b0 f2 b1 b2", "f0 b0 f1 b1 f2 b2"]


def test_a_number_that_the_schedule_refuses_is_an_error() -> None:
    with pytest.raises(ArgumentError, match="micro_batches"):
        orders_of("llama", {"pp": 4}, 2)


@pytest.mark.parametrize(
    ("axes", "number", "expected"),
    [
        # 16 ranks with 2 stages, 3 passes of each micro-batch: 96 each, so 20,000 / 96 = 208 of them.
        ({"pp": 16, "schedule": "dualpipev"}, 120, 120),
        ({"pp": 16, "schedule": "dualpipev"}, 10**9, 208),
        # 2 passes of 4 stages: 2,500.
        ({"pp": 4}, 10**6, 2500),
        # Rounds of 4 micro-batches with 2 x 8 passes each: 1,250 = 312 rounds of 4 and a rest.
        ({"pp": 4, "schedule": "interleaved"}, 4 * 10**6, 1248),
        # 1,024 stages have more passes in 10 micro-batches; there are at least twice as many as stages, or all.
        ({"pp": 1024}, 10**6, 2048),
        ({"pp": 1024}, 1500, 1500),
    ],
)
def test_golden_micro_batches_in_the_order(axes: dict[str, Any], number: int, expected: int) -> None:
    assert MOST_ORDERED == 20_000
    assert micro_batches_to_order(layout_of(**axes), number) == expected
