"""On a CUDA device: two steps of small models; bytes asked for are those of the log, and reserved within 1 %.

`pytest -m gpu` runs these and writes the figures into tests/cuda_reserved.md. Families with windows, sinks and soft
caps are compared with eager kernels, because torch's FlexAttention keeps other tensors than the op that is predicted.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from counting.allocator.replay import replay
from counting.measurements.allocations import log_of_step
from counting.measurements.allocations.steps import MicroBatches, TrainedParts, run_steps
from counting.setup import Setup
from tests.counting.measurements.allocation_logs import requested_at_marks
from tests.counting.measurements.rank_runs import resolved
from tests.shrunken import FAMILIES
from torch_models.builder import build_model_with_loss
from torch_models.fields.config import spec_from_fields
from torch_models.modules.recompute import set_recompute
from torch_models.spec import GroupedQueryAttentionSpec, Kernels, ModelSpec

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: what it reserves is not compared"),
]

TABLE = Path(__file__).parents[3] / "cuda_reserved.md"
# Widened until kernels take the shapes that full-size models have.
WIDER = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "head_dim": 128,
    "moe_intermediate_size": 512,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
}
LENGTH = 2048


@pytest.fixture(scope="module")
def rows() -> Iterator[list[str]]:
    found: list[str] = []
    yield found
    if found:
        head = [f"Measured on {torch.cuda.get_device_name()}, torch {torch.__version__}, S = {LENGTH}, bytes.", ""]
        head += ["| model | segments | asked for: log | device | reserved: replay | device | apart |"]
        TABLE.write_text("\n".join([*head, "|---|---|---|---|---|---|---|", *found]) + "\n", encoding="utf-8")


def kernels_of(spec: ModelSpec) -> Kernels:
    attentions = [layer.attention for layer in spec.layers]
    own_op = any(isinstance(each, GroupedQueryAttentionSpec) and each.needs_own_kernel for each in attentions)
    return "eager" if own_op else "fused"


def on_device(spec: ModelSpec, setup: Setup) -> tuple[int, int]:
    """The most bytes that are asked for, and reserved, in two steps."""
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_allocated() == 0
    torch.cuda.reset_peak_memory_stats()
    dtype = getattr(torch, setup.precision_recipe.activation_dtype)
    model = build_model_with_loss(spec, device="meta", dtype=dtype, kernels=setup.kernels, mtp=False)
    model.to_empty(device="cuda")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(0.01)
    set_recompute(model, setup.recompute)

    def batch() -> tuple[torch.Tensor, torch.Tensor, None]:
        token_ids, labels = (torch.zeros(*setup.micro_batch, dtype=torch.long, device="cuda") for _ in range(2))
        return token_ids, labels, None

    passes = MicroBatches(model, setup, batch, lambda name: None)
    run_steps(setup, TrainedParts([model], setup.precision_recipe), passes, lambda name: None)
    torch.cuda.synchronize()
    return torch.cuda.memory_stats()["requested_bytes.all.peak"], torch.cuda.max_memory_reserved()


@pytest.mark.parametrize("expandable", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_two_steps_of_a_small_model(family: str, expandable: bool, rows: list[str]) -> None:
    fields = {field: WIDER.get(field, value) for field, value in FAMILIES[family].items()}
    spec = spec_from_fields(fields, family)
    setup = resolved(spec, sequence_length=LENGTH, micro_batches=2, kernels=kernels_of(spec))
    events = log_of_step(spec, setup)
    asked = max(peak for _, peak in requested_at_marks(events).values())
    low, high = replay(events, expandable_segments=expandable).reserved_bytes
    torch.cuda.memory._set_allocator_settings(f"expandable_segments:{expandable}")
    try:
        requested, reserved = on_device(spec, setup)
    finally:
        torch.cuda.memory._set_allocator_settings("expandable_segments:False")
    apart = max(low - reserved, reserved - high, 0) / reserved
    segments = "expandable" if expandable else "plain"
    rows.append(
        f"| {family} | {segments} | {asked:,} | {requested:,} | {low:,} to {high:,} | {reserved:,} | {apart:.2%} |"
    )
    assert asked == requested
    assert apart < 0.01
