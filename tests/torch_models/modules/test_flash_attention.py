"""The op of windows, chunks, caps and sinks: its numbers, what its fake kernels promise, what it allocates."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.torch_models.modules.attention_reference import (
    CASES,
    SCALE,
    Case,
    attention_by_definition,
    gradients,
    inputs,
)
from torch_models.modules.kernels import flash_attention as kernel
from torch_models.modules.kernels.flash_attention import flash_attention, flash_attention_backward


@pytest.fixture(autouse=True)
def _short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks of queries in a short sequence, the last one not full."""
    monkeypatch.setattr(kernel, "QUERY_BLOCK", 8)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_values_and_gradients_are_those_of_the_definition(case: Case) -> None:
    given = inputs(case, torch.float64)
    out, logsumexp = flash_attention(*given, SCALE, case.window, case.softcap, case.chunk)
    expected = attention_by_definition(*given, case)
    torch.testing.assert_close(out, expected)
    assert logsumexp.dtype == torch.float64
    torch.testing.assert_close(gradients(out, *given), gradients(expected, *given))


@pytest.mark.parametrize("contiguous", [False, True], ids=["views", "contiguous"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_real_kernels_keep_what_the_fake_ones_promise(case: Case, dtype: torch.dtype, contiguous: bool) -> None:
    """Shapes, dtypes and strides, forward and backward, and under compilation with static and dynamic shapes."""
    given = inputs(case, dtype, contiguous=contiguous)
    options = (SCALE, case.window, case.softcap, case.chunk)
    quick = ("test_schema", "test_autograd_registration", "test_faketensor")
    all_of_them = case == CASES["everything"] and dtype != torch.float64
    more = {"test_utils": (*quick, "test_aot_dispatch_dynamic")} if all_of_them else {"test_utils": quick}
    torch.library.opcheck(flash_attention, (*given, *options), **more)
    out, logsumexp = (x.detach() for x in flash_attention(*given, *options))
    detached = [None if x is None else x.detach() for x in given]
    torch.library.opcheck(
        flash_attention_backward, (torch.ones_like(out), *detached, *options, out, logsumexp), test_utils=quick
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiled_gradients_are_those_of_eager(dtype: torch.dtype) -> None:
    case = CASES["everything"]
    given = inputs(case, dtype)

    def attend(query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None) -> Tensor:
        out: Tensor = flash_attention(query, key, value, sinks, SCALE, case.window, case.softcap, case.chunk)[0]
        return out

    torch._dynamo.reset()
    compiled = torch.compile(attend, backend="aot_eager", fullgraph=True)
    for got, expected in zip(gradients(compiled(*given), *given), gradients(attend(*given), *given), strict=True):
        assert torch.equal(got, expected)


class Largest(TorchDispatchMode):
    """The elements of the largest tensor that an op returns, and the last size of those that are split in groups."""

    elements = 0
    keys = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = function(*args, **(kwargs or {}))
        for each in out if isinstance(out, tuple | list) else (out,):
            if isinstance(each, Tensor):
                self.elements = max(self.elements, each.numel())
                self.keys = max(self.keys, each.shape[-1] if each.dim() == 5 else 0)
        return out


@pytest.mark.parametrize("window", [None, 16])
def test_no_tensor_is_square_in_the_sequence(window: int | None) -> None:
    """Inside the op, the largest tensors are the scores of 8 queries with the keys that they may see, or the inputs."""
    case = Case(length=256, window=window, softcap=2.0, sinks=True, channels=4, value_channels=4)
    query, key, value, sinks = (None if x is None else x.detach() for x in inputs(case, torch.float32))
    options = (SCALE, case.window, case.softcap, case.chunk)
    with Largest() as largest:
        out, logsumexp = flash_attention._init_fn(query, key, value, sinks, *options)
        flash_attention_backward._init_fn(out, query, key, value, sinks, *options, out, logsumexp)
    scores = 2 * case.heads * 8 * (case.length if window is None else 8 + window)
    assert largest.elements <= max(scores, 2 * case.heads * case.length * case.channels)
    assert largest.elements < 2 * case.heads * case.length**2 // 8
    assert largest.keys == (case.length if window is None else 8 + window - 1)


def test_autocast_changes_nothing_inside_the_op() -> None:
    case = CASES["everything"]
    given = inputs(case, torch.float32)
    expected = flash_attention(*given, SCALE, case.window, case.softcap, case.chunk)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = flash_attention(*given, SCALE, case.window, case.softcap, case.chunk)[0]
        found = gradients(out, *given)
    assert torch.equal(out, expected)
    assert all(map(torch.equal, found, gradients(expected, *given)))
