"""On a CUDA device: the memory that the meta device predicts, against what torch allocates there, within 2 %.

`pytest -m gpu` runs these and writes the figures into tests/cuda_memory.md. Windows, sinks and soft caps run as torch's
FlexAttention on CUDA, which keeps other tensors than the op that is predicted, so families that have them are compared
with eager kernels.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from counting.measurements.live_bytes import LiveBytes
from counting.measurements.meta_device import measuring
from tests.shrunken import FAMILIES
from torch_models.builder import creating
from torch_models.fields.bundled import bundled_data
from torch_models.fields.config import read_spec, spec_from_fields
from torch_models.first_values import initialize
from torch_models.modules.decoder import DecoderLayer
from torch_models.modules.layers import rotary_tables
from torch_models.spec import GroupedQueryAttentionSpec, Kernels, LayerSpec

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: what it allocates is not compared"),
]

TABLE = Path(__file__).parents[2] / "cuda_memory.md"
LENGTH = 2048
BF16 = torch.bfloat16
# Shrunken configs, widened until an allocator's rounding to 512 bytes does not matter.
WIDER = {"hidden_size": 1024, "intermediate_size": 2816, "head_dim": 128, "moe_intermediate_size": 512}
FULL_SIZE = [name.name for name in bundled_data().iterdir() if name.name.endswith("_config.json")]


@pytest.fixture(scope="module")
def rows() -> Iterator[list[str]]:
    found: list[str] = []
    yield found
    if found:
        head = [f"Measured on {torch.cuda.get_device_name()}, torch {torch.__version__}, S = {LENGTH}, bytes.", ""]
        head += ["| layer | kernels | predicted | allocated | apart |", "|---|---|---|---|---|"]
        TABLE.write_text("\n".join([*head, *found]) + "\n", encoding="utf-8")


def kernels_of(spec: LayerSpec) -> Kernels:
    attention = spec.attention
    own_op = isinstance(attention, GroupedQueryAttentionSpec) and attention.needs_own_kernel
    return "eager" if own_op else "fused"


def step(spec: LayerSpec, kernels: Kernels, device: str) -> tuple[Any, ...]:
    with creating(device, BF16):
        layer = DecoderLayer(spec, kernels)
    if device != "meta":
        initialize(layer)
    tables = rotary_tables(spec.attention.rotary, LENGTH, torch.device(device), BF16)
    x = torch.zeros(1, LENGTH, spec.hidden_size, device=device, dtype=BF16).requires_grad_()
    return layer, x, tables


def predicted(spec: LayerSpec, kernels: Kernels) -> int:
    layer, x, tables = step(spec, kernels, "meta")
    with measuring(), LiveBytes([*layer.parameters(), *layer.buffers(), x, *tables]) as tracker:
        layer(x, tables).sum().backward()
    return tracker.peak


def allocated(spec: LayerSpec, kernels: Kernels) -> int:
    """The peak of a second step: the first makes cuBLAS's workspaces, which stay."""
    torch.cuda.empty_cache()
    layer, x, tables = step(spec, kernels, "cuda")
    held = sum(t.untyped_storage().nbytes() for t in (*layer.parameters(), *layer.buffers(), x, *tables))
    layer(x, tables).sum().backward()
    layer.zero_grad()
    x.grad = None
    workspaces = torch.cuda.memory_allocated() - held
    torch.cuda.reset_peak_memory_stats()
    layer(x, tables).sum().backward()
    return torch.cuda.max_memory_allocated() - workspaces


def compare(name: str, spec: LayerSpec, rows: list[str]) -> None:
    kernels = kernels_of(spec)
    ours, theirs = predicted(spec, kernels), allocated(spec, kernels)
    rows.append(f"| {name} | {kernels} | {ours:,} | {theirs:,} | {ours / theirs - 1:+.2%} |")
    assert ours == pytest.approx(theirs, rel=0.02)


@pytest.mark.parametrize("family", FAMILIES)
def test_shrunken_layers(family: str, rows: list[str]) -> None:
    fields = {field: WIDER.get(field, value) for field, value in FAMILIES[family].items()}
    for spec in dict.fromkeys(spec_from_fields(fields, family).layers):
        compare(f"{family}, shrunken, {spec.kind}", spec, rows)


@pytest.mark.parametrize("config", FULL_SIZE)
def test_full_size_layers(config: str, rows: list[str]) -> None:
    compare(config.removesuffix("_config.json"), read_spec(config).layers[-1], rows)
