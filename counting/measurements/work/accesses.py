"""Which tensors an op reads and which it writes, and how much of each.

By default an op reads its arguments, writes its new results, and does both to what its schema says it changes in place.
The rules here are the exceptions. Bytes are those of distinct numbers: what a kernel reads again is left out.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any, NamedTuple

from torch import Tensor

from counting.measurements.work.records import Region

Arguments = dict[str, Any]  # by the names of the op's schema


class Access(NamedTuple):
    """A tensor that an op reads or writes; at most `numbers` of it are touched, None stands for all."""

    tensor: Tensor
    numbers: int | None = None
    selected_by: Tensor | None = None  # the indices that say which


class Accesses(NamedTuple):
    """What one op reads and writes; what it changes in place is in both."""

    reads: list[Access]
    writes: list[Access]


class _Signature(NamedTuple):
    name: str
    parameters: tuple[str, ...]
    changed: frozenset[str]
    written: frozenset[str]  # of those that are changed, the ones that are not read


# What these do is no kernel: they allocate, or ask the host.
_ALLOCATIONS = ("empty", "new_empty", "_empty", "resize", "set_", "_efficientzerotensor")
_COMMUNICATION = ("c10d", "_c10d_functional", "_c10d_functional_autograd", "_dtensor")
_QUESTIONS = ("prim", "profiler")
# In place, without reading what was there.
_OVERWRITES = frozenset(
    (
        *("bernoulli_", "cauchy_", "copy_", "exponential_", "fill_", "geometric_", "log_normal_", "normal_"),
        *("random_", "uniform_", "zero_", "_foreach_copy_", "_foreach_zero_"),
    )
)
_GATHERS = {
    "embedding": "weight",
    "gather": "self",
    "index": "self",
    "index_select": "self",
    "take": "self",
    "_unsafe_index": "self",
}
_SCATTERS = ("index_add_", "index_copy_", "index_fill_", "index_put_", "scatter_", "scatter_add_", "scatter_reduce_")
_OVERWRITING_SCATTERS = frozenset({"index_copy_", "index_fill_", "index_put_", "scatter_"})


def accesses(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Accesses | None:
    """What `out = function(*args, **kwargs)` reads and writes on the device; None if it does nothing there.

    Views, allocations and questions do nothing: no result is new, and nothing is changed.
    """
    signature = _signature(function)
    if function.is_view or function.namespace in _QUESTIONS or signature.name.startswith(_ALLOCATIONS):
        return None
    arguments = arguments_of(function, args, kwargs)
    if function.namespace == "c10d":  # its schemas do not say what is written
        return Accesses(*[_all_of(arguments, lambda name: True)] * 2)
    rule = _RULES.get(signature.name)
    if rule is None and (signature.name.endswith("_like") or signature.name.startswith("new_")):
        rule = _made_like
    found = rule(signature, arguments, out) if rule is not None else _by_schema(signature, arguments, out)
    return found if any(access.tensor.numel() for access in found.writes) else None


def communicates(function: Any) -> bool:
    """Whether an op sends something to other ranks, or waits for it."""
    return function.namespace in _COMMUNICATION


def name_of(function: Any) -> str:
    """The name of an op, without namespace."""
    return _signature(function).name


def arguments_of(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    """The arguments of an op by name; those that are left out are not there."""
    return dict(zip(_signature(function).parameters, args, strict=False)) | kwargs


@cache
def _signature(function: Any) -> _Signature:
    schema = function._schema
    changed = {argument.name for argument in schema.arguments if argument.is_write}
    written = {argument.name for argument in schema.arguments if argument.is_out}
    name = function.overloadpacket._qualified_op_name.partition("::")[2]
    return _Signature(
        name,
        tuple(argument.name for argument in schema.arguments),
        frozenset(changed),
        frozenset(changed if name in _OVERWRITES else written),
    )


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in an argument or a result, which may be lists of them."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_in(item)


def _by_schema(signature: _Signature, arguments: Arguments, out: Any) -> Accesses:
    reads = _all_of(arguments, lambda name: name not in signature.written)
    changed = _all_of(arguments, lambda name: name in signature.changed)
    return Accesses(reads, [*changed, *_new(arguments, out)])


def _all_of(arguments: Arguments, is_meant: Callable[[str], bool]) -> list[Access]:
    return [Access(tensor) for name, value in arguments.items() if is_meant(name) for tensor in tensors_in(value)]


def _new(arguments: Arguments, out: Any) -> Iterator[Access]:
    """The results that lie in no storage of an argument."""
    given = {id(tensor.untyped_storage()) for value in arguments.values() for tensor in tensors_in(value)}
    return (Access(tensor) for tensor in tensors_in(out) if id(tensor.untyped_storage()) not in given)


# --- The exceptions ----------------------------------------------------------------------------------------------


def _gather(signature: _Signature, arguments: Arguments, out: Any) -> Accesses:
    """As many numbers of the table as the result has."""
    table_name = _GATHERS[signature.name]
    table = arguments[table_name]
    indices = _all_of(arguments, lambda name: name != table_name)
    taken = Access(table, out.numel(), indices[0].tensor)
    return Accesses([taken, *indices], [Access(out)])


def _scatter(signature: _Signature, arguments: Arguments, out: Any) -> Accesses:
    """A number of the target for each one that is put there; it is read if something is added."""
    target = arguments["self"]
    given = _all_of(arguments, lambda name: name != "self")
    index = next(tensors_in(arguments.get("index", arguments.get("indices"))))
    source = next(tensors_in([arguments.get(name) for name in ("src", "source", "values")]), index)
    numbers = source.numel() if source.dim() else index.numel()
    touched = Access(target, numbers, index)
    overwrites = signature.name in _OVERWRITING_SCATTERS and not arguments.get("accumulate")
    return Accesses(given if overwrites else [touched, *given], [touched])


def _made_like(signature: _Signature, arguments: Arguments, out: Any) -> Accesses:
    """Of the argument it takes shape and dtype alone."""
    return Accesses([], list(_new(arguments, out)))


def _loss_forward(signature: _Signature, arguments: Arguments, out: Any) -> Accesses:
    """One number of each row, that of the label."""
    labels = arguments["target"]
    picked = Access(arguments["self"], labels.numel(), labels)
    return Accesses([picked, Access(labels)], [Access(tensor) for tensor in tensors_in(out)])


def _loss_backward(signature: _Signature, arguments: Arguments, out: Any) -> Accesses:
    """The gradient is zeros and a number in each row; of the input it takes the shape alone."""
    return Accesses(_all_of(arguments, lambda name: name != "self"), [Access(out)])


def _fused_update(signature: _Signature, arguments: Arguments, out: Any) -> Accesses:
    """The schema lets it change gradients and maximal moments; it does so only with a scale, and with amsgrad."""
    kept = {"grads"} if arguments.get("grad_scale") is None else set()
    return _by_schema(signature._replace(changed=signature.changed - kept), arguments, out)


def _copy_into_gather(signature: _Signature, arguments: Arguments, out: Any) -> Accesses:
    """fully_shard copies its shards to their place in the buffer of an all-gather, which is the first result."""
    return Accesses([Access(tensor) for tensor in tensors_in(arguments["all_gather_inputs"])], [Access(out[0])])


_RULES: dict[str, Callable[[_Signature, Arguments, Any], Accesses]] = {
    **dict.fromkeys(_GATHERS, _gather),
    **dict.fromkeys(_SCATTERS, _scatter),
    "nll_loss_forward": _loss_forward,
    "nll_loss_backward": _loss_backward,
    **dict.fromkeys(("_fused_adam_", "_fused_adamw_", "_fused_sgd_", "_fused_adagrad_"), _fused_update),
    "all_gather_copy_in": _copy_into_gather,
}


def region_of(tensor: Tensor) -> tuple[Region, int]:
    """Which numbers of its storage a tensor views, equal for all that view the same; and how many distinct ones.

    Dimensions of size 1 and expanded ones, whose stride is 0, are left out; those that follow each other are one.
    """
    dims = sorted(
        ((stride, size) for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size != 1 and stride),
        reverse=True,
    )
    merged: list[tuple[int, int]] = []
    for stride, size in dims:
        if merged and merged[-1][0] == stride * size:
            merged[-1] = (stride, merged[-1][1] * size)
        else:
            merged.append((stride, size))
    numbers = 1 if tensor.numel() else 0
    for _, size in merged:
        numbers *= size
    return (tensor.storage_offset(), *merged), numbers


def distinct(accesses: Iterable[Access]) -> list[Access]:
    """`accesses` without what no number is touched of."""
    return [access for access in accesses if access.tensor.numel() and access.numbers != 0]
