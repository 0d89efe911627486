"""FLOPs and memory of one forward and backward pass of any `nn.Module`, measured while it runs.

The module may be on CPU, on CUDA, or on the meta device. On the meta device nothing is computed or allocated, and
attention, RMSNorm and grouped products run as on CUDA (`counting.measurements.meta_device`). Both tools run the module
in its current mode (training or evaluation), with gradients enabled, and restore it and the process afterwards;
`_ready_to_run` lists the exceptions.
"""

import contextlib
import random
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.utils._pytree import tree_leaves, tree_map

from counting.measurements.dispatch import Attribution, FlopCounter, ForwardHooks
from counting.measurements.live_bytes import LiveBytes
from counting.measurements.meta_device import measuring
from counting.records import Tidy
from torch_models.errors import ArgumentError, UserError

LONGEST_LIST = 5  # of names in a message


class ModuleFlops(Tidy, frozen=True, kw_only=True):
    """FLOPs of one forward and backward pass, exact integers."""

    forward: int
    backward: int  # including what activation checkpointing runs again
    by_module: dict[str, int]  # name -> FLOPs of all passes, including submodules; "" is the total

    @property
    def total(self) -> int:
        """FLOPs of forward and backward pass together."""
        return self.forward + self.backward


class ModuleMemory(Tidy, frozen=True, kw_only=True):
    """Bytes of one forward and backward pass, exact integers."""

    peak_bytes: int  # all live bytes at the worst moment, including weights, buffers, inputs and gradients
    held_bytes: int  # after the forward pass: weights, buffers, inputs, outputs, and tensors kept for backward
    by_module: dict[str, int]  # name -> bytes of held_bytes that its forward pass created, including submodules


def count_flops(module: nn.Module, /, *inputs: Any, **named_inputs: Any) -> ModuleFlops:
    """FLOPs of `module(*inputs, **named_inputs)` and of the backward pass from all its outputs.

    Matrix products and convolutions are counted as they are executed, with 2 FLOPs per multiply-add. Elementwise ops,
    norms, softmax and reductions count 0. Attention counts the full square of queries and keys; this project's own
    fused op counts only the band of its window. The backward pass of fused attention counts the scores once more,
    because it computes them again. Frozen parameters, and inputs that do not require gradients, add no backward
    products. A product that torch's backward pass runs as an elementwise multiplication counts 0, for instance the
    weight's gradient of a matrix-vector product. If no output requires gradients, `backward` is 0. A gradient that the
    forward pass computes counts as forward.

    `by_module` has every name of `module.named_modules()`; a module with several names has all its calls under each
    name. An op of the backward pass counts for the module whose forward pass created its autograd node. Two things
    count only in the total (""): a module that is called but not contained in `module`, and the backward pass of ops
    that a reentrant checkpoint runs again.

    `inputs` and outputs are tensors, or tuples, lists and dicts of them (any pytree). Raises `UserError` for a module,
    input or output that cannot be measured, and for an op that has no formula and is not known to multiply no matrices
    (such as a recurrent layer in one kernel, a Fourier transform or a decomposition); the message names the op. Errors
    of the module itself are passed on unchanged.
    """
    with (
        _ready_to_run(module, inputs, named_inputs) as (args, kwargs),
        Attribution() as attribution,
        _Watch((), counter := FlopCounter(attribution)),
    ):
        outputs = module(*args, **kwargs)
        forward = sum(counter.flops.values())
        _backward(module, outputs)
    total = sum(counter.flops.values())
    own = dict[nn.Module | None, int]()
    for (_, run_for), flops in counter.flops.items():
        own[run_for] = own.get(run_for, 0) + flops
    by_module = {
        name: sum(own.get(part, 0) for part in contained.modules())
        for name, contained in module.named_modules(remove_duplicate=False)
    }
    return ModuleFlops(forward=forward, backward=total - forward, by_module=by_module | {"": total})


