"""The autograd of the simulation: bytes alive while tensors are allocated, kept, differentiated and freed.

A `Tape` computes no values. It records the size of every tensor, the tensors that backward needs, and the tensors that
backward allocates. It follows torch's reverse-mode differentiation (Paszke et al. 2019, arXiv 1912.01703, §5.3): the
newest operation runs first, an operation frees the tensors that it kept when it is done, and gradients of the same
tensor are added. A tensor is alive as long as a variable of the code that runs on the tape, an operation that keeps it,
or a pending gradient refers to it. Torch-free.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

HALF = 2  # bytes of a 16-bit weight or activation
SINGLE = 4  # bytes of an fp32 number
LONG = 8  # bytes of an index that sort or topk returns
INT = 4  # bytes of an index that the grouped product takes
BOOL = 1


class Size(NamedTuple):
    """Size of a tensor: how many numbers it has, and the bytes of each."""

    numel: int
    width: int

    @property
    def bytes(self) -> int:
        """Bytes of all numbers together."""
        return self.numel * self.width


class Storage:
    """Memory that is alive as long as an array refers to it."""

    __slots__ = ("arrays", "serial", "tape")

    def __init__(self, tape: "Tape", size: int) -> None:
        self.tape = tape
        self.arrays = 0
        self.serial = tape.allocate(size)

    def __del__(self) -> None:
        self.tape.release(self.serial)


class Array:
    """A tensor, represented by its size. `edge` is the target of its gradient, or None if it needs no gradient.

    A view keeps a reference to `base`, the array whose memory it shares.
    """

    __slots__ = ("base", "edge", "size", "storage")

    def __init__(self, size: Size, storage: Storage, edge: "Edge | None" = None, base: "Array | None" = None) -> None:
        self.size = size
        self.storage = storage
        self.edge = edge
        self.base = base
        storage.arrays += 1

    def __del__(self) -> None:
        self.storage.arrays -= 1

    @property
    def numel(self) -> int:
        """Number of elements."""
        return self.size.numel

    def again(self) -> "Array":
        """Return another reference to the same tensor."""
        return Array(self.size, self.storage, self.edge, self.base)

    def view(self, numel: int | None = None) -> "Array":
        """Return a view: another shape of the tensor, or a part of `numel` numbers."""
        size = self.size if numel is None else Size(numel, self.size.width)
        return Array(size, self.storage, self.edge, self)


class TooLarge(NamedTuple):
    """A gradient of a broadcast operand, which must still be summed to the operand's `size`."""

    gradient: Array
    size: Size


Gradients = list[Array | None]
InputGradients = list[Array | TooLarge | None]
Derive = Callable[[Gradients], InputGradients]  # gradients of outputs -> newly allocated gradients of inputs


class Operation:
    """One operation for backward: the gradients of its outputs, the arrays it kept, and the targets of its results.

    Within a checkpoint nothing is kept; the `segment` runs the operations again to restore `kept`.
    """

    __slots__ = ("before", "derive", "edges", "gradients", "kept", "segment")

    def __init__(self, outputs: int, edges: Sequence["Edge | None"], kept: Sequence[Array], derive: Derive) -> None:
        self.gradients: Gradients = [None] * outputs
        self.edges = edges
        self.kept = kept
        self.derive: Derive | None = derive
        self.segment: Segment | None = None
        self.before: tuple[Callable[[], None], ...] = ()  # called when its gradients are complete


class Kernel(NamedTuple):
    """A kernel whose outputs a checkpoint may keep; of a product with a matrix, its numbers of rows and columns."""

    name: Literal["mm", "other"]
    matrix: tuple[int, int] | None = None


Keeps = Callable[[Kernel], bool]  # whether a checkpoint keeps the outputs of the next such kernel


class Segment:
    """Operations within a checkpoint: only the inputs are kept, until the segment runs again in backward.

    Where it `keeps` the outputs of some kernels, these are kept too, and taken when the segment runs again.
    """

    __slots__ = ("function", "inputs", "keeps", "operations", "outputs")

    def __init__(self, function: Callable[..., Array], inputs: Sequence[Array], keeps: Keeps | None) -> None:
        self.function: Callable[..., Array] | None = function
        self.inputs = inputs
        self.keeps = keeps
        self.operations: list[Operation] = []  # operations that keep at least one array, in order
        self.outputs: deque[tuple[Array, ...] | None] = deque()  # of each kernel in order; None: not kept


