"""The collectives of a step on one rank: which, over which ranks, how many bytes, in which phase."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_leaves

from counting.measurements.ranks.stand_ins import name_of_group
from counting.ranks.profile import Axis, Collective, CollectiveOp, RankPhase, Traffic, Traffics

Argument = Callable[[tuple[Any, ...], Any], Any]  # from the op's arguments and its result

Axes = Mapping[str, set[Axis]]

NAMESPACES = ("c10d", "_c10d_functional", "_dtensor")
# Ops of these namespaces that send nothing.
SEND_NOTHING = frozenset({"wait_tensor", "_wrap_tensor_autograd"})


class _Call(NamedTuple):
    """What an op does, and which of its arguments, or its result, it reads and writes."""

    operation: CollectiveOp
    read: Argument
    written: Argument


def _first(args: tuple[Any, ...], out: Any) -> Any:
    return args[0]


def _second(args: tuple[Any, ...], out: Any) -> Any:
    return args[1]


def _result(args: tuple[Any, ...], out: Any) -> Any:
    return out


def _nothing(args: tuple[Any, ...], out: Any) -> Any:
    return ()


_CALLS = {
    "c10d::send": _Call("send", _first, _nothing),
    "c10d::recv_": _Call("receive", _nothing, _first),
    "c10d::_allgather_base_": _Call("all_gather", _second, _first),
    "c10d::_reduce_scatter_base_": _Call("reduce_scatter", _second, _first),
    "c10d::allreduce_": _Call("all_reduce", _first, _first),
    "_c10d_functional::all_gather_into_tensor": _Call("all_gather", _first, _result),
    "_c10d_functional::reduce_scatter_tensor": _Call("reduce_scatter", _first, _result),
    "_c10d_functional::all_reduce": _Call("all_reduce", _first, _result),
    "_c10d_functional::all_reduce_": _Call("all_reduce", _first, _result),
    "_c10d_functional::all_to_all_single": _Call("all_to_all", _first, _result),
}


class CollectiveCounter:
    """Adds up the traffic of each collective; an instance is called with each op that runs.

    `axes` is the result of `axes_of`. In the phase `optimizer`, call `of_tensors` with each op on DTensors.
    """

    def __init__(self, axes: Axes) -> None:
        self._axes = axes
        self._traffics: Traffics = {}
        self.phase: RankPhase = "forward"
        self._of_mesh: set[Axis] = set()  # of the last op on DTensors

    def __call__(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Count one op, if it is a collective. A collective that is not known is an `AssertionError`."""
        if function.namespace not in NAMESPACES:
            return
        name = function.name().partition(".")[0]
        if name.partition("::")[2] in SEND_NOTHING:
            return
        assert name in _CALLS, f"collective {name}: not known"
        call = _CALLS[name]
        sent = call.read(args, out)
        # Groups of the same ranks can be one group.
        calling = (
            self._axes_that_sum_norms(name)
            if self.phase == "optimizer"
            else _axes_that_call(name, call.operation, sent)
        )
        (axis,) = self._axes[_group_of([*args, *kwargs.values()])] & calling
        key = Collective(self.phase, call.operation, axis).key
        once = Traffic(calls=1, bytes_in=_bytes(sent), bytes_out=_bytes(call.written(args, out)))
        self._traffics[key] = self._traffics.get(key, Traffic()) + once

    def of_tensors(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note the mesh of an op on DTensors, over which its arguments or its result may be summed."""
        del function
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, DTensor):  # not a result that is not waited for yet
                self._of_mesh = set(leaf.device_mesh.mesh_dim_names or ())  # type: ignore[arg-type]
                return

    def _axes_that_sum_norms(self, name: str) -> set[Axis]:
        """Of clipping: stages of a pipeline have a collective of c10d, all else is DTensor's, over axes of its mesh."""
        return {"pp"} if name.startswith("c10d::") else self._of_mesh

    def take(self) -> Traffics:
        """The traffic since the last call of this function."""
        taken, self._traffics = self._traffics, {}
        return taken


def _axes_that_call(name: str, operation: CollectiveOp, sent: Any) -> set[Axis]:
    """The axes whose ranks call a collective: `fully_shard` has those of c10d, all else the functional ones.

    Stages of a pipeline send to and receive from single ranks. The ranks of ep and of cp exchange tensors: rows with
    their counts in int64, and flat gradients.
    """
    if operation in ("send", "receive"):
        return {"pp"}
    if name.startswith("c10d::"):
        return {"dp", "fsdp", "expert_dp", "expert_fsdp"}
    if operation == "all_to_all":
        is_flat_gradient = sent.dim() == 1 and sent.is_floating_point()
        return {"cp"} if is_flat_gradient else {"ep"}
    return {"tp", "cp"}


def axes_of(meshes: Iterable[DeviceMesh | None]) -> Axes:
    """The axes of each process group of the meshes, by its name; a mesh's dimensions are named as the axes are."""
    found: dict[str, set[Axis]] = {}
    for mesh in meshes:
        if mesh is not None:
            for axis in mesh.mesh_dim_names or ():
                found.setdefault(mesh.get_group(axis).group_name, set()).add(axis)  # type: ignore[arg-type]
    return found


def _group_of(arguments: Iterable[Any]) -> str:
    """The name of the process group among the arguments of an op."""
    arguments = list(arguments)
    names = [name for argument in arguments if (name := name_of_group(argument)) is not None]
    # Functional collectives have the name itself, as their last string.
    return [*(argument for argument in arguments if isinstance(argument, str)), *names][-1]


def _bytes(value: Any) -> int:
    return sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(value) if isinstance(leaf, Tensor))
