"""Makes the meta device behave as a CUDA device would, op by op, and quickly.

On meta tensors torch takes the CPU's paths: attention falls back to arithmetic that materialises S x S scores in
fp32, and the fused norm to eight separate operations. Training runs neither. Inside `cuda_kernels_on_meta` the same
calls, made by the same modules, go to the kernels that torch picks on CUDA, whose meta versions say what they
allocate.
"""

import contextlib
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

aten = torch.ops.aten


@contextlib.contextmanager
def cuda_kernels_on_meta() -> Iterator[None]:
    """Within it, attention, RMSNorm and grouped products of meta tensors are CUDA's kernels; others are left alone.

    The functions themselves are replaced, not intercepted by a mode: torch suspends modes during a backward pass, in
    which activation checkpointing runs the forward pass again.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(without_compiler())
        for name, on_meta in _ON_META.items():
            stack.enter_context(_replaced(F, name, on_meta))
        yield


@contextlib.contextmanager
def _replaced(module: types.ModuleType, name: str, on_meta: Callable[..., Any]) -> Iterator[None]:
    original = getattr(module, name)

    def function(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return (on_meta if x.is_meta else original)(x, *args, **kwargs)

    setattr(module, name, function)
    try:
        yield
    finally:
        setattr(module, name, original)


def _attention(
    query: Tensor, key: Tensor, value: Tensor, *, is_causal: bool, scale: float, enable_gqa: bool = False
) -> Tensor:
    """The kernel that torch picks on CUDA: flash attention, or the memory-efficient one for unequal head sizes."""
    if query.shape[-1] == value.shape[-1]:
        out: Tensor = aten._scaled_dot_product_flash_attention(query, key, value, 0.0, is_causal, scale=scale)[0]
        return out
    assert not enable_gqa, "the memory-efficient kernel has no grouped queries"
    keep_logsumexp = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    out = aten._scaled_dot_product_efficient_attention(
        query, key, value, None, keep_logsumexp, 0.0, is_causal, scale=scale
    )[0]
    return out


def _rms_norm(x: Tensor, normalized_shape: Any, weight: Tensor, eps: float) -> Tensor:
    del normalized_shape
    return cast(Tensor, _FusedRMSNorm.apply(x, weight, eps))  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def fused_optimizers_on_meta() -> Iterator[None]:
    """Within it, torch's optimisers take `fused=True` for meta parameters, as they do for CUDA's."""
    module: Any = sys.modules["torch.optim.optimizer"]  # no attribute of torch.optim
    devices = module._get_fused_kernels_supported_devices
    module._get_fused_kernels_supported_devices = lambda: [*devices(), "meta"]
    try:
        yield
    finally:
        module._get_fused_kernels_supported_devices = devices


class _FusedRMSNorm(torch.autograd.Function):
    """What CUDA's fused RMSNorm allocates: the output, and 1 / rms per row in fp32, which backward reads."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        inverse_rms = x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
        ctx.save_for_backward(x, weight, inverse_rms)
        return torch.empty_like(x.contiguous())  # the kernel reads rows without gaps

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x.contiguous()), torch.empty_like(weight), None


def _grouped_mm(rows: Tensor, weights: Tensor, *, offs: Tensor) -> Tensor:
    """torch's own for bfloat16; it has no other on the meta device."""
    if rows.dtype == torch.bfloat16:
        out: Tensor = aten._grouped_mm(rows, weights, offs)
        return out
    return cast(Tensor, _GroupedProduct.apply(rows, weights, offs))  # type: ignore[no-untyped-call]


class _GroupedProduct(torch.autograd.Function):
    """What a grouped product allocates: its output, and for backward the two gradients."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weights, ends)
        return rows.new_empty(rows.shape[0], weights.shape[2])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        rows, weights, _ = ctx.saved_tensors
        weight_gradient = torch.empty_like(weights)  # first, as torch's own
        return torch.empty_like(rows), weight_gradient, None


_ON_META: dict[str, Callable[..., Any]] = {
    "scaled_dot_product_attention": _attention,
    "rms_norm": _rms_norm,
    "grouped_mm": _grouped_mm,
}


class _CompilerStandIn(types.ModuleType):
    """Answers for torch's compiler while that is not loaded, and hands over to it should it be loaded later."""

    def disable(self, function: Callable[..., Any], recursive: bool = True, **options: Any) -> Callable[..., Any]:
        """`function`, hidden from the compiler if there is one by the time it is called."""
        disabled = None

        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal disabled
            compiler = sys.modules.get(COMPILER)
            if compiler in (None, _STAND_IN):
                return function(*args, **kwargs)
            if disabled is None:
                disabled = compiler.disable(function, recursive, **options)
            return disabled(*args, **kwargs)

        return call

    # What torch's checkpointing and its optimisers ask of the compiler, answered as if it were not at work.
    config = types.SimpleNamespace(error_on_nested_fx_trace=True)

    def graph_break(self) -> None:
        """Nothing is being compiled that could be broken off."""


COMPILER = "torch._dynamo"
_STAND_IN = _CompilerStandIn(COMPILER)


@contextlib.contextmanager
def without_compiler() -> Iterator[None]:
    """Spare the import of torch's compiler, which takes as long as importing torch.

    torch's meta kernels are wrapped so that the compiler leaves them alone, and the wrapper imports the compiler on
    first use to say so. Where it is not loaded there is nothing to be left alone by. The stand-in is there for the
    whole process: importing a submodule of the compiler within fails.
    """
    if COMPILER in sys.modules:
        yield
        return
    sys.modules[COMPILER] = _STAND_IN
    try:
        yield
    finally:
        if sys.modules.get(COMPILER) is _STAND_IN:
            del sys.modules[COMPILER]
