"""The grouped product in every dtype: its numbers, what its fake kernels promise, on real tensors and on meta."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from torch_models.modules.kernels.grouped_product import grouped_product, grouped_weight_gradient, product_by_group

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
ENDS = [3, 3, 9, 10]  # the second group is empty


def inputs(dtype: torch.dtype, *, transposed: bool = False, device: str = "cpu") -> tuple[Tensor, ...]:
    """Rows (10, 8), weights (4, 8, 24), as a view of (4, 24, 8) if `transposed`, and the groups' ends."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    rows = random(10, 8).requires_grad_()
    weights = random(4, 24, 8).transpose(1, 2) if transposed else random(4, 8, 24)
    return rows, weights.requires_grad_(), torch.tensor(ENDS, dtype=torch.int32, device=device)


def row_by_row(rows: Tensor, weights: Tensor) -> Tensor:
    groups = [next(group for group, end in enumerate(ENDS) if row < end) for row in range(len(rows))]
    return torch.stack([row @ weights[group] for row, group in zip(rows, groups, strict=True)])


@pytest.mark.parametrize("transposed", [False, True], ids=["as-stored", "transposed"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_and_gradients_are_those_of_each_row(dtype: torch.dtype, transposed: bool) -> None:
    rows, weights, ends = inputs(dtype, transposed=transposed)
    out, expected = grouped_product(rows, weights, ends), row_by_row(rows, weights)
    assert out.dtype == dtype
    torch.testing.assert_close(out, expected)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    got, right = (torch.autograd.grad(each, (rows, weights), weight) for each in (out, expected))
    loose: dict[str, Any] = {"rtol": 2e-2, "atol": 2e-2} if dtype.itemsize == 2 else {}
    torch.testing.assert_close(got, right, **loose)


@pytest.mark.parametrize("transposed", [False, True], ids=["as-stored", "transposed"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_real_kernels_keep_what_the_fake_ones_promise(dtype: torch.dtype, transposed: bool) -> None:
    rows, weights, ends = inputs(dtype, transposed=transposed)
    torch.library.opcheck(product_by_group, (rows, weights, ends))
    gradient = torch.ones(10, 24, dtype=dtype)
    torch.library.opcheck(grouped_weight_gradient, (rows.detach(), gradient, weights.detach(), ends))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_compiled_it_is_what_it_is_in_eager(dtype: torch.dtype) -> None:
    rows, weights, ends = inputs(dtype, transposed=True)
    torch._dynamo.reset()
    compiled = torch.compile(grouped_product, backend="aot_eager", fullgraph=True)
    outs = [product(rows, weights, ends) for product in (compiled, grouped_product)]
    assert torch.equal(*outs)
    of_compiled, of_eager = (torch.autograd.grad(out.float().sum(), (rows, weights)) for out in outs)
    assert all(map(torch.equal, of_compiled, of_eager))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_on_meta_it_runs_forward_and_backward(dtype: torch.dtype) -> None:
    rows, weights, ends = inputs(dtype, device="meta")
    out = grouped_product(rows, weights, ends)
    out.square().sum().backward()
    assert (out.shape, out.dtype) == ((10, 24), dtype)
    assert rows.grad is not None
    assert rows.grad.shape == rows.shape
    assert weights.grad is not None
    assert weights.grad.shape == weights.shape


def test_only_the_gradients_that_are_asked_for_are_computed() -> None:
    rows, weights, ends = inputs(torch.float32)
    for asking, other in ((rows, weights.detach()), (weights, rows.detach())):
        pair = (asking, other) if asking is rows else (other, asking)
        with torch.profiler.profile() as profile:
            grouped_product(*pair, ends).sum().backward()
        ours = sorted(e.key.partition("::")[2] for e in profile.key_averages() if e.key.startswith("model_training"))
        gradient = ["grouped_weight_gradient"] if asking is weights else []
        assert ours == ["grouped_product", *gradient]


def test_in_bf16_it_is_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch has a kernel that runs on every device and compiles, it runs."""
    calls: list[Tensor] = []

    def counted(rows: Tensor, weights: Tensor, *, offs: Tensor) -> Tensor:
        calls.append(offs)
        return original(rows, weights, offs=offs)

    original = F.grouped_mm
    monkeypatch.setattr(F, "grouped_mm", counted)
    grouped_product(*inputs(torch.bfloat16))
    assert len(calls) == 1
    grouped_product(*inputs(torch.float32))
    assert len(calls) == 1
