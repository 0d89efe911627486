"""`count_flops` and `measure_memory` leave no trace behind, and say what is wrong with what they are given."""

import random
import sys
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as hooks_of_all_modules

from counting.measurements.tools import count_flops, measure_memory
from torch_models.errors import UserError

TOOLS: tuple[Callable[..., Any], ...] = (count_flops, measure_memory)
FP32 = 4  # bytes


# --- What is left behind: nothing --------------------------------------------------------------------------------


class Stateful(nn.Module):
    """Changes all that a forward pass may: statistics, random numbers, attributes, buffers, its mode; may then fail."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm, self.dropout = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(3))
        self.seen, self.fail = 0, False

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        self.calls += 1
        self.last = torch.ones(3)
        self.extra = torch.rand(1) * random.random() * numpy.random.rand()
        x = self.dropout(self.norm(self.layer(x.mul_(2))))
        self.eval()
        if self.fail:
            raise ZeroDivisionError("the user's own")
        return x


def state_of_process() -> list[Any]:
    return [
        torch.get_rng_state().tolist(),
        random.getstate(),
        numpy.random.get_state()[1].tolist(),
        torch.is_grad_enabled(),
        F.scaled_dot_product_attention,
        F.rms_norm,
        F.grouped_mm,
        "torch._dynamo" in sys.modules,
        dict(hooks_of_all_modules._global_forward_hooks),
        dict(hooks_of_all_modules._global_forward_pre_hooks),
        torch.utils._python_dispatch._get_current_dispatch_mode_stack(),
    ]


@pytest.mark.parametrize("fail", [False, True])
@pytest.mark.parametrize("tool", TOOLS)
def test_module_inputs_and_process_are_as_they_were(tool: Callable[..., Any], fail: bool) -> None:
    model, x = Stateful(), torch.randn(6, 4)
    model(x.clone()).sum().backward()
    model.train()
    model.dropout.eval()
    model.norm.weight.grad = None
    model.fail = fail
    parameters = {name: (p, p.detach().clone(), p.grad) for name, p in model.named_parameters()}
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    buffers = {name: (b, b.clone()) for name, b in model.named_buffers()}
    attributes = {name: dict(vars(part)) for name, part in model.named_modules()}
    given, process = x.clone(), state_of_process()

    with torch.no_grad():
        if fail:
            with pytest.raises(ZeroDivisionError, match=r"^the user's own$"):
                tool(model, x)
        else:
            tool(model, x)

    assert state_of_process() == process
    assert torch.equal(x, given)
    assert {name: vars(part) for name, part in model.named_modules()} == attributes
    for name, parameter in model.named_parameters():
        same, value, gradient = parameters[name]
        assert parameter is same
        assert torch.equal(parameter, value)
        assert parameter.grad is gradient
        assert gradient is None or torch.equal(gradient, gradients[name])
    assert [name for name, _ in model.named_buffers()] == list(buffers)
    for name, buffer in model.named_buffers():
        assert buffer is buffers[name][0]
        assert torch.equal(buffer, buffers[name][1])
    assert (model.training, model.dropout.training) == (True, False)


@pytest.mark.parametrize("tool", TOOLS)
def test_inputs_are_cut_off_from_what_made_them(tool: Callable[..., Any]) -> None:
    leaf = torch.ones(2, 3, requires_grad=True)
    x = leaf.exp()
    tool(nn.Linear(3, 5), x)
    tool(nn.Linear(3, 5), leaf)
    assert leaf.grad is None
    x.sum().backward()  # whose graph is still there
    assert leaf.grad is not None
    assert torch.equal(leaf.grad, leaf.detach().exp())


def test_gradients_are_counted_whatever_the_callers_mode() -> None:
    layer, x = nn.Linear(3, 5), torch.ones(2, 3)
    expected = count_flops(layer, x), measure_memory(layer, x)
    with torch.no_grad():
        assert (count_flops(layer, x), measure_memory(layer, x)) == expected
    with torch.inference_mode():
        assert (count_flops(layer, x), measure_memory(layer, x)) == expected


def test_the_mode_of_the_module_is_that_it_is_in() -> None:
    model, x = nn.Sequential(nn.Linear(3, 5), nn.Dropout()), torch.ones(2, 3)
    assert measure_memory(model, x).by_module["1"] == FP32 * 10 * 2  # the output, and what was kept of it
    assert measure_memory(model.eval(), x).by_module["1"] == 0


# --- Errors ------------------------------------------------------------------------------------------------------


class Spectrum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.rfft(x).abs()


class Inverse(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.inv(x)


@pytest.mark.parametrize(
    ("module", "inputs", "op"),
    [
        (nn.LSTM(4, 4), (torch.zeros(3, 2, 4),), "aten.mkldnn_rnn_layer.default"),
        (Spectrum(), (torch.zeros(8),), "aten._fft_r2c.default"),
        (Inverse(), (torch.eye(3),), "aten.linalg_inv_ex.default"),
        (nn.Bilinear(2, 3, 4), (torch.zeros(5, 2), torch.zeros(5, 3)), "aten._trilinear.default"),
    ],
    ids=["LSTM", "FFT", "inverse", "bilinear"],
)
def test_an_unknown_op_is_named(module: nn.Module, inputs: tuple[Tensor, ...], op: str) -> None:
    with pytest.raises(UserError, match=f"^{op}: no FLOP formula for this op"):
        count_flops(module, *inputs)
    assert measure_memory(module, *inputs).held_bytes > 0


def test_an_unknown_op_of_the_backward_pass_is_named() -> None:
    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return torch.fft.fft(gradient).real

    class Module(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Function.apply(x)  # type: ignore[no-any-return, no-untyped-call]

    with pytest.raises(UserError, match=r"^aten\._fft_r2c\.default: no FLOP formula"):
        count_flops(Module(), torch.zeros(8, requires_grad=True))


@pytest.mark.parametrize("tool", TOOLS)
def test_bad_input(tool: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=r"^module = .*: must be a torch\.nn\.Module$"):
        tool(torch.relu, torch.zeros(3))
    with pytest.raises(UserError, match=r"^LazyLinear: run it once before, .* no shape: weight, bias$"):
        tool(nn.LazyLinear(3), torch.zeros(2, 3))
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        tool(nn.Linear(3, 5))


class Opaque(nn.Module):
    """Returns what holds a tensor in a way that pytrees do not know."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Any:
        return type("Output", (), {"logits": self.layer(x)})()


@pytest.mark.parametrize("tool", TOOLS)
def test_an_output_without_tensors_is_no_zero(tool: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=r"^Opaque returned no tensor to start a backward pass from, but Output: "):
        tool(Opaque(), torch.zeros(2, 3))


def test_what_cannot_run_on_meta_says_so_itself() -> None:
    class Reads(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * x.sum().item()

    for tool in TOOLS:
        with pytest.raises(RuntimeError, match=r"meta tensors"):
            tool(Reads(), torch.ones(2, device="meta"))
