"""One golden per op with its arithmetic above it, and that nothing which multiplies matrices passes uncounted."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from counting.counts import AttentionCore
from counting.formulas import flops as formulas
from counting.measurements import trace as flops
from counting.measurements.forward import dispatched_flops
from counting.measurements.meta_device import measuring
from counting.measurements.trace import traced_flops
from tests.shrunken import DEEPSEEK_V3, GPT_OSS, LLAMA
from tests.witnesses import forward_of
from torch_models.builder import build_model
from torch_models.fields.config import spec_from_fields
from torch_models.modules.kernels.flash_attention import flash_attention
from torch_models.modules.kernels.grouped_product import grouped_product
from torch_models.modules.language_model import CausalLM
from torch_models.spec import ModelSpec


class Op(nn.Module):
    """A module that is one op."""

    component = "mlp"

    def __init__(self, op: Any) -> None:
        super().__init__()
        self.op = op

    def forward(self, *inputs: Tensor) -> Tensor:
        out: Tensor = self.op(*inputs)
        return out


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(*shape, device="meta", dtype=dtype)


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    grouped = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=1.0, enable_gqa=bool(grouped))


GOLDENS = {
    # 5 x 7 rows, 24 multiply-adds for each of 16 outputs: 5 * 7 * 24 * 16 * 2
    "linear": (F.linear, [meta(5, 7, 24), meta(16, 24)], 26_880),
    # the bias adds and multiplies nothing
    "linear-bias": (F.linear, [meta(5, 7, 24), meta(16, 24), meta(16)], 26_880),
    # 3 products of (8, 16) by (16, 32): 3 * 8 * 16 * 32 * 2
    "matmul": (torch.matmul, [meta(3, 8, 16), meta(3, 16, 32)], 24_576),
    # 4 heads, 10 x 10 scores of 8 channels and as much for the values: 4 * 2 * (100 * 8 * 2)
    "attention": (attention, [meta(1, 4, 10, 8), meta(1, 4, 10, 8), meta(1, 4, 10, 8)], 12_800),
    # 2 key/value heads serve the same 4 query heads
    "attention-grouped": (attention, [meta(1, 4, 10, 8), meta(1, 2, 10, 8), meta(1, 2, 10, 8)], 12_800),
    # scores of 24 channels, values of 16: 4 * 100 * (24 + 16) * 2
    "attention-unequal": (attention, [meta(1, 4, 10, 24), meta(1, 4, 10, 24), meta(1, 4, 10, 16)], 32_000),
    # 40 rows, whichever of 6 experts each goes to, 16 x 32 multiply-adds: 40 * 16 * 32 * 2
    "grouped": (grouped_product, [meta(40, 16), meta(6, 16, 32), meta(6, dtype=torch.int32)], 40_960),
    # the same by the op for dtypes other than bf16
    "grouped-fp32": (
        grouped_product,
        [meta(40, 16, dtype=torch.float32), meta(6, 16, 32, dtype=torch.float32), meta(6, dtype=torch.int32)],
        40_960,
    ),
}


@pytest.mark.parametrize(("op", "inputs", "expected"), GOLDENS.values(), ids=GOLDENS.keys())
def test_op_by_trace_and_by_dispatch(op: Any, inputs: list[Tensor], expected: int) -> None:
    module = Op(op)
    with measuring():
        assert traced_flops(module, tuple(inputs))[0].total == expected
        assert dispatched_flops(module, tuple(inputs)).total == expected


def unused(x: Tensor, weight: Tensor, scores: Tensor) -> Tensor:
    """A product whose result only chooses places, which change no number of the output."""
    places = F.linear(x, scores).topk(2, dim=-1).indices
    assert places.shape == (35, 2)
    return F.linear(x, weight)


def test_a_product_whose_result_is_not_used_is_counted() -> None:
    # 35 rows: 24 multiply-adds for each of 16 outputs, and for each of 4 scores.
    flops_of_both = 35 * 24 * 16 * 2 + 35 * 24 * 4 * 2
    inputs = (meta(35, 24), meta(16, 24), meta(4, 24))
    with measuring():
        assert dispatched_flops(Op(unused), inputs).total == flops_of_both == 33_600
        assert traced_flops(Op(unused), inputs)[0].total == flops_of_both


@pytest.mark.parametrize(
    ("name", "op", "inputs"),
    [
        ("aten::baddbmm", torch.baddbmm, [meta(3, 8, 32), meta(3, 8, 16), meta(3, 16, 32)]),
        ("aten::einsum", lambda x, y: torch.einsum("ij,jk->ik", x, y), [meta(8, 16), meta(16, 32)]),
        ("aten::addmm", torch.addmm, [meta(32), meta(8, 16), meta(16, 32)]),
        ("aten::mv", torch.mv, [meta(8, 16), meta(16)]),
        ("aten::outer", torch.outer, [meta(8), meta(16)]),
        ("aten::exp", torch.exp, [meta(8)]),
    ],
)
def test_an_op_without_a_formula_is_an_error_with_its_name(name: str, op: Any, inputs: list[Tensor]) -> None:
    with measuring(), pytest.raises(AssertionError, match=f"ops without a FLOP formula: {name}"):
        traced_flops(Op(op), tuple(inputs))


def test_a_broadcast_product_is_refused_rather_than_miscounted() -> None:
    with measuring(), pytest.raises(AssertionError, match="no formula for matmul"):
        traced_flops(Op(torch.matmul), (meta(3, 8, 16), meta(16, 32)))


def test_flops_outside_every_component_are_an_error() -> None:
    module = nn.Sequential(nn.Linear(8, 8, device="meta"))
    with measuring(), pytest.raises(AssertionError, match="belongs to no component"):
        traced_flops(module, (meta(4, 8, dtype=torch.float32),))


def test_a_second_formula_for_an_op_is_refused() -> None:
    with pytest.raises(AssertionError, match="aten::linear has a formula already"):
        flops.register("aten::linear", "projection")(lambda *shapes: 0)


def without_windows(fields: dict[str, Any]) -> dict[str, Any]:
    if "sliding_window" not in fields:
        return fields
    return fields | {"layer_types": ["full_attention"] * fields["num_hidden_layers"]}


def attention_core(spec: ModelSpec, sequence_length: int, batch_size: int) -> AttentionCore:
    layers = (formulas.attention_core(layer.attention, sequence_length, batch_size) for layer in spec.layers)
    return sum(layers, AttentionCore())


@pytest.mark.parametrize("kernels", ["fused", "eager"])
@pytest.mark.parametrize("fields", [LLAMA, DEEPSEEK_V3, GPT_OSS], ids=["llama", "deepseek_v3", "gpt_oss"])
def test_the_whole_model_traced_is_the_sum_of_its_layers(fields: dict[str, Any], kernels: Any) -> None:
    spec = spec_from_fields(fields, "shrunken")
    model = build_model(spec, device="meta", dtype=torch.bfloat16, kernels=kernels)
    ids = meta(1, 32, dtype=torch.int64)
    if kernels == "eager":  # the window hides, and spares nothing
        spec = spec_from_fields(without_windows(fields), "shrunken")
    expected = forward_of(spec, 32, 1)
    with measuring():
        assert traced_flops(model, (ids,)) == (expected, attention_core(spec, 32, 1))
        assert dispatched_flops(model, (ids,)) == expected


def test_real_tensors_cost_what_meta_tensors_do() -> None:
    spec = spec_from_fields(DEEPSEEK_V3, "shrunken")
    model: CausalLM = build_model(spec, dtype=torch.float32, kernels="eager")
    ids = torch.randint(0, 96, (1, 32))
    assert dispatched_flops(model, (ids,)) == forward_of(spec, 32, 1)


def test_two_sequences_cost_twice_one() -> None:
    spec = spec_from_fields(DEEPSEEK_V3, "shrunken")
    model = build_model(spec, device="meta", dtype=torch.bfloat16)
    with measuring():
        counts, core = traced_flops(model, (meta(2, 32, dtype=torch.int64),))
    assert counts == forward_of(spec, 32, 2) == 2 * forward_of(spec, 32, 1)
    assert core == attention_core(spec, 32, 2)


# 4 heads of 8 channels, 10 positions, window 3: a pair costs 2 * 8 for its score and 2 * 8 for its value.
# As run 4 * 10 * 3 * 32; causally 4 * (10 * 3 - 3 * 3 / 2) * 32; the square 4 * 10 * 10 * 32.
WINDOW_GOLDENS = {3: (3_840, 3_264, 12_800), 10: (12_800, 6_400, 12_800), None: (12_800, 6_400, 12_800)}


@pytest.mark.parametrize(("window", "expected"), WINDOW_GOLDENS.items())
def test_fused_attention_with_a_window(window: int | None, expected: tuple[int, int, int]) -> None:
    def op(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out: Tensor = flash_attention(query, key, value, None, 1.0, window, None)[0]
        return out

    module, inputs = Op(op), (meta(1, 4, 10, 8), meta(1, 2, 10, 8), meta(1, 2, 10, 8))
    with measuring():
        counts, core = traced_flops(module, inputs)
        assert dispatched_flops(module, inputs) == counts
    assert (core.as_run, core.causal, core.full_square) == expected
    assert counts.total == expected[0]


# The same heads, and chunks of 4: squares of 4, 4 and 2 positions, 36 pairs. As run 4 * 36 * 32, causally half of it.
CHUNK_GOLDENS = {4: (4_608, 2_304, 12_800), 10: (12_800, 6_400, 12_800), 11: (12_800, 6_400, 12_800)}


@pytest.mark.parametrize(("chunk", "expected"), CHUNK_GOLDENS.items())
def test_fused_attention_in_chunks(chunk: int, expected: tuple[int, int, int]) -> None:
    def op(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out: Tensor = flash_attention(query, key, value, None, 1.0, None, None, chunk)[0]
        return out

    module, inputs = Op(op), (meta(1, 4, 10, 8), meta(1, 2, 10, 8), meta(1, 2, 10, 8))
    with measuring():
        counts, core = traced_flops(module, inputs)
        assert dispatched_flops(module, inputs) == counts
    assert (core.as_run, core.causal, core.full_square) == expected
    assert counts.total == expected[0]