def measure_memory(module: nn.Module, /, *inputs: Any, **named_inputs: Any) -> ModuleMemory:
    """Live bytes during `module(*inputs, **named_inputs)` and the backward pass from all its outputs.

    Every storage is counted once, at its exact size, even if several tensors view it: parameters, buffers, inputs,
    activations, and the gradients of parameters and of inputs that require them. Existing gradients of the parameters
    are removed during the measurement and restored afterwards; they are not counted. The outputs stay alive until the
    end of the backward pass. Their gradients are created when it begins and freed after use, like those from a loss.
    Workspaces inside a kernel are not counted, nor are bytes that an allocator rounds up or caches. During the
    measurement torch computes some gradients out of place that it would otherwise add in place (of `index_select`,
    `gather`, `max`, `topk`, `prod`). If one of these determines the peak, `peak_bytes` is too high by the size of its
    input.

    `by_module` has every name of `module.named_modules()`: the bytes of the storages created during all calls of that
    module that are still alive after the forward pass, including outputs. Its entry "" is `held_bytes` minus
    parameters, buffers and inputs. `inputs` and errors are as in `count_flops`, except that every op is accepted.
    """
    with _ready_to_run(module, inputs, named_inputs) as (args, kwargs):
        existing = [*module.parameters(), *module.buffers(), *_tensors((args, kwargs))]
        with _Watch(existing) as tracker:
            before = tracker.live
            with _Births(tracker) as births:
                outputs = module(*args, **kwargs)
            kept, held = tracker.alive(), tracker.live
            _backward(module, outputs)
            peak = max(tracker.peak, tracker.live)
    made = {part: sum(kept.get(serial, 0) for serial in serials) for part, serials in births.of_modules.items()}
    by_module = {name: made.get(part, 0) for name, part in module.named_modules(remove_duplicate=False)}
    return ModuleMemory(peak_bytes=peak, held_bytes=held, by_module=by_module | {"": held - before})


class _Watch(LiveBytes):
    """Treats each higher-order op, such as `flex_attention`, as one op."""

    supports_higher_order_operators = True


class _Births:
    """While active, records the serial numbers of the storages created during each module's forward pass."""

    def __init__(self, tracker: LiveBytes) -> None:
        self.of_modules: dict[nn.Module, set[int]] = {}
        self._tracker = tracker
        self._born_before: list[int] = []

    def _begin(self, module: nn.Module) -> None:
        self._born_before.append(self._tracker.born)

    def _end(self, module: nn.Module) -> None:
        made = range(self._born_before.pop(), self._tracker.born)
        self.of_modules.setdefault(module, set()).update(made)

    def __enter__(self) -> "_Births":
        self._hooks = ForwardHooks(self._begin, self._end)
        self._hooks.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.__exit__()


class _FromOutputs(torch.autograd.Function):
    """An empty tensor whose backward pass gives each output a gradient of ones."""

    @staticmethod
    def forward(ctx: Any, *outputs: Tensor) -> Tensor:
        ctx.save_for_backward(*outputs)
        return outputs[0].new_empty(0)

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.ones_like(output) for output in ctx.saved_tensors)


def _backward(module: nn.Module, outputs: Any) -> None:
    """Run the backward pass from all tensors in `outputs` that require gradients, if there are any."""
    tensors = _tensors(outputs)
    if not tensors and any(parameter.requires_grad for parameter in module.parameters()):
        raise UserError(
            f"{type(module).__name__} returned no tensor to start a backward pass from, but "
            f"{type(outputs).__name__}: it must return a tensor, or tuples, lists or dicts of tensors"
        )
    starts = [tensor for tensor in tensors if tensor.requires_grad]
    if starts:
        end: Tensor = _FromOutputs.apply(*starts)  # type: ignore[no-untyped-call]
        end.backward(torch.empty_like(end))


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


