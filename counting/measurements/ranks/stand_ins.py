"""All that is replaced in torch, or taken from its private interfaces, so that a step runs on meta tensors.

Each was tried with torch 2.13.0, and `tests/counting/measurements/ranks/test_stand_ins.py` has a test for each that
fails when it is no longer needed. `stand_ins` is the context in which they are in place; on exit all are undone.
"""

import contextlib
import importlib
import logging
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp._fully_shard import _fsdp_param
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPCommContext, FSDPParamGroup
from torch.distributed.tensor import DTensor, Shard, _redistribute
from torch.distributed.tensor._collective_utils import MeshTopoInfo
from torch.distributed.tensor._op_schema import OpSchema, OutputSharding
from torch.distributed.tensor._utils import _compute_local_shape_and_global_offset

from counting.measurements.allocations.log import MAIN_STREAM

# Tensors without memory of their own: their storage reports bytes, and holds none.
WRAPPERS = (DTensor, AsyncCollectiveTensor)

_functional = torch.ops._c10d_functional
# These ops return their argument, and a wrapper of it; but their meta kernels return a new tensor.
WAITS, WRAPS = _functional.wait_tensor.default, _functional._wrap_tensor_autograd.default


@contextlib.contextmanager
def stand_ins() -> Iterator[None]:
    """Context in which a fake process group and `fully_shard` accept meta tensors. Undoes everything on exit."""
    with (
        _streams_of_meta(),
        _parameters_on_meta(),
        _parts_one_by_one(),
        _messages_on_meta(),
        _without_debug_of_dtensor(),
        _equal_tensors_of_lists_once(),
        _without_advice_on_meshes(),
    ):
        yield


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Context in which `owner` has the attribute `name` of this value; afterwards what it had before, or nothing."""
    nothing = object()
    before = vars(owner).get(name, nothing)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is nothing:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


class _Stream(torch.cpu.Stream):
    name = MAIN_STREAM

    def record_event(self) -> Any:
        """An event: with replicas, `fully_shard` requires one on any device but the CPU."""
        return torch.cpu.Event()


_streams = [_Stream()]  # the current stream is the last


def current_stream() -> str:
    """The name of the stream in which an op runs now: `MAIN_STREAM`, or one of `fully_shard`, as ``all_gather``."""
    return _streams[-1].name


@contextlib.contextmanager
def _on_stream(stream: _Stream) -> Iterator[None]:
    _streams.append(stream)
    try:
        yield
    finally:
        _streams.pop()


def _make_streams(context: FSDPCommContext, device: torch.device) -> None:
    """What `fully_shard` does before the first forward pass; then each of its streams gets its name."""
    _plain_lazy_init(context, device)
    for name, value in vars(context).items():
        if isinstance(value, _Stream):
            value.name = name.removesuffix("_stream")


_plain_lazy_init = FSDPCommContext.lazy_init


@contextlib.contextmanager
def _streams_of_meta() -> Iterator[None]:
    """`fully_shard` and `DeviceMesh` find streams and events in the module torch.<device type>; torch.meta is none."""
    module = types.SimpleNamespace(
        Stream=_Stream,
        Event=torch.cpu.Event,
        current_stream=lambda device=None: _streams[-1],
        stream=_on_stream,
        is_available=lambda: True,
        is_initialized=lambda: True,
        device_count=lambda: 1,
        current_device=lambda: 0,
        set_device=lambda device: None,
        synchronize=lambda device=None: None,
    )
    with replaced(torch, "meta", module), replaced(FSDPCommContext, "lazy_init", _make_streams):
        yield


@contextlib.contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """`fully_shard` refuses to run with parameters on the meta device."""
    with replaced(FSDPParamGroup, "_validate_no_meta_params", lambda self: None):
        yield


@contextlib.contextmanager
def without_caches_of_dtensor() -> Iterator[None]:
    """Context that begins and ends without what DTensor has found out about meshes.

    It takes a mesh for an equal one whose process groups have been destroyed, and then does not find them.
    """
    _clear_caches_of_dtensor()
    try:
        yield
    finally:
        _clear_caches_of_dtensor()


def _clear_caches_of_dtensor() -> None:
    dispatcher: Any = DTensor._op_dispatcher
    dispatcher.sharding_propagator.propagate_op_sharding.cache_clear()
    torch._C._clear_DTensor_sharding_propagator_cache()
    _redistribute._gen_transform_infos.cache_clear()
    _redistribute.clear_redistribute_planner_cache()
    MeshTopoInfo.build_from_mesh.cache_clear()


@contextlib.contextmanager
def _without_debug_of_dtensor() -> Iterator[None]:
    """Context that avoids the import of torch.distributed.tensor.debug, with which all of torch's compiler comes.

    The rules of ring attention take two functions from it, which clear caches.
    """
    name = "torch.distributed.tensor.debug"
    if name in sys.modules:
        yield
        return

    def later(function: str) -> Callable[[], Any]:
        return lambda: getattr(importlib.import_module(name), function)()

    stand_in: Any = types.ModuleType(name)
    for function in ("_clear_fast_path_sharding_prop_cache", "_clear_python_sharding_prop_cache"):
        setattr(stand_in, function, later(function))
    sys.modules[name] = stand_in
    try:
        yield
    finally:
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]


@contextlib.contextmanager
def _equal_tensors_of_lists_once() -> Iterator[None]:
    """For an op on a list, DTensor asks of each tensor how the result is divided, each time going through the list.

    The time grows with the square of its length: 15 seconds for 1,100 gradients. Here it is asked of those that differ.
    """
    propagator: Any = DTensor._op_dispatcher.sharding_propagator
    plain = propagator.propagate_op_sharding_non_cached

    def propagate(schema: OpSchema) -> OutputSharding:
        tensors, *others = schema.args_schema
        if not (schema.op.name().startswith("aten::_foreach_") and isinstance(tensors, list | tuple)):
            return plain(schema)  # type: ignore[no-any-return]
        assert not any(isinstance(other, list | tuple) for other in others), "one list"
        distinct = list(dict.fromkeys(tensors))
        shorter = OpSchema(schema.op, (distinct, *others), schema.kwargs_schema, schema.schema_info)
        found: OutputSharding = plain(shorter)
        assert not found.needs_redistribute, "each tensor is taken as it is"
        if isinstance(found.output_spec, Sequence):
            of_tensor = dict(zip(distinct, found.output_spec, strict=True))
            found = OutputSharding(tuple(of_tensor[tensor] for tensor in tensors))
        return found

    with replaced(propagator, "propagate_op_sharding_non_cached", propagate):
        yield


@contextlib.contextmanager
def _without_advice_on_meshes() -> Iterator[None]:
    """DTensor logs that a sum over two dimensions of a mesh could be one, of a group for both."""
    _redistribute.logger.addFilter(_is_no_advice)
    try:
        yield
    finally:
        _redistribute.logger.removeFilter(_is_no_advice)


def _is_no_advice(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("While redistributing")


class _Parts(NamedTuple):
    """The parts of a tensor, one for each of `ranks`, made on access."""

    tensor: Tensor
    ranks: int
    dim: int

    def __getitem__(self, rank: Any) -> Any:
        size, start = Shard.local_shard_size_and_offset(self.tensor.size(self.dim), self.ranks, rank)
        return self.tensor.narrow(self.dim, start, size) if size else self.tensor.new_empty(0)


@contextlib.contextmanager
def _parts_one_by_one() -> Iterator[None]:
    """`fully_shard` makes a tensor for each rank of each parameter, and takes two of them."""
    with replaced(_fsdp_param, "_chunk_with_empty", _Parts):
        yield


@contextlib.contextmanager
def around_communication(begin: Callable[[], None], end: Callable[[], None]) -> Iterator[None]:
    """Context that calls `begin` and `end` around all that `fully_shard` does between modules.

    That is gathering parameters, and reducing gradients. Torch has hooks for the collectives in it and for their
    buffers, but none for the copies that it makes for them.
    """

    def wrapped(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            begin()
            try:
                return method(*args, **kwargs)
            finally:
                end()

        return call

    with contextlib.ExitStack() as stack:
        for name in ("unshard", "wait_for_unshard", "post_backward"):
            stack.enter_context(replaced(FSDPParamGroup, name, wrapped(getattr(FSDPParamGroup, name))))
        yield


def gathered_parameters(model: nn.Module) -> list[Tensor]:
    """The whole parameters that `fully_shard` has gathered, also those that it has freed meanwhile.

    They take the place of the sharded ones only while their module runs.
    """
    return [parameter._unsharded_param for parameter in _sharded_parameters(model)]


def accumulated_gradients(model: nn.Module) -> list[Tensor]:
    """The whole gradients that `fully_shard` adds up over micro-batches; it keeps them apart from the parameters."""
    found = [parameter.unsharded_accumulated_grad for parameter in _sharded_parameters(model)]
    return [gradient for gradient in found if gradient is not None]


def _sharded_parameters(model: nn.Module) -> list[Any]:
    states = [module._get_fsdp_state() for module in model.modules() if isinstance(module, FSDPModule)]
    groups = [group for state in dict.fromkeys(states) for group in state._fsdp_param_groups]
    return [parameter for group in groups for parameter in group.fsdp_params]


def register_first_hook(tensor: Tensor, hook: Callable[[Tensor], None]) -> None:
    """Register `hook` on the gradient of `tensor`, to be called before those that are registered already."""
    tensor.register_hook(hook)
    hooks: Any = tensor._backward_hooks
    *before, last = list(hooks.items())
    hooks.clear()
    hooks.update([last, *before])


def local(tensor: Tensor) -> Tensor:
    """The tensor with memory that `tensor` stands for on this rank, or itself."""
    while isinstance(tensor, WRAPPERS):
        tensor = tensor._local_tensor if isinstance(tensor, DTensor) else tensor.elem
    return tensor


def like(tensor: Tensor, part: Tensor) -> Tensor:
    """A tensor that is divided as `tensor`, of which this rank has `part`; `part` itself if `tensor` is not divided."""
    if not isinstance(tensor, DTensor):
        return part
    mesh, placements = tensor.device_mesh, tensor.placements
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=tensor.shape, stride=tensor.stride())


def shapes_along(parameter: DTensor, dimension: int) -> Callable[[int], tuple[int, ...]]:
    """The shape of the part of `parameter` at each index of a dimension of its mesh, by torch's rules.

    `fully_shard` divides what the other dimensions leave of the parameter on this rank. Torch's rule for all dimensions
    at once gives the same, but takes a time that grows with the number of ranks.
    """
    mesh, here = parameter.device_mesh, parameter.device_mesh.get_coordinate()
    assert here is not None
    others = [index for index in range(mesh.ndim) if index != dimension]
    sizes, _ = _compute_local_shape_and_global_offset(
        parameter.shape,
        tuple(mesh.size(index) for index in others),
        [here[index] for index in others],
        tuple(parameter.placements[index] for index in others),
        skip_offset=True,
    )
    whole, placement = tuple(map(int, sizes)), parameter.placements[dimension]
    divided = placement.dim  # type: ignore[attr-defined]

    def shape(index: int) -> tuple[int, ...]:
        part, _ = Shard.local_shard_size_and_offset(whole[divided], mesh.size(dimension), index)
        return *whole[:divided], int(part), *whole[divided + 1 :]

    return shape


def name_of_group(argument: object) -> str | None:
    """The name of a process group among the arguments of an op, which has them as script objects; else None."""
    if isinstance(argument, torch.ScriptObject) and "ProcessGroup" in str(argument._type()):
        return str(dist.ProcessGroup.unbox(argument).group_name)
    return None


def propagates_shapes() -> bool:
    """Whether DTensor computes the shape of a result now, which it does by running the op on fake tensors."""
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None


@contextlib.contextmanager
def _messages_on_meta() -> Iterator[None]:
    """Batches of messages ask which devices the backend of a group supports."""
    devices = dist.Backend.backend_capability["fake"]
    with replaced(dist.Backend, "backend_capability", dist.Backend.backend_capability | {"fake": [*devices, "meta"]}):
        yield
