"""What products and attention multiply, and what their kernels compute."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from counting.measurements.work.shapes import visible_pairs
from counting.work import Op
from tests.counting.measurements.work_runs import ops_of
from torch_models.modules.kernels.flash_attention import flash_attention
from torch_models.modules.kernels.grouped_product import grouped_product

SEQUENCES, HEADS, GROUPS, LENGTH, CHANNELS = 2, 4, 2, 16, 8


def tensor(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta", requires_grad=dtype.is_floating_point)


def multiplied(ops: tuple[Op, ...]) -> list[Op]:
    return [op for op in ops if op.flops]


def test_products() -> None:
    """2 FLOPs for each multiply-add of (rows, summed) x (summed, columns), as often as the batch is large."""
    (one,) = ops_of(torch.mm, tensor(3, 5), tensor(5, 7))
    assert (one.kind, one.shape, one.flops, one.computed_flops) == ("product", (1, 3, 5, 7), 210, 210)
    (of_batch,) = ops_of(torch.bmm, tensor(4, 3, 5), tensor(4, 5, 7))
    assert (of_batch.shape, of_batch.flops) == ((4, 3, 5, 7), 840)
    (added,) = ops_of(torch.addmm, *(tensor(*shape, dtype=torch.float32) for shape in [(7,), (3, 5), (5, 7)]))
    assert (added.shape, added.dtype, added.flops) == ((1, 3, 5, 7), "float32", 210)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_grouped_products(dtype: torch.dtype) -> None:
    """32 rows of 16 with 4 experts' (16, 24): forward, and the gradients of rows and weights, 2 x 32 x 16 x 24 each."""
    rows, weights = tensor(32, 16, dtype=dtype), tensor(4, 16, 24, dtype=dtype)
    ends = torch.empty(4, dtype=torch.int32, device="meta")
    gradient = torch.empty(32, 24, dtype=dtype, device="meta")
    ops = ops_of(
        lambda rows, weights, ends, g: grouped_product(rows, weights, ends).backward(g), rows, weights, ends, gradient
    )
    found = {(op.kind, op.shape, op.flops, op.computed_flops) for op in multiplied(ops)}
    flops = 2 * 32 * 16 * 24
    assert found == {
        ("grouped_product", (4, 32, 16, 24), flops, flops),
        ("grouped_product", (4, 32, 24, 16), flops, flops),
        ("grouped_product", (4, 16, 32, 24), flops, flops),
    }


def test_visible_pairs() -> None:
    """4 queries: 1 + 2 + 3 + 4 keys; with a window of 2: 1 + 2 + 2 + 2; one as long as the sequence is none."""
    assert visible_pairs(4, 4) == 10
    assert visible_pairs(4, 4, 2) == 7
    assert visible_pairs(4, 4, 4) == visible_pairs(4, 4, 9) == 10


def attention_ops(function: object, keys: int = GROUPS, channels_of_value: int = CHANNELS) -> tuple[Op, Op]:
    query, key = tensor(SEQUENCES, HEADS, LENGTH, CHANNELS), tensor(SEQUENCES, keys, LENGTH, CHANNELS)
    value = tensor(SEQUENCES, keys, LENGTH, channels_of_value)
    gradient = torch.empty(SEQUENCES, HEADS, LENGTH, channels_of_value, dtype=torch.bfloat16, device="meta")
    ops = ops_of(lambda q, k, v, g: function(q, k, v).backward(g), query, key, value, gradient)  # type: ignore[operator]
    forward, backward = [op for op in ops if op.kind == "attention"]
    return forward, backward


@pytest.mark.parametrize("is_causal", [True, False])
def test_flash_attention(is_causal: bool) -> None:
    """Forward two products for each pair of query and key, backward five, of 2 C FLOPs a head.

    The full square has S^2 = 256 pairs, its causal half S (S + 1) / 2 = 136.
    """
    forward, backward = attention_ops(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=is_causal, enable_gqa=True)
    )
    shape = (SEQUENCES, HEADS, LENGTH, LENGTH, CHANNELS, CHANNELS)
    pair = SEQUENCES * HEADS * 2 * CHANNELS
    visible = 136 if is_causal else 256
    assert (forward.shape, forward.backward, backward.shape, backward.backward) == (shape, False, shape, True)
    assert (forward.flops, forward.computed_flops) == (2 * pair * 256, 2 * pair * visible)
    assert (backward.flops, backward.computed_flops) == (5 * pair * 256, 5 * pair * visible)


def test_attention_with_unequal_head_sizes() -> None:
    """As latent attention: scores over C = 8, values of 4. Forward 2 (8 + 4) FLOPs a pair, backward 2 (3 x 8 + 2 x 4).

    Backward has the scores again, and the gradients of queries and keys over C, of probabilities and values over 4.
    """
    forward, backward = attention_ops(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), keys=HEADS, channels_of_value=4
    )
    heads = SEQUENCES * HEADS
    assert forward.name == "_scaled_dot_product_efficient_attention"
    assert forward.shape == backward.shape == (SEQUENCES, HEADS, LENGTH, LENGTH, CHANNELS, 4)
    assert (forward.flops, forward.computed_flops) == (heads * 24 * 256, heads * 24 * 136)
    assert (backward.flops, backward.computed_flops) == (heads * 64 * 256, heads * 64 * 136)


@pytest.mark.parametrize(
    ("window", "chunk", "counted", "visible"), [(None, None, 256, 136), (4, None, 64, 58), (None, 6, 88, 52)]
)
def test_attention_with_a_window(window: int | None, chunk: int | None, counted: int, visible: int) -> None:
    """A window of 4 is counted as 16 x 4 pairs; of these 1 + 2 + 3 + 13 x 4 = 58 are visible.

    Chunks of 6 are squares of 6, 6 and 4 positions; of 36 + 36 + 16 pairs 21 + 21 + 10 are visible.
    """
    forward, backward = attention_ops(lambda q, k, v: flash_attention(q, k, v, None, 1.0, window, None, chunk)[0])
    pair = SEQUENCES * HEADS * 2 * CHANNELS
    assert (forward.flops, forward.computed_flops) == (2 * pair * counted, 2 * pair * visible)
    assert (backward.flops, backward.computed_flops) == (5 * pair * counted, 5 * pair * visible)
    assert (forward.backward, backward.backward) == (False, True)
