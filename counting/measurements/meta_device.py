"""The context of every measurement: the meta device behaves as a CUDA device, and torch's compiler is not imported.

On meta tensors torch takes the CPU's paths: attention falls back to arithmetic that materialises S x S scores in
fp32, and the fused norm to eight separate operations. Training on CUDA runs neither. In `measuring` the same calls go
to the kernels that torch selects on CUDA; their meta versions allocate the same tensors. Outside `measuring`, torch is
not changed.
"""

import contextlib
import importlib
import sys
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
import torch.nn.modules.module as modules
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from torch_models.modules.kernels.grouped_product import product_by_group

_aten = torch.ops.aten
_autograd: Any = torch._C._autograd

ONE_AT_A_TIME = threading.RLock()  # hooks, replaced functions and tracing are global to the process

COMPILER = "torch._dynamo"


@contextlib.contextmanager
def measuring() -> Iterator[None]:
    """Context for measuring, for one thread at a time; the caller's modes and global hooks are disabled.

    For meta tensors, `scaled_dot_product_attention`, `rms_norm` and `grouped_mm` run CUDA's kernels, except during
    torch's JIT tracing, which does not support them. Torch's optimisers accept `fused=True`, and torch's compiler is
    not imported. The functions themselves are replaced, because a mode would not be active in all calls: torch suspends
    modes during a backward pass, in which activation checkpointing runs the forward pass again.
    """
    with (
        ONE_AT_A_TIME,
        _disable_current_modes(),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autograd.set_detect_anomaly(False),
        _without_saved_tensors_hooks(),
        _without_module_hooks(),
        _without_compiler(),
        _fused_optimizers(),
        _foreach_functions(),
        contextlib.ExitStack() as stack,
    ):
        for name, on_meta in _ON_META.items():
            stack.enter_context(_replaced(name, on_meta))
        yield


@contextlib.contextmanager
def _replaced(name: str, on_meta: Callable[..., Any]) -> Iterator[None]:
    original = getattr(F, name)

    def function(*args: Any, **kwargs: Any) -> Any:
        first: Tensor = args[0] if args else next(iter(kwargs.values()))
        out = NotImplemented
        if first.is_meta and torch._C._get_tracing_state() is None:
            out = on_meta(*args, **kwargs)
        return original(*args, **kwargs) if out is NotImplemented else out

    setattr(F, name, function)
    try:
        yield
    finally:
        setattr(F, name, original)


@contextlib.contextmanager
def _without_saved_tensors_hooks() -> Iterator[None]:
    """Context without saved-tensor hooks: removes the caller's hooks, or a ban on them, and restores them on exit."""
    hooks, forbidden = [], _autograd._saved_tensors_hooks_get_disabled_error_message()
    if forbidden is not None:
        _autograd._saved_tensors_hooks_enable()
    while (top := _autograd._top_saved_tensors_default_hooks(True)) is not None:
        hooks.append(top)
        _autograd._pop_saved_tensors_default_hooks()
    try:
        yield
    finally:
        for pack, unpack in reversed(hooks):
            _autograd._push_saved_tensors_default_hooks(pack, unpack)
        if forbidden is not None:
            _autograd._saved_tensors_hooks_disable(forbidden)


@contextlib.contextmanager
def _without_module_hooks() -> Iterator[None]:
    """Context without global module hooks, such as those of torch's FLOP counter, which keep tensors alive."""
    tables = [table for name, table in vars(modules).items() if name.startswith("_global_") and isinstance(table, dict)]
    before = [dict(table) for table in tables]
    for table in tables:
        table.clear()
    try:
        yield
    finally:
        for table, hooks in zip(tables, before, strict=True):
            table.update(hooks)


@contextlib.contextmanager
def _fused_optimizers() -> Iterator[None]:
    """Context in which torch's optimisers accept `fused=True` for meta parameters, as for CUDA parameters."""
    module: Any = sys.modules["torch.optim.optimizer"]  # not an attribute of torch.optim
    devices = module._get_fused_kernels_supported_devices
    module._get_fused_kernels_supported_devices = lambda: [*devices(), "meta"]
    try:
        yield
    finally:
        module._get_fused_kernels_supported_devices = devices


@contextlib.contextmanager
def _foreach_functions() -> Iterator[None]:
    """Context in which gradient clipping takes the foreach functions for meta tensors, as for CUDA tensors."""
    module: Any = sys.modules["torch.utils._foreach_utils"]
    devices = module._get_foreach_kernels_supported_devices
    module._get_foreach_kernels_supported_devices = lambda: [*devices(), "meta"]
    try:
        yield
    finally:
        module._get_foreach_kernels_supported_devices = devices


