"""Every allocation and release of storages while something runs, in order: what a caching allocator is asked for."""

from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from counting.allocator.events import Allocate, Event, Free, Mark
from counting.measurements.allocations.workspaces import Workspaces
from counting.measurements.live_bytes import LiveBytes

MAIN_STREAM = "main"


class AllocationLog(LiveBytes):
    """Dispatch mode that writes down each allocation and each release of a storage on `device`, and of workspaces.

    `existing` are tensors that are there at the start, in the order in which they came into being.
    """

    def __init__(self, existing: Iterable[Tensor], device: torch.device, workspaces: Workspaces) -> None:
        self.events: list[Event] = []
        self._device = device
        self._workspaces = workspaces
        self._function: Any = None
        self._keys: dict[int, int] = {}  # serial number of a storage that has been resized -> its key now
        self._own_keys = 0  # of resized storages and workspaces, which have no serial number: -1, -2, ...
        super().__init__(existing, self._run_in_kernel)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self._function = function
        return super().__torch_dispatch__(function, types, args, kwargs)

    def watch(self) -> None:
        """Note the new peak; which storages are alive is in the log."""
        self.peak = self.live

    def mark(self, name: str) -> None:
        """Name this moment."""
        self.events.append(Mark(name))

    def stream(self) -> str:
        """The stream in which an op runs now."""
        return MAIN_STREAM

    def _allocate(self, key: int, size: int, name: str) -> None:
        self.events.append(Allocate(key, size, self.stream(), name))

    def _own_key(self) -> int:
        self._own_keys -= 1
        return self._own_keys

    def _run_in_kernel(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Write down what the kernel of this op allocates beside its result."""
        kept, temporary = self._workspaces(function, args)
        for size in kept:
            self._allocate(self._own_key(), size, "workspace")
        keys = [self._own_key() for _ in temporary]
        for key, size in zip(keys, temporary, strict=True):
            self._allocate(key, size, "workspace")
        self.events.extend(map(Free, keys))

    def _follow(self, tensor: Tensor) -> None:
        if tensor.device != self._device:
            return  # an optimiser's counters on the host
        born = self.born
        super()._follow(tensor)
        if self.born > born:
            self._allocate(born, self._bytes[born], _name_of(self._function))

    def _release(self, key: int, serial: int) -> None:
        super()._release(key, serial)
        self.events.append(Free(self._keys.pop(serial, serial)))

    def _resized(self, serial: int, storage: torch.UntypedStorage) -> None:
        """A storage of another size is another block."""
        super()._resized(serial, storage)
        self.events.append(Free(self._keys.get(serial, serial)))
        self._keys[serial] = key = self._own_key()
        self._allocate(key, storage.nbytes(), "resize")


@cache
def _name_of(function: Any) -> str:
    return "parameter" if function is None else str(function.name())
