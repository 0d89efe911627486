"""Measured memory: the bytes of live storages, followed op by op, and the peak of one layer's forward pass."""

import weakref
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from counting.counts import LayerMemory
from counting.step.course import Change
from torch_models.errors import UserError

_aten = torch.ops.aten

# Called after every op with the op, its arguments, its keyword arguments, and its result.
Observe = Callable[[Any, tuple[Any, ...], dict[str, Any], Any], None]


class LiveBytes(TorchDispatchMode):
    """Dispatch mode that follows every storage from its creation to its release; views share their storage.

    Workspaces that a kernel allocates and frees inside one op are not visible. Storages are counted at their exact
    size; an allocator would round up. `existing` are tensors that exist before; `observe` is called after every op.
    To `history`, if it is given, every allocation, release and change of size is added. Raises `UserError` for a tensor
    that is not strided.
    """

    def __init__(
        self, existing: Iterable[Tensor], observe: Observe | None = None, history: list[Change] | None = None
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._observe = observe
        self._history = history
        self._serials: dict[int, int] = {}  # id of a live storage -> its serial number, which is never reused
        self._bytes: dict[int, int] = {}  # serial number of a live storage -> bytes
        self.born = 0
        self.live = 0
        self.peak = 0
        self.at_peak: dict[int, int] = {}
        _sole_references()  # fills its cache: the first call must not be inside a backward pass
        for tensor in existing:
            self._follow(tensor)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Whether torch's compiler, if it is loaded, is switched off anew for each op: nothing is compiled here."""
        return False

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is _aten.add.Tensor and _adds_in_place(*args):
            function = _aten.add_.Tensor
        out = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._follow(leaf)
        if self.live > self.peak:
            self.watch()
        if self._observe is not None:
            self._observe(function, args, kwargs or {}, out)
        return out

    def watch(self) -> None:
        """Restart the search for the peak at the current state."""
        self.peak, self.at_peak = self.live, dict(self._bytes)

    def serial(self, tensor: Tensor) -> int:
        """The serial number of the live storage that `tensor` views."""
        return self._serials[id(tensor.untyped_storage())]

    def with_memory(self, tensor: Tensor) -> Tensor:
        """The tensor that has the memory of `tensor`: here itself."""
        return tensor

    def alive(self) -> dict[int, int]:
        """The bytes of all live storages, by serial number."""
        return dict(self._bytes)

    def _follow(self, tensor: Tensor) -> None:
        if tensor.layout != torch.strided:
            raise UserError(f"a tensor of layout {tensor.layout}: only strided tensors have one storage to follow")
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._serials:
            return
        serial, size = self.born, storage.nbytes()
        self.born += 1
        self._serials[key], self._bytes[serial] = serial, size
        self.live += size
        self._note(serial, size)
        weakref.finalize(storage, self._release, key, serial)

    def _resized(self, serial: int, storage: torch.UntypedStorage) -> None:
        """Note the new size of a storage."""
        self.live += storage.nbytes() - self._bytes[serial]
        self._bytes[serial] = storage.nbytes()
        self._note(serial, storage.nbytes())
        if self.live > self.peak:
            self.watch()

    def _release(self, key: int, serial: int) -> None:
        self.live -= self._bytes.pop(serial)
        del self._serials[key]
        self._note(serial, 0)

    def _note(self, serial: int, size: int) -> None:
        if self._history is not None:
            self._history.append(Change(serial, size))


def _adds_in_place(total: Tensor, term: object) -> bool:
    """Whether torch would add this gradient in place if no dispatch mode were active.

    With a dispatch mode, the backward pass adds several gradients of one tensor out of place. Without one, it adds in
    place to a sum that is no view and that only the backward pass refers to (torch/csrc/autograd/input_buffer.cpp). To
    the gradient of a parameter it adds in place in both cases (accumulate_grad.h).
    """
    node = torch._C._current_autograd_node()
    runs_again = torch._C._autograd._top_saved_tensors_default_hooks(True) is not None  # a layer, without gradients
    if (
        node is None
        or torch.is_grad_enabled()
        or runs_again
        or not isinstance(term, Tensor)
        or term.shape != total.shape
    ):
        return False
    return _references(total) == _sole_references()


def _references(tensor: Tensor) -> tuple[int, int]:
    """Reference counts of the tensor and of its storage, including the reference that this function makes."""
    of_tensor: int = tensor._use_count()  # type: ignore[attr-defined]
    return of_tensor, torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)


@cache
def _sole_references() -> tuple[int, int]:
    """`_references`, inside a dispatch mode, of a sum that only the backward pass refers to."""
    found: list[tuple[int, int]] = []

    class Watcher(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is _aten.add.Tensor:
                found.append(_references(args[0]))
            return function(*args, **(kwargs or {}))

    with torch.enable_grad():
        x = torch.empty(2, device="meta", requires_grad=True) * 2
        out = x.sin() * x.cos()
    with Watcher():  # type: ignore[no-untyped-call]
        torch.autograd.backward(out, torch.empty_like(out))
    (references,) = found
    return references


def layer_memory(
    layer: nn.Module, x_BSD: Tensor, shared: tuple[Tensor, ...], *, grad: bool, observe: Observe | None = None
) -> LayerMemory:
    """The peak of `layer(x_BSD, shared)`, in bytes. `x_BSD` is (B, S, D).

    With `grad` the layer runs as in the recomputation of a checkpointed layer, without it as in its first pass.
    `shared` are inputs that all layers share (rotary tables). The layer's weights stay alive throughout.
    """
    weights = [*layer.parameters(), *layer.buffers()]
    boundary = x_BSD.detach().requires_grad_(grad)
    with torch.set_grad_enabled(grad), LiveBytes([*weights, boundary, *shared], observe) as tracker:
        out = layer(boundary, shared)
    weight_serials = {tracker.serial(weight) for weight in weights}
    boundary_serial = tracker.serial(boundary)
    kept = set(tracker.alive()) if grad else set()  # without grad, live shared inputs are not saved for backward
    saved_serials = kept - weight_serials - {boundary_serial, tracker.serial(out)}
    groups = {"weights": 0, "boundary": 0, "saved": 0, "transients": 0}
    for serial, size in tracker.at_peak.items():
        if serial in weight_serials:
            group = "weights"
        elif serial == boundary_serial:
            group = "boundary"
        else:
            group = "saved" if serial in saved_serials else "transients"
        groups[group] += size
    return LayerMemory(**groups)