class ScalarsAsOne(TorchDispatchMode):
    """Context in which a meta tensor of one number has the value 1, where torch refuses to read it.

    Adafactor scales its updates by norms that it reads. No size depends on the value.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is _aten._local_scalar_dense.default and args[0].is_meta:
            return 1.0
        return function(*args, **(kwargs or {}))


# --- What CUDA's kernels allocate ------------------------------------------------------------------------------

# Called with the name of a kernel of which only the allocations run here, and with what it reads and writes.
ObserveKernel = Callable[[str, tuple[Tensor | None, ...], tuple[Tensor | None, ...]], None]
_kernel_observers: list[ObserveKernel] = []


@contextlib.contextmanager
def observing_kernels(observe: ObserveKernel) -> Iterator[None]:
    """Context in which `observe` is called for each kernel that is no op on meta tensors: those of fused norms."""
    _kernel_observers.append(observe)
    try:
        yield
    finally:
        _kernel_observers.remove(observe)


def _ran(name: str, reads: tuple[Tensor | None, ...], writes: tuple[Tensor | None, ...]) -> None:
    for observe in _kernel_observers:
        observe(name, reads, writes)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """The kernel that torch selects on CUDA: flash attention, or the memory-efficient one for unequal head sizes.

    With a mask, torch's memory-efficient kernel runs, which adds the mask block by block. Returns NotImplemented for
    arguments that neither kernel accepts; torch's own function then runs, or raises.
    """
    shapes = [x.shape for x in (query, key, value)]
    grouped = enable_gqa and query.dim() == 4 and key.dim() == 4 and query.shape[1] % key.shape[1] == 0
    fits = all(len(shape) == 4 and shape[0] == shapes[0][0] for shape in shapes) and shapes[1][:3] == shapes[2][:3]
    if not fits or shapes[0][3] != shapes[1][3] or not (grouped or shapes[0][1] == shapes[1][1]):
        return NotImplemented
    if attn_mask is not None and is_causal:
        return NotImplemented
    if query.shape[-1] == value.shape[-1] and attn_mask is None:
        return _aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)[0]
    if enable_gqa and query.shape[1] != key.shape[1]:  # the memory-efficient kernel has no grouped queries
        repeats = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
    if attn_mask is not None:
        attn_mask = _as_bias(attn_mask, query, key)
    keep_logsumexp = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    return _aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, keep_logsumexp, dropout_p, is_causal, scale=scale
    )[0]


def _as_bias(mask: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """The mask as the kernel requires it: numbers to add to the scores of every head, (B, H, S, S)."""
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, float("-inf"))
    return mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])


def _rms_norm(input: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Any:
    if len(normalized_shape) != 1 or input.shape[-1:] != torch.Size(normalized_shape):
        return NotImplemented
    return _FusedRMSNorm.apply(input, weight, eps)  # type: ignore[no-untyped-call]


class _FusedRMSNorm(torch.autograd.Function):
    """Allocates the same tensors as CUDA's fused RMSNorm: the output, and 1 / rms per row in fp32 for backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, eps: float | None) -> Tensor:
        inverse_rms = x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
        ctx.save_for_backward(x, weight, inverse_rms)
        out = torch.empty_like(x.contiguous())  # the kernel reads rows without gaps
        _ran("_fused_rms_norm", (x, weight), (out, inverse_rms))
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight, inverse_rms = ctx.saved_tensors
        of_x = torch.empty_like(x.contiguous())
        of_weight = None if weight is None else torch.empty_like(weight)
        _ran("_fused_rms_norm_backward", (gradient, x, weight, inverse_rms), (of_x, of_weight))
        return of_x, of_weight, None


def _grouped_mm(
    mat_a: Tensor,
    mat_b: Tensor,
    *,
    offs: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Any:
    """The grouped product for dtypes other than bfloat16, for which torch has no meta kernel: the op of our modules.

    Returns NotImplemented for bfloat16 and for other forms of the call.
    """
    plain = bias is None and out_dtype in (None, mat_a.dtype)
    if mat_a.dtype == torch.bfloat16 or offs is None or mat_a.dim() != 2 or mat_b.dim() != 3 or not plain:
        return NotImplemented
    return product_by_group(mat_a, mat_b, offs)


_ON_META: dict[str, Callable[..., Any]] = {
    "scaled_dot_product_attention": _attention,
    "rms_norm": _rms_norm,
    "grouped_mm": _grouped_mm,
}


# --- torch's compiler ------------------------------------------------------------------------------------------


class _CompilerStandIn(types.ModuleType):
    """Stand-in for torch's compiler while it is not imported; imports it on access to any other attribute."""

    def disable(self, function: Callable[..., Any], recursive: bool = True, **options: Any) -> Callable[..., Any]:
        """`function`; on a call, the compiler is disabled for it if it has been imported by then."""
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

    # Used by torch's checkpointing, optimisers and fake tensors; the values are those of an inactive compiler.
    config = types.SimpleNamespace(
        error_on_nested_fx_trace=True,
        fake_tensor_cache_enabled=True,
        fake_tensor_cache_crosscheck_enabled=False,
        _custom_ops_profile=None,
    )

    def graph_break(self) -> None:
        """Do nothing: nothing is being compiled."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__path__":  # the import of a submodule reads __path__
            raise AttributeError(name)
        _remove_stand_in()
        return getattr(importlib.import_module(COMPILER), name)


_STAND_IN = _CompilerStandIn(COMPILER)
_STAND_INS: dict[str, Any] = {COMPILER: _STAND_IN, f"{COMPILER}.config": _STAND_IN.config}


def _remove_stand_in() -> None:
    for name, stand_in in _STAND_INS.items():
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]


@contextlib.contextmanager
def _without_compiler() -> Iterator[None]:
    """Context that avoids the import of torch's compiler, which takes as long as importing torch.

    The wrapper of torch's meta kernels imports the compiler on first use, to exclude the kernel from compilation. That
    is not needed if the compiler is not loaded.
    """
    if COMPILER in sys.modules:
        yield
        return
    sys.modules.update(_STAND_INS)
    try:
        yield
    finally:
        _remove_stand_in()
