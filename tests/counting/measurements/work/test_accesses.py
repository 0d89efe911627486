"""Bytes of single ops; every number is worked out beside it. BF16 has 2 bytes a number, FP32 4, an index 8."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.counting.measurements.work_runs import bytes_of, ops_of


def bf16(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, device="meta")


def fp32(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device="meta")


def index(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.int64, device="meta")


Case = tuple[Callable[..., object], tuple[Tensor, ...], list[tuple[str, int, int]]]

CASES: dict[str, Case] = {
    "elementwise": (torch.mul, (bf16(8, 16), bf16(8, 16)), [("mul", 2 * 8 * 16 * 2, 8 * 16 * 2)]),
    "one tensor twice is read once": (lambda x: x * x, (bf16(8, 16),), [("mul", 8 * 16 * 2, 8 * 16 * 2)]),
    # A row of 16 numbers that is expanded to 8 rows is 16 numbers.
    "expanded": (lambda x, row: x * row.expand(8, 16), (bf16(8, 16), bf16(16)), [("mul", 8 * 16 * 2 + 16 * 2, 256)]),
    "a row of several is expanded": (
        lambda x, rows: x * rows[0].expand(8, 16),
        (bf16(8, 16), bf16(32, 16)),
        [("mul", 8 * 16 * 2 + 16 * 2, 256)],
    ),
    # The first 4 of 16 columns are read, and 4 columns are written.
    "part": (lambda x: x[:, :4].neg(), (bf16(8, 16),), [("neg", 8 * 4 * 2, 8 * 4 * 2)]),
    "in place": (lambda x, y: x.add_(y), (bf16(8), bf16(8)), [("add_", 2 * 16, 16)]),
    "overwritten": (lambda x: x.zero_(), (bf16(8),), [("zero_", 0, 16)]),
    "copied with conversion": (lambda x, y: x.copy_(y), (bf16(8), fp32(8)), [("copy_", 32, 16)]),
    "to a wider format": (lambda x: x.float(), (bf16(8),), [("_to_copy", 16, 32)]),
    "filled when made": (
        lambda x: (torch.zeros_like(x), x.new_ones(4)),
        (bf16(8),),
        [("zeros_like", 0, 16), ("new_ones", 0, 8)],
    ),
    "views": (lambda x: x.view(4, 32).t().chunk(2)[0].unsqueeze(0).expand(3, 16, 4).detach(), (bf16(8, 16),), []),
    "allocated": (lambda x: (torch.empty_like(x), x.new_empty(3)), (bf16(8),), []),
    "no numbers": (lambda x: x + 1, (bf16(0),), []),
    "joined": (lambda x, y: torch.cat((x, y)), (bf16(8), bf16(4)), [("cat", 16 + 8, 24)]),
    # 8 values of 2 bytes and 8 indices of 8 bytes are written.
    "sorted": (lambda x: x.sort(), (bf16(8),), [("sort", 16, 16 + 64)]),
    "best": (lambda x: x.topk(2), (bf16(4, 8),), [("topk", 64, 4 * 2 * 2 + 4 * 2 * 8)]),
    # 4 rows of 16 numbers are taken out of 32, and their 4 indices read.
    "embedding": (lambda w, i: F.embedding(i, w), (bf16(32, 16), index(4)), [("embedding", 128 + 32, 128)]),
    # 4 rows out of 2: each is read once.
    "rows taken twice": (lambda w, i: F.embedding(i, w), (bf16(2, 16), index(4)), [("embedding", 64 + 32, 128)]),
    "rows of a part taken twice": (
        lambda w, i: F.embedding(i, w[:2]),
        (bf16(32, 16), index(4)),
        [("embedding", 64 + 32, 128)],
    ),
    "rows": (lambda x, i: x.index_select(0, i), (bf16(32, 16), index(4)), [("index_select", 128 + 32, 128)]),
    "rows by brackets": (lambda x, i: x[i], (bf16(32, 16), index(4)), [("index", 128 + 32, 128)]),
    "picked": (lambda x, i: x.gather(1, i), (fp32(32, 16), index(32, 2)), [("gather", 256 + 512, 256)]),
    # All 32 rows of the gradient are written, those without a token as zeros.
    "gradient of an embedding": (
        lambda g, i: torch.ops.aten.embedding_dense_backward(g, i, 32, -1, False),
        (bf16(4, 16), index(4)),
        [("embedding_dense_backward", 128 + 32, 32 * 16 * 2)],
    ),
    # 4 rows of 16 numbers are added to 4 of the 32 rows, which are read and written; an expanded index is 4 numbers.
    "rows added": (
        lambda x, i, rows: x.scatter_add_(0, i.unsqueeze(1).expand(4, 16), rows),
        (bf16(32, 16), index(4), bf16(4, 16)),
        [("scatter_add_", 128 + 32 + 128, 128)],
    ),
    "rows added to fewer": (
        lambda x, i, rows: x.index_add_(0, i, rows),
        (bf16(2, 16), index(4), bf16(4, 16)),
        [("index_add_", 64 + 32 + 128, 64)],
    ),
    "rows put": (
        lambda x, i, rows: x.index_put_((i,), rows),
        (bf16(32, 16), index(4), bf16(4, 16)),
        [("index_put_", 32 + 128, 128)],
    ),
    "rows put and added": (
        lambda x, i, rows: x.index_put_((i,), rows, accumulate=True),
        (bf16(32, 16), index(4), bf16(4, 16)),
        [("index_put_", 128 + 32 + 128, 128)],
    ),
    # A copy of the whole target, with what is put into it.
    "put into a copy": (
        lambda x, i: x.scatter(1, i, 0.0),
        (bf16(4, 16), index(4, 2)),
        [("scatter", 4 * 16 * 2 + 64, 4 * 16 * 2)],
    ),
    # Of each of 4 rows of 32 logarithms one is read, and its label; the loss and the number of labels are written.
    "loss": (
        lambda x, i: torch.ops.aten.nll_loss_forward(x, i, None, 2, -100),
        (fp32(4, 32), index(4)),
        [("nll_loss_forward", 4 * 4 + 32, 4 + 4)],
    ),
    # The gradient has all 4 x 32 numbers; the logarithms are not read.
    "gradient of the loss": (
        lambda g, x, i, n: torch.ops.aten.nll_loss_backward(g, x, i, None, 2, -100, n),
        (fp32(), fp32(4, 32), index(4), fp32()),
        [("nll_loss_backward", 4 + 32 + 4, 4 * 32 * 4)],
    ),
    "lists": (
        lambda x, y, a, b: torch._foreach_copy_([x, y], [a, b]),
        (bf16(8), bf16(4), fp32(8), fp32(4)),
        [("_foreach_copy_", 48, 24)],
    ),
    "norms of a list": (lambda x, y: torch._foreach_norm([x, y]), (fp32(8), fp32(4)), [("_foreach_norm", 48, 8)]),
    # Weight, gradient and two moments of 8 numbers in FP32 are read, and a counter; all but the last and the gradient
    # are written.
    "fused update": (
        lambda w, g, m, v, n: torch._fused_adamw_(
            [w], [g], [m], [v], [], [n], lr=1.0, beta1=0.9, beta2=0.9, weight_decay=0.0, eps=1.0, amsgrad=False,
            maximize=False,
        ),
        (fp32(8), fp32(8), fp32(8), fp32(8), fp32()),
        [("_fused_adamw_", 4 * 32 + 4, 3 * 32)],
    ),
    # (8, 16) x (16, 4), and a bias of 4 numbers.
    "product": (torch.mm, (bf16(8, 16), bf16(16, 4)), [("mm", 256 + 128, 64)]),
    "product with bias": (torch.addmm, (bf16(4), bf16(8, 16), bf16(16, 4)), [("addmm", 8 + 256 + 128, 64)]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bytes_of_an_op(name: str) -> None:
    function, inputs, expected = CASES[name]
    assert bytes_of(ops_of(function, *inputs)) == expected


def test_fused_norm() -> None:
    """8 rows of 16: forward reads them and the weight, and writes them and 1 / rms in FP32.

    Backward reads the gradient, the rows, the weight and 1 / rms, and writes the gradients of rows and weight.
    """
    x, weight, gradient = bf16(8, 16).requires_grad_(), bf16(16).requires_grad_(), bf16(8, 16)
    ops = ops_of(lambda x, weight, g: F.rms_norm(x, (16,), weight, 1e-6).backward(g), x, weight, gradient)
    assert bytes_of(ops) == [
        ("_fused_rms_norm", 256 + 32, 256 + 8 * 4),
        ("_fused_rms_norm_backward", 256 + 256 + 32 + 32, 256 + 32),
    ]


def test_shards_are_copied_into_and_out_of_buffers() -> None:
    """fully_shard's copies for 4 ranks, of shards with 6 and 2 numbers in BF16 and gradients in FP32.

    The shards take their place in the buffer of 4 x 8; what all ranks have sent is copied to both parameters; their
    gradients, of 24 and 8 numbers, are converted into a buffer.
    """
    import torch.distributed.fsdp

    fsdp = torch.ops.fsdp
    gather = ops_of(lambda a, b, out: fsdp.all_gather_copy_in([a, b], out, [6, 2], 8, 0), bf16(6), bf16(2), bf16(32))
    assert bytes_of(gather) == [("all_gather_copy_in", 16, 16)]
    copy_out = ops_of(
        lambda gathered, a, b: fsdp.split_with_sizes_copy(gathered.view(4, 8), [6, 2], 1, out=[a, b]),
        bf16(32),
        bf16(4, 6),
        bf16(4, 2),
    )
    assert bytes_of(copy_out) == [("split_with_sizes_copy", 64, 64)]
    copy_in = ops_of(lambda a, b, out: fsdp.chunk_cat([a, b], 0, 4, out=out), bf16(24), bf16(8), fp32(4, 8))
    assert bytes_of(copy_in) == [("chunk_cat", 64, 128)]
