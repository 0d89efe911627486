"""What the caller's process does meanwhile changes no number: modes, hooks, other threads."""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import disable_saved_tensors_hooks, save_on_cpu, saved_tensors_hooks
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from counting import Setup, UserError, analyze, count_flops, measure_memory
from tests.shrunken import DEEPSEEK_V3

SETUP = Setup(sequence_length=32, recompute="full", loss_chunk=8)


@contextmanager
def detecting_anomalies() -> Iterator[None]:
    torch.autograd.set_detect_anomaly(True)
    try:
        yield
    finally:
        torch.autograd.set_detect_anomaly(False)


MODES: dict[str, AbstractContextManager[Any]] = {
    "torch's own counter": FlopCounterMode(display=False),
    "fake tensors": FakeTensorMode(),
    "saved on the CPU": save_on_cpu(),
    "hooks of saved tensors": saved_tensors_hooks(lambda x: x, lambda x: x),
    "no hooks of saved tensors": disable_saved_tensors_hooks("none here"),
    "anomalies": detecting_anomalies(),
    "no gradients": torch.no_grad(),
    "inference": torch.inference_mode(),
}


@pytest.mark.parametrize("mode", MODES)
def test_an_analysis_within_a_mode(mode: str) -> None:
    expected = analyze(DEEPSEEK_V3, SETUP)
    with MODES[mode]:
        assert analyze(DEEPSEEK_V3, SETUP) == expected
    assert analyze(DEEPSEEK_V3, SETUP) == expected


def test_other_threads_run_modules_meanwhile() -> None:
    stop = threading.Event()
    failed: list[Exception] = []

    def run() -> None:
        other, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), torch.randn(2, 4)
        while not stop.is_set():
            try:
                other(x)
            except Exception as error:  # whatever the measurement would make of it
                failed.append(error)

    module, x = nn.Sequential(*(nn.Linear(16, 16) for _ in range(30))), torch.randn(4, 16)
    flops, memory, analysis = count_flops(module, x), measure_memory(module, x), analyze(DEEPSEEK_V3, SETUP)
    thread = threading.Thread(target=run)
    thread.start()
    try:
        for _ in range(10):
            assert count_flops(module, x) == flops
            assert measure_memory(module, x) == memory
        assert analyze(DEEPSEEK_V3, SETUP) == analysis
    finally:
        stop.set()
        thread.join()
    assert failed == []


class Attention(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, query: Tensor, key: Tensor, *mask: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, key, *mask, **self.options)


def meta(*shape: int) -> Tensor:
    return torch.empty(*shape, device="meta")


def test_on_meta_what_torch_refuses_is_refused() -> None:
    with pytest.raises(RuntimeError, match="must match"):
        count_flops(Attention(), meta(1, 4, 8, 16), meta(1, 2, 8, 16))
    with pytest.raises(RuntimeError, match="is_causal"):
        count_flops(Attention(is_causal=True), meta(1, 4, 8, 16), meta(1, 4, 8, 16), meta(8, 8))
    with pytest.raises(RuntimeError, match="normalized_shape"):
        count_flops(nn.RMSNorm(6, device="meta"), meta(2, 5))


def test_a_forward_pass_that_differentiates() -> None:
    """(x x): 4^3 multiply-adds; its gradients within forward twice that; in backward twice that of two of these."""

    class Gradient(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.autograd.grad((x @ x).sum(), x, create_graph=True)[0]

    flops = count_flops(Gradient(), torch.randn(4, 4, requires_grad=True))
    assert (flops.forward, flops.backward) == (3 * 128, 2 * 128)


@pytest.mark.parametrize("tool", [count_flops, measure_memory])
def test_modules_that_cannot_be_measured_are_named(tool: Any) -> None:
    with pytest.raises(UserError, match="TorchScript runs no hooks"):
        tool(torch.jit.script(nn.Linear(2, 2)), torch.randn(2, 2))
    with pytest.raises(UserError, match=r"layout torch\.sparse_coo"):
        tool(nn.Embedding(5, 3, sparse=True), torch.tensor([1]))
    with FakeTensorMode():
        fake, x = nn.Linear(2, 2), torch.randn(2, 2)
    with pytest.raises(UserError, match="fake tensors cannot be measured"):
        tool(fake, x)


def test_a_forward_pass_may_call_an_argument_module() -> None:
    class Named(nn.Module):
        def forward(self, module: Tensor) -> Tensor:
            return module @ module

    assert count_flops(Named(), module=torch.randn(2, 2)).forward == 2 * 2**3
