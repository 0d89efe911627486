"""The bytes of live storages on a rank: as on one device, and besides storages that are resized, and DTensors."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self

import torch
from torch import Tensor
from torch.distributed._functional_collectives import AsyncCollectiveTensor

from counting.measurements.live_bytes import LiveBytes, Observe
from counting.measurements.ranks.stand_ins import (
    WAITS,
    WRAPPERS,
    WRAPS,
    around_communication,
    local,
    propagates_shapes,
    replaced,
)

_aten = torch.ops.aten

FUNCTIONAL = "_c10d_functional"  # the namespace of collectives that return before they are complete

# Called before each op on DTensors with the op, its arguments and its keyword arguments.
ObserveWrapped = Callable[[Any, tuple[Any, ...], dict[str, Any]], None]


class RankBytes(LiveBytes):
    """Dispatch mode that follows every storage of a rank.

    An op on DTensors is seen as the ops on local tensors that it becomes. `fully_shard` frees gathered parameters by
    resizing their storage to 0, and gathers them into it again. `made_by_fully_shard` are the storages that came into
    being while it gathered parameters or reduced gradients. `observe_wrapped` is called with ops on DTensors.
    """

    def __init__(
        self, existing: Iterable[Tensor], observe: Observe, observe_wrapped: ObserveWrapped | None = None
    ) -> None:
        self._observe_wrapped = observe_wrapped
        # Storage of a result that is not waited for yet -> what is sent, to which a real collective refers until then.
        self._sent: dict[int, Any] = {}
        self.made_by_fully_shard: set[int] = set()
        self._communicating = 0
        super().__init__(existing, observe)

    def __enter__(self) -> Self:
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(around_communication(self._begin, self._end))
        self._stack.enter_context(self._resizes())
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._stack.close()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if any(issubclass(kind, WRAPPERS) for kind in types):
            if self._observe_wrapped is not None:
                self._observe_wrapped(function, args, kwargs or {})
            return NotImplemented
        if propagates_shapes():
            return function(*args, **(kwargs or {}))
        if function is WAITS and args[0].is_meta:
            self._sent.pop(id(args[0].untyped_storage()), None)
            return args[0]
        if function is WRAPS and args[0].is_meta:
            return AsyncCollectiveTensor(args[0])
        if function is _aten.split.Tensor and not self._is_followed(args[0]):
            # Gloo's reduce-scatter copies its input without an op, and splits the copy.
            return function(*args, **(kwargs or {}))
        out = super().__torch_dispatch__(function, types, args, kwargs)
        if function.namespace == FUNCTIONAL and isinstance(out, Tensor) and out.is_meta:
            self._sent[id(out.untyped_storage())] = args[0]
        return out

    def serial(self, tensor: Tensor) -> int:
        """The serial number of the live storage that `tensor`, or its local tensor, views."""
        return super().serial(local(tensor))

    def with_memory(self, tensor: Tensor) -> Tensor:
        """The local tensor, of a DTensor too."""
        return local(tensor)

    def _is_followed(self, tensor: Tensor) -> bool:
        return id(tensor.untyped_storage()) in self._serials

    def _follow(self, tensor: Tensor) -> None:
        born = self.born
        super()._follow(local(tensor))
        if self._communicating and self.born > born:
            self.made_by_fully_shard.add(born)

    def _begin(self) -> None:
        self._communicating += 1

    def _end(self) -> None:
        self._communicating -= 1

    @contextlib.contextmanager
    def _resizes(self) -> Iterator[None]:
        """Context in which the new size of a storage that is resized is noted."""
        plain = torch.UntypedStorage.resize_

        def resize(storage: torch.UntypedStorage, size: int) -> Any:
            out = plain(storage, size)
            serial = self._serials.get(id(storage))
            if serial is not None:
                self._resized(serial, storage)
            return out

        with replaced(torch.UntypedStorage, "resize_", resize):
            yield