@contextlib.contextmanager
def _ready_to_run(
    module: nn.Module, inputs: tuple[Any, ...], named_inputs: dict[str, Any]
) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Context in which the module may be run once: yields the inputs, detached from their history.

    On exit it restores the attributes of all contained modules (including buffers, gradients and the training flag),
    the contents of buffers and inputs, and the states of the random number generators. Not restored are parameters
    that the forward pass or a user's hook changes, and the content of mutable objects, such as a list or a cache, in
    an attribute or an input. Raises `UserError` for a module or input that cannot be measured.
    """
    if not isinstance(module, nn.Module):
        raise ArgumentError("module", module, "must be a torch.nn.Module")
    lazy = [name for name, tensor in _own_tensors(module) if nn.parameter.is_lazy(tensor)]
    if lazy:
        raise UserError(
            f"{type(module).__name__}: run it once before, because its lazy parameters have no shape: {_listed(lazy)}"
        )
    scripted = [
        name or "the module" for name, part in module.named_modules() if isinstance(part, torch.jit.ScriptModule)
    ]
    if scripted:
        raise UserError(
            f"{type(module).__name__}: TorchScript runs no hooks: pass the module as Python code: {_listed(scripted)}"
        )
    for tensor in [*module.parameters(), *module.buffers(), *_tensors((inputs, named_inputs))]:
        if type(tensor).__name__ == "FakeTensor":  # whose class takes long to import
            raise UserError(f"{type(module).__name__}: fake tensors cannot be measured: build the module on meta")
        if tensor.is_inference():
            raise UserError(
                f"{type(module).__name__}: a tensor made in inference mode has no gradients: create it outside"
            )
    given = _tensors((inputs, named_inputs))
    cut_off = {id(tensor): tensor.detach().requires_grad_(tensor.requires_grad) for tensor in given}
    args, kwargs = tree_map(lambda leaf: cut_off.get(id(leaf), leaf), (inputs, named_inputs))
    own = [tensor for _, tensor in _own_tensors(module)]
    with (
        measuring(),
        _same_random_numbers([*own, *given]),
        _same_contents([*module.buffers(), *given]),
        _same_attributes(module),
        _same_gradients(own),
    ):
        yield args, kwargs


def _own_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def _listed(names: list[str]) -> str:
    return ", ".join(names[:LONGEST_LIST]) + (", …" if len(names) > LONGEST_LIST else "")


@contextlib.contextmanager
def _same_gradients(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Context in which the tensors have no gradients; on exit restores the earlier ones."""
    before = [(tensor, tensor.grad) for tensor in tensors if tensor.is_leaf]
    for tensor, _ in before:
        tensor.grad = None
    try:
        yield
    finally:
        for tensor, gradient in before:
            tensor.grad = gradient


@contextlib.contextmanager
def _same_attributes(module: nn.Module) -> Iterator[None]:
    """On exit restores the attributes, parameters, buffers and submodules of every contained module."""
    before = [
        (table, dict(table))
        for part in module.modules()
        for table in (vars(part), part._parameters, part._buffers, part._modules)
    ]
    try:
        yield
    finally:
        for table, content in before:
            table.clear()
            table.update(content)


@contextlib.contextmanager
def _same_contents(tensors: Iterable[Tensor]) -> Iterator[None]:
    """On exit restores the numbers of the tensors, if they were changed in place.

    Version counters do not show every change: batch norm writes its statistics without a new version. Restoring does
    not change the version either, so that a backward pass of the caller may still read the tensors.
    """
    before = [(x, x.detach().clone()) for x in tensors if not (x.is_meta or x.is_inference() or _is_expanded(x))]
    try:
        yield
    finally:
        for tensor, content in before:
            if not torch.equal(tensor, content):
                with _unsafe_preserve_version_counter(tensor):
                    tensor.detach().copy_(content)


def _is_expanded(tensor: Tensor) -> bool:
    """Whether several elements share one number, so that torch refuses to write to the tensor in place."""
    return any(size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


@contextlib.contextmanager
def _same_random_numbers(tensors: Iterable[Tensor]) -> Iterator[None]:
    """On exit restores the states of the random generators of torch, of Python, and of NumPy if it is loaded."""
    devices = sorted({tensor.get_device() for tensor in tensors if tensor.is_cuda})
    numpy: Any = sys.modules.get("numpy")
    of_python, of_numpy = random.getstate(), numpy.random.get_state() if numpy else None
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(of_python)
        if numpy:
            numpy.random.set_state(of_numpy)