class Leaf:
    """A parameter; its gradient is complete when each of its `uses` has delivered a gradient.

    The gradient of a `fresh` one is kept in any case. Gradients are added out of place if they are `apart`, as torch
    adds those of distributed tensors.
    """

    __slots__ = ("apart", "fresh", "gradients", "size", "uses")

    def __init__(self, size: Size, *, apart: bool = False) -> None:
        self.fresh = False
        self.size = size
        self.apart = apart
        self.uses = 0
        self.gradients: Gradients = [None]


class Edge(NamedTuple):
    """The target of a gradient: an output of an operation, or a parameter."""

    target: Operation | Leaf
    output: int = 0


class Tape:
    """Bytes alive, and the recorded operations for backward.

    With `grad`, operations are recorded and keep the arrays that their gradients need. While `keeps_gradients` is
    False, the gradient of each parameter is freed when it is complete: it is added to one that is not counted here.
    """

    def __init__(self, *, grad: bool) -> None:
        self.grad_enabled = grad
        self.recording = grad
        self.keeps_gradients = True
        self.fresh_parameters = False  # those that are made now
        self.wanted: Sequence[bool] | None = None  # which gradients of inputs the operation is to derive; None: all
        self.alive: dict[int, int] = {}  # serial number of a storage -> bytes
        self.live = 0
        self.peak = 0
        self.at_peak: dict[int, int] = {}
        self._again: Segment | None = None  # that runs again
        self._serial = 0
        self._operations: list[Operation] = []
        self._segment: Segment | None = None
        self._gradients: list[Array] = []

    # --- Memory --------------------------------------------------------------------------------------------------

    def allocate(self, size: int) -> int:
        """Allocate `size` bytes; return the serial number of the storage."""
        self._serial += 1
        self.alive[self._serial] = size
        self.live += size
        return self._serial

    def release(self, serial: int) -> None:
        """Free the storage `serial`."""
        self.live -= self.alive.pop(serial)

    def watch(self) -> None:
        """Restart the search for the peak at the current moment."""
        self.peak, self.at_peak = self.live, dict(self.alive)

    # --- Forward -------------------------------------------------------------------------------------------------

    def born(self, *sizes: Size) -> tuple[Array, ...]:
        """Allocate and return the outputs of one kernel, and update the peak."""
        arrays = tuple(Array(size, Storage(self, size.bytes)) for size in sizes)
        if self.live > self.peak:
            self.watch()
        return arrays

    def born_of(self, kernel: Kernel, *sizes: Size) -> tuple[Array, ...]:
        """Allocate and return the outputs of a kernel, or take those that a checkpoint has kept."""
        return self.outputs_of(kernel, lambda: self.born(*sizes))

    def outputs_of(self, kernel: Kernel, run: Callable[[], tuple[Array, ...]]) -> tuple[Array, ...]:
        """Run what counts as one kernel and return its outputs, or take those that a checkpoint has kept."""
        if self._again is not None and self._again.keeps is not None:
            kept = self._again.outputs.popleft()
            return run() if kept is None else kept
        arrays = run()
        segment = self._segment
        if segment is not None and segment.keeps is not None:
            keeps = segment.keeps(kernel)
            segment.outputs.append(tuple(Array(x.size, x.storage) for x in arrays) if keeps else None)
        return arrays

    def new(self, numel: int, width: int) -> Array:
        """Allocate and return the only output of one kernel."""
        return self.born(Size(numel, width))[0]

    def like(self, size: Size) -> Array:
        """Allocate and return the only output of one kernel, of this size."""
        return self.born(size)[0]

    def parameter(self, numel: int, width: int, *, apart: bool = False) -> Leaf:
        """Return a new weight; its bytes are counted with the model states and not on the tape."""
        leaf = Leaf(Size(numel, width), apart=apart)
        leaf.fresh = self.fresh_parameters
        return leaf

    def record(
        self,
        outputs: Sequence[Array],
        inputs: Sequence[Array | Leaf | None],
        kept: Sequence[Array],
        derive: Derive,
    ) -> None:
        """Record an operation for backward; `derive` must not refer to any array, which would keep it alive."""
        edges = [edge_of(x) for x in inputs]
        if not self.recording or not any(edges):
            return
        operation = Operation(len(outputs), edges, [x.again() for x in kept], derive)
        if self._segment is not None and kept:
            operation.kept = ()
            operation.segment = self._segment
            self._segment.operations.append(operation)
        for index, out in enumerate(outputs):
            out.edge = Edge(operation, index)
        if self._again is None:
            for x in inputs:
                if isinstance(x, Leaf):
                    x.uses += 1
        self._operations.append(operation)

    def before_backward(self, x: Array, hook: Callable[[], None]) -> None:
        """Call `hook` in backward when the gradient of `x` is complete."""
        if x.edge is not None and isinstance(x.edge.target, Operation):
            x.edge.target.before += (hook,)

    def after_backward(self, hook: Callable[[], None], *inputs: Array) -> list[Array]:
        """Return the same tensors; call `hook` in backward when the gradients of all of them are complete."""
        outputs = [x.again() for x in inputs]

        def derive(gradients: Gradients) -> InputGradients:
            hook()
            return list(gradients)

        self.record(outputs, inputs, [], derive)
        return outputs

    def checkpoint(self, function: Callable[..., Array], *inputs: Array, keeps: Keeps | None = None) -> Array:
        """Return `function(*inputs)`; only the inputs are kept, and backward runs it again (Chen et al. 2016).

        Backward does so when it first needs an array that was not kept. The inputs are freed after the last operation
        that needs such an array. With `keeps`, the outputs of those kernels are kept too.
        """
        if not self.recording:
            return function(*inputs)
        assert self._segment is None, "a checkpoint within a checkpoint"
        self._segment = Segment(function, [x.again() for x in inputs], keeps)
        out = function(*inputs)
        self._segment = None
        return out

    def _run_again(self, segment: Segment) -> None:
        assert segment.function is not None
        below, self._operations = self._operations, []
        self._again = segment
        segment.function(*segment.inputs)
        self._again = None
        segment.function = None
        again, self._operations = [operation for operation in self._operations if operation.kept], below
        for operation, recomputed in zip(segment.operations, again, strict=True):
            operation.kept = recomputed.kept
        segment.operations = []

    @property
    def position(self) -> int:
        """Number of recorded operations that backward has not processed yet."""
        return len(self._operations)

    # --- Backward ------------------------------------------------------------------------------------------------

    def wants(self, index: int) -> bool:
        """Whether the gradient of this input of the operation that runs is to be derived."""
        return self.wanted is None or self.wanted[index]

    def deliver(self, edge: Edge | None, gradient: Array | TooLarge | None) -> None:
        """Add `gradient` to the gradient at `edge`: in place unless something else refers to that gradient's memory."""
        if edge is None or gradient is None:
            return
        assert isinstance(gradient, Array)
        target, output = edge
        before = target.gradients[output]
        if before is None:
            target.gradients[output] = gradient
        elif before.storage.arrays > 1 or (isinstance(target, Leaf) and target.apart):
            target.gradients[output] = self.like(before.size)
        if isinstance(target, Leaf):
            target.uses -= 1
            if not target.uses:
                self._keep_or_let_go(target)

    def _keep_or_let_go(self, parameter: Leaf) -> None:
        gradient = parameter.gradients.pop()
        assert gradient is not None
        if self.keeps_gradients or parameter.fresh:
            self._gradients.append(gradient)

    def gradients(self) -> frozenset[int]:
        """Return the serial numbers of the storages of the parameters' gradients."""
        return frozenset(gradient.storage.serial for gradient in self._gradients)

    def backward(self, down_to: int = 0) -> None:
        """Process operations from the newest on until `down_to` of them are left."""
        while len(self._operations) > down_to:
            operation = self._operations.pop()
            if any(gradient is not None for gradient in operation.gradients):
                self._undo(operation)

    def _undo(self, operation: Operation) -> None:
        for hook in operation.before:
            hook()
        operation.before = ()
        if operation.segment is not None and operation.segment.function is not None:
            self._run_again(operation.segment)
        assert operation.derive is not None
        results = operation.derive(operation.gradients)
        if operation.segment is not None:  # recomputed arrays are freed before gradients are summed
            operation.kept = ()
        for index, result in enumerate(results):
            if isinstance(result, TooLarge):
                results[index] = self.like(result.size)
        del result
        operation.gradients = []
        operation.kept = ()
        operation.derive = None
        operation.segment = None
        for edge in operation.edges:
            self.deliver(edge, results.pop(0))


def edge_of(x: Array | Leaf | None) -> Edge | None:
    """Return the target of the gradient of `x`; None if `x` needs no gradient."""
    return Edge(x) if isinstance(x, Leaf) else x.edge if x is not None else None
