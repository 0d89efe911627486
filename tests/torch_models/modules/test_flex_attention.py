"""FlexAttention as we call it: its blocks, and its numbers against the op's; on CUDA also the memory that it takes.

Torch has no backward pass of FlexAttention on CPU as a kernel. Compiled without code generation, the same function runs
by elementary operations there, forward and backward.
"""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.torch_models.modules.attention_reference import CASES, SCALE, Case, gradients, inputs
from torch_models.modules.attention.core import causal_attention
from torch_models.modules.kernels import flex_attention as kernel
from torch_models.modules.kernels.flash_attention import flash_attention
from torch_models.modules.kernels.flex_attention import BLOCK, uncompiled, visible_blocks

# Sequences of more than two blocks, the last one not full; windows within a block and beyond one.
LONG = {
    "long": Case(length=300),
    "long-window": Case(length=300, window=140, softcap=2.0, sinks=True),
    "long-chunks": Case(length=300, chunk=140, softcap=2.0, sinks=True),
    "small-heads": Case(length=300, window=12, softcap=2.0, sinks=True, channels=8, value_channels=8),
}


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Tensor]:
    """The function that is compiled on CUDA, here without code generation."""
    from torch.nn.attention import flex_attention

    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    torch._dynamo.reset()
    return torch.compile(uncompiled, backend="aot_eager", fullgraph=True)


@pytest.mark.parametrize("case", [*CASES.values(), *LONG.values()], ids=[*CASES, *LONG])
def test_values_and_gradients_are_those_of_the_op(case: Case, on_cpu: Callable[..., Tensor]) -> None:
    given = inputs(case, torch.float32)
    out = on_cpu(*given, SCALE, case.window, case.softcap, case.chunk)
    expected = flash_attention(*given, SCALE, case.window, case.softcap, case.chunk)[0]
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(gradients(out, *given), gradients(expected, *given), rtol=1e-3, atol=1e-4)


def test_a_compiled_model_contains_it(on_cpu: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CUDA: `causal_attention` takes FlexAttention, and a compiled caller has it in its one graph."""
    del on_cpu
    monkeypatch.setattr("torch_models.modules.attention.core.has_flex_attention", lambda _: True)
    case = LONG["long-window"]
    given = inputs(case, torch.float32)
    graphs: list[Any] = []

    def attend(query: Tensor, key: Tensor, value: Tensor, sinks: Tensor) -> Tensor:
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        options: dict[str, Any] = {"scale": SCALE, "kernels": "fused", "heads_per_group": 2}
        options |= {"window": case.window, "softcap": case.softcap, "sinks_H": sinks, "chunk": case.chunk}
        return causal_attention(query, key, value, **options).transpose(1, 2)

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph

    with torch.no_grad():
        out = torch.compile(attend, backend=backend, fullgraph=True)(*given)
    assert "flex_attention" in graphs[0].code
    torch.testing.assert_close(out, flash_attention(*given, SCALE, case.window, case.softcap, case.chunk)[0])


@pytest.mark.parametrize("window", [None, 1, 2, 100, BLOCK, BLOCK + 1, BLOCK + 2, 2 * BLOCK, 2 * BLOCK + 1, 400, 2000])
@pytest.mark.parametrize("length", [1, 100, BLOCK, BLOCK + 1, 2 * BLOCK, 600, 1024])
def test_the_blocks_are_those_that_torch_finds_in_the_whole_mask(length: int, window: int | None) -> None:
    from torch.nn.attention.flex_attention import create_block_mask

    ours = visible_blocks(length, window, torch.device("cpu"))
    theirs = create_block_mask(ours.mask_mod, None, None, length, length, device="cpu")
    for name in ("kv", "full_kv", "q", "full_q"):
        assert visited(ours, name) == visited(theirs, name)


@pytest.mark.parametrize("chunk", [1, 100, BLOCK, BLOCK + 1, 3 * BLOCK - 1, 2000])
@pytest.mark.parametrize("length", [100, BLOCK + 1, 600])
def test_the_blocks_of_chunks_are_those_that_torch_finds_in_the_whole_mask(length: int, chunk: int) -> None:
    from torch.nn.attention.flex_attention import create_block_mask

    ours = visible_blocks(length, None, torch.device("cpu"), chunk=chunk)
    theirs = create_block_mask(ours.mask_mod, None, None, length, length, device="cpu")
    for name in ("kv", "full_kv", "q", "full_q"):
        assert visited(ours, name) == visited(theirs, name)


def visited(blocks: Any, name: str) -> list[list[int]]:
    """The listed blocks of each row, sorted."""
    numbers, indices = (getattr(blocks, f"{name}_{what}")[0, 0].tolist() for what in ("num_blocks", "indices"))
    return [sorted(row[:number]) for number, row in zip(numbers, indices, strict=True)]


def test_the_compiler_is_not_imported_with_the_modules() -> None:
    code = "import sys, torch_models.modules.attention.core; print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "False"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: its kernels and memory")
@pytest.mark.parametrize("case", [*CASES.values(), *LONG.values()], ids=[*CASES, *LONG])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_on_cuda_values_and_gradients_are_those_of_the_op(case: Case, dtype: torch.dtype) -> None:
    given = inputs(case, dtype, device="cuda")
    exact = [None if x is None else x.detach().double().requires_grad_() for x in given]
    out = kernel.flex_attention(*given, SCALE, case.window, case.softcap, case.chunk)
    expected = flash_attention(*exact, SCALE, case.window, case.softcap, case.chunk)[0]
    tolerance = 2e-2 if dtype == torch.bfloat16 else 2e-3
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)
    got = [x.double() for x in gradients(out, *given)]
    torch.testing.assert_close(got, gradients(expected, *exact), rtol=5 * tolerance, atol=5 * tolerance)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: its kernels and memory")
@pytest.mark.parametrize("window", [None, 512])
def test_on_cuda_no_tensor_is_square_in_the_sequence(window: int | None) -> None:
    """A second step, after compilation: less memory than one byte for each pair of positions."""
    case = Case(
        length=16384, window=window, softcap=30.0, sinks=True, heads=2, groups=1, channels=64, value_channels=64
    )
    given = inputs(case, torch.bfloat16, device="cuda")

    def step() -> None:
        gradients(kernel.flex_attention(*given, SCALE, case.window, case.softcap, case.chunk), *given)

    step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    assert torch.cuda.max_memory_allocated() - before < case.length**2
