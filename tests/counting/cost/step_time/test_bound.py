"""The bound of measured steps against their estimate, under all axes, where nothing makes the estimate slower.

The estimate has the bound's rates, links as printed, and neither launches nor latency: what is left between the two is
what the model of time says of overlap and waiting. Nodes are small, so that groups cross them.
"""

from itertools import pairwise
from typing import Any

import pytest
from msgspec import structs

from counting.cost.cluster import Cluster
from counting.cost.rates import Link, ProductRates
from counting.cost.step_time.stretches import StretchTimer
from counting.cost.step_time.whole_step import bound_of_step, lay_out_step
from counting.setup import Setup
from counting.timing import work_of_step
from counting.work import StepWork
from tests.counting.cost.hand_made import ROUND, TERA, cluster
from tests.counting.measurements.rank_runs import layout_of, resolved
from tests.counting.measurements.work_runs import stretches_of
from tests.shrunken import DEEPSEEK_V3, LLAMA
from torch_models.fields.config import spec_from_fields
from torch_models.layout import Layout
from torch_models.recomputed_layers import with_recompute

Case = tuple[dict[str, Any], dict[str, Any], dict[str, Any]]  # model, axes, settings
CASES: list[Case] = [
    (LLAMA, {"dp": 2, "fsdp": 2, "zero": 2}, {"micro_batches": 3, "execution": "compiled"}),
    (LLAMA, {"fsdp": 2, "cp": 4}, {}),
    (LLAMA, {"fsdp": 3, "tp": 2}, {"micro_batches": 2}),
    (DEEPSEEK_V3, {"dp": 2, "fsdp": 4, "ep": 2}, {"recompute": "full", "clip_gradients": True}),
    (LLAMA, {"pp": 2, "fsdp": 2, "tp": 2}, {"micro_batches": 4}),
    (DEEPSEEK_V3, {"pp": 2, "fsdp": 4, "ep": 2}, {"micro_batches": 4, "clip_gradients": True}),
]
NONE = 1e9  # no limit
SPEEDS = [  # TFLOP/s, TB/s, GB/s in a node and across: what limits the step is another one each time
    (1.0, 1.0, 1.0, 1.0),
    (1e-3, NONE, NONE, NONE),
    (NONE, 1e-3, NONE, NONE),
    (NONE, NONE, 1.0, 0.1),
    (NONE, NONE, 0.1, 1.0),
]


def on(tera: float, bandwidth: float, node: float, network: float, gpus_per_node: int = 8) -> Cluster:
    """Best rates are sustained, and products beside collectives as fast as others."""
    products = ProductRates(best_tflop_per_s=tera, sustained_tflop_per_s=tera, source="round numbers")
    rates = structs.replace(
        ROUND,
        bf16=products,
        fp32=products,
        memory_bandwidth_share=1.0,
        beside_collectives_share=1.0,
        node_link=Link(gb_per_s=node, latency_seconds=0),
        network_link=Link(gb_per_s=network, latency_seconds=0),
    )
    gpu = structs.replace(
        cluster().gpu,
        architecture=None,  # no other has rates of attention or experts for it
        peak_dense_tflop_per_s=tera,
        memory_bandwidth_tb_per_s=bandwidth,
        rates=rates,
    )
    return Cluster(gpu=gpu, gpus_per_node=gpus_per_node)


def measured(case: Case, **more: Any) -> tuple[StepWork, Setup, Layout]:
    fields, axes, settings = case
    spec = spec_from_fields(fields, fields["model_type"])
    setup = resolved(spec, **{"sequence_length": 32, **settings, **more})
    layout = layout_of(**axes)
    return work_of_step(with_recompute(spec, setup.recompute), setup, layout), setup, layout


def bound_and_estimate(work: StepWork, setup: Setup, layout: Layout | None, machines: Cluster) -> tuple[float, float]:
    bound, estimate = (StretchTimer(setup, layout, machines, style) for style in ("bound", "estimate"))
    estimate.machine = structs.replace(estimate.machine, collective_call_seconds=0.0)
    return bound_of_step(work, bound), lay_out_step(work, estimate).seconds


def name(case: Case) -> str:
    return ",".join(f"{axis}={size}" for axis, size in case[1].items())


@pytest.mark.parametrize("case", CASES, ids=name)
def test_the_bound_of_a_measured_step_is_never_above_its_estimate(case: Case) -> None:
    """And as long, without limits but that of products and but for the bubble."""
    work, setup, layout = measured(case)
    for speeds in SPEEDS:
        for gpus_per_node in (1, 2, 3, 8):
            bound, estimate = bound_and_estimate(work, setup, layout, on(*speeds, gpus_per_node))
            assert 0 < bound <= estimate * (1 + 1e-9), (speeds, gpus_per_node)
    bound, estimate = bound_and_estimate(work, setup, layout, on(*SPEEDS[1]))
    assert bound == pytest.approx(estimate, rel=1e-3)
    if layout.pp == 1:
        computed = sum(
            op.calls * op.computed_flops * times
            for stretch, times in stretches_of(work, work.ranks[0])
            for op in stretch.ops
        )
        assert bound == pytest.approx(computed / (SPEEDS[1][0] * TERA), rel=1e-3)


def test_clipping_takes_its_bytes_and_its_sums() -> None:
    """Llama's 30 gradients on 4 ranks, at 1 GB/s of memory and 1 MB/s between ranks.

    Gradients are read twice and written once. Of the n = 30 norms of 4 bytes: made, stacked, squared, the roots of
    their sums, and one norm of all, 1 + 2 + 4 + 1 times, and 4 more bytes; 8 for each of four ops on one number, and
    the factor. Twice round a ring of 4: 2 x 3/4 x 120 bytes.
    """
    times = []
    for clips in (False, True):
        work, setup, layout = measured((LLAMA, {"fsdp": 4}, {"clip_gradients": clips}))
        times.append(bound_and_estimate(work, setup, layout, on(NONE, 1e-3, 1e-3, 1e-3))[1])
    gradients = 3 * (4 * 64 * 64 + 3 * 64 * 112 + 2 * 64) + 2 * 96 * 64 + 64
    of_memory = (3 * gradients + 8 * 4 * 30 + 4 + 4 * 8 + 4) / 1e9
    assert times[1] - times[0] == pytest.approx(of_memory + 2 * 3 / 4 * 120 / 1e6, rel=1e-6)


@pytest.mark.parametrize("case", [CASES[2], CASES[3]], ids=name)
def test_of_the_bound_of_a_measured_step_a_larger_micro_batch_is_never_slower_a_token(case: Case) -> None:
    works = [(size, *measured(case, micro_batch_size=size)) for size in (1, 2, 5)]
    for speeds in SPEEDS:
        a_token = [bound_and_estimate(*work, on(*speeds))[0] / size for size, *work in works]
        for smaller, larger in pairwise(a_token):
            assert larger <= smaller * (1 + 1e-9), speeds
