"""Records every op that a tracker of live bytes sees, between cuts."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from counting.measurements.live_bytes import LiveBytes
from counting.measurements.meta_device import observing_kernels
from counting.measurements.ops.formulas import op_flops
from counting.measurements.work.accesses import (
    Access,
    accesses,
    arguments_of,
    communicates,
    distinct,
    name_of,
    region_of,
)
from counting.measurements.work.records import RawOp, RawStretch, Touch
from counting.measurements.work.shapes import multiplied
from counting.step.profile import Alive


class Recorder:
    """Records ops; an instance is called with each op that runs, as an `observe` argument of `LiveBytes`.

    Use it inside `of(tracker)`: the storages of tensors are known by the tracker's serial numbers. `cut` ends a
    stretch; `stretches` are those so far, in order. Kernels that `measuring` only allocates for, those of fused norms,
    are recorded too.
    """

    def __init__(self) -> None:
        self.stretches: list[RawStretch] = []
        self._ops: list[RawOp] = []
        self._tracker: LiveBytes | None = None
        self._unknown = 0  # tensors that the tracker does not follow, such as constants: -1, -2, ...

    @contextlib.contextmanager
    def of(self, tracker: LiveBytes) -> Iterator[None]:
        """Context in which ops are those that `tracker` sees."""
        self._tracker = tracker
        with observing_kernels(self.kernel):
            yield
        self._tracker = None

    def __call__(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Record one op, if it does anything on the device."""
        found = accesses(function, args, kwargs, out)
        if found is None:
            return
        name, reads, writes = name_of(function), self._touches(found.reads), self._touches(found.writes)
        if communicates(function):
            self._ops.append(RawOp("collective", name, reads, writes))
            return
        flops = op_flops(function, args, kwargs, out)
        if not flops:
            is_complex = any(access.tensor.is_complex() for access in (*found.reads, *found.writes))
            self._ops.append(RawOp("memory", name, reads, writes, is_complex=is_complex))
            return
        of = multiplied(name, flops, arguments_of(function, args, kwargs))
        self._ops.append(RawOp(of.kind, name, reads, writes, flops, of.computed_flops, of.dtype, of.shape, of.backward))

    def kernel(self, name: str, reads: tuple[Tensor | None, ...], writes: tuple[Tensor | None, ...]) -> None:
        """Record a kernel that is no op on this device, and reads and writes these tensors."""
        read, written = (
            self._touches([Access(each) for each in tensors if each is not None]) for tensors in (reads, writes)
        )
        self._ops.append(RawOp("memory", name, read, written))

    def added_to_buffer(self, gradient: Tensor, dtype: torch.dtype) -> None:
        """Record that a gradient is added to a buffer in `dtype`, which no tensor here stands for."""
        (of_gradient,) = self._touches([Access(gradient)])
        self._unknown -= 1
        size = of_gradient.bytes // gradient.element_size() * dtype.itemsize
        buffer = Touch(self._unknown, (), size, size)
        self._ops.append(RawOp("memory", "add_", (of_gradient, buffer), (buffer,)))

    def cut(self, alive: Alive | None = None) -> None:
        """End a stretch. `alive` are the storages of the tracker that are alive now; None: it is asked for them."""
        assert self._tracker is not None, "inside `of`"
        self.stretches.append(RawStretch(self._ops, self._tracker.alive() if alive is None else alive))
        self._ops = []

    def take(self) -> list[RawStretch]:
        """The stretches since the last call of this function."""
        taken, self.stretches = self.stretches, []
        return taken

    def _touches(self, found: list[Access]) -> tuple[Touch, ...]:
        return tuple(map(self._touch, distinct(found)))

    def _touch(self, access: Access) -> Touch:
        assert self._tracker is not None, "inside `of`"
        tensor = self._tracker.with_memory(access.tensor)
        region, numbers = region_of(tensor)
        if access.numbers is not None and access.numbers < numbers:
            chosen = None if access.selected_by is None else self._serial(access.selected_by)
            region, numbers = (*region, "of", chosen), access.numbers
        size = tensor.element_size()
        return Touch(self._serial(tensor), region, numbers * size, tensor.untyped_storage().nbytes())

    def _serial(self, tensor: Tensor) -> int:
        assert self._tracker is not None, "inside `of`"
        try:
            return self._tracker.serial(tensor)
        except KeyError:
            self._unknown -= 1
            return self._unknown
