"""The simulation's autograd: bytes alive while tensors are allocated, kept, differentiated and freed.

A `Tape` computes nothing. It knows the size of every tensor, which of them backward needs, and what backward allocates
in return; it follows the rules of reverse-mode differentiation as torch carries it out (Paszke et al. 2019, arXiv
1912.01703, §5.3): the newest operation first, each freeing what it kept once it is done, and gradients that meet added
up. A tensor is alive as long as a variable of the code that runs on the tape, an operation that keeps it, or a
gradient on its way refers to it. Torch-free.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

HALF = 2  # bytes of a 16-bit weight or activation
SINGLE = 4  # bytes of what is computed in fp32
LONG = 8  # bytes of an index as sort and topk return it
INT = 4  # bytes of an index as the grouped product takes it
BOOL = 1


class Size(NamedTuple):
    """How many numbers, and bytes of each."""

    numel: int
    width: int

    @property
    def bytes(self) -> int:
        """All of them."""
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
    """A tensor, by its size; `edge` is where its gradient goes, None where none is wanted.

    A view keeps the array whose memory it shares.
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
        """How many numbers."""
        return self.size.numel

    def again(self) -> "Array":
        """The same tensor, referred to once more."""
        return Array(self.size, self.storage, self.edge, self.base)

    def view(self, numel: int | None = None) -> "Array":
        """Another shape of it, or a part."""
        size = self.size if numel is None else Size(numel, self.size.width)
        return Array(size, self.storage, self.edge, self)


class TooLarge(NamedTuple):
    """A gradient of what was repeated to the size of its partner: still to be summed up."""

    gradient: Array
    size: Size


Gradients = list[Array | None]
InputGradients = list[Array | TooLarge | None]
Derive = Callable[[Gradients], InputGradients]  # gradients of an operation's outputs -> those of its inputs, just born


class Operation:
    """What backward must do to undo one step: the gradients that reach it, what it kept, where its results go.

    Below a checkpoint nothing was kept, and the `segment` knows how to come by it.
    """

    __slots__ = ("derive", "edges", "gradients", "kept", "segment")

    def __init__(self, outputs: int, edges: Sequence["Edge | None"], kept: Sequence[Array], derive: Derive) -> None:
        self.gradients: Gradients = [None] * outputs
        self.edges = edges
        self.kept = kept
        self.derive: Derive | None = derive
        self.segment: Segment | None = None


class Segment:
    """Steps of which only the inputs were kept; what the others need is there once it has run again."""

    __slots__ = ("function", "inputs", "operations")

    def __init__(self, function: Callable[..., Array], inputs: Sequence[Array]) -> None:
        self.function: Callable[..., Array] | None = function
        self.inputs = inputs
        self.operations: list[Operation] = []  # those that keep something, in order


class Leaf:
    """A parameter, whose gradient is complete once all its `uses` have sent theirs."""

    __slots__ = ("gradients", "size", "uses")

    def __init__(self, size: Size) -> None:
        self.size = size
        self.uses = 0
        self.gradients: Gradients = [None]


class Edge(NamedTuple):
    """An output of an operation, or a parameter: where a gradient is added up."""

    target: Operation | Leaf
    output: int = 0


class Tape:
    """Bytes alive, and the operations that backward will undo.

    With `grad` operations are recorded and keep what their gradients need. `keeps_gradients` is False where each
    parameter's gradient is added to a buffer of another format, which is not counted here, and let go.
    """

    def __init__(self, *, grad: bool, keeps_gradients: bool = True) -> None:
        self.grad_enabled = grad
        self.recording = grad
        self.keeps_gradients = keeps_gradients
        self.alive: dict[int, int] = {}  # serial number of a storage -> bytes
        self.live = 0
        self.peak = 0
        self.at_peak: dict[int, int] = {}
        self.parameters: list[int] = []  # how many numbers each has
        self._again = False
        self._serial = 0
        self._operations: list[Operation] = []
        self._segment: Segment | None = None
        self._gradients: list[Array] = []

    # --- Memory --------------------------------------------------------------------------------------------------

    def allocate(self, size: int) -> int:
        """The serial number of new memory."""
        self._serial += 1
        self.alive[self._serial] = size
        self.live += size
        return self._serial

    def release(self, serial: int) -> None:
        """Memory that nothing refers to any more."""
        self.live -= self.alive.pop(serial)

    def watch(self) -> None:
        """Look for the peak from here on."""
        self.peak, self.at_peak = self.live, dict(self.alive)

    # --- Forward -------------------------------------------------------------------------------------------------

    def born(self, *sizes: Size) -> tuple[Array, ...]:
        """The outputs of one kernel."""
        arrays = tuple(Array(size, Storage(self, size.bytes)) for size in sizes)
        if self.live > self.peak:
            self.watch()
        return arrays

    def new(self, numel: int, width: int) -> Array:
        """The only output of one kernel."""
        return self.born(Size(numel, width))[0]

    def like(self, size: Size) -> Array:
        """The only output of one kernel."""
        return self.born(size)[0]

    def parameter(self, numel: int, width: int) -> Leaf:
        """A weight; its bytes are counted by whoever holds the model."""
        if not self._again:
            self.parameters.append(numel)
        return Leaf(Size(numel, width))

    def record(
        self,
        outputs: Sequence[Array],
        inputs: Sequence[Array | Leaf | None],
        kept: Sequence[Array],
        derive: Derive,
    ) -> None:
        """Note how `outputs` came of `inputs`; `derive` must hold on to no array, or it would live on."""
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
        if not self._again:
            for x in inputs:
                if isinstance(x, Leaf):
                    x.uses += 1
        self._operations.append(operation)

    def checkpoint(self, function: Callable[..., Array], *inputs: Array) -> Array:
        """`function(*inputs)`, of which backward keeps the inputs alone, and runs it again (Chen et al. 2016).

        It does so when it first needs what it did not keep. The inputs are let go with the last of that.
        """
        if not self.recording:
            return function(*inputs)
        assert self._segment is None, "a checkpoint within a checkpoint"
        self._segment = Segment(function, [x.again() for x in inputs])
        out = function(*inputs)
        self._segment = None
        return out

    def _run_again(self, segment: Segment) -> None:
        assert segment.function is not None
        below, self._operations = self._operations, []
        self._again = True
        segment.function(*segment.inputs)
        self._again = False
        segment.function = None
        again, self._operations = [operation for operation in self._operations if operation.kept], below
        for operation, recomputed in zip(segment.operations, again, strict=True):
            operation.kept = recomputed.kept
        segment.operations = []

    @property
    def position(self) -> int:
        """How many operations wait to be undone."""
        return len(self._operations)

    # --- Backward ------------------------------------------------------------------------------------------------

    def deliver(self, edge: Edge | None, gradient: Array | TooLarge | None) -> None:
        """Add `gradient` to what has reached `edge`: in place where nothing else refers to the memory of that."""
        if edge is None or gradient is None:
            return
        assert isinstance(gradient, Array)
        target, output = edge
        before = target.gradients[output]
        if before is None:
            target.gradients[output] = gradient
        elif before.storage.arrays > 1:
            target.gradients[output] = self.like(before.size)
        if isinstance(target, Leaf):
            target.uses -= 1
            if not target.uses:
                self._keep_or_let_go(target)

    def _keep_or_let_go(self, parameter: Leaf) -> None:
        gradient = parameter.gradients.pop()
        assert gradient is not None
        if self.keeps_gradients:
            self._gradients.append(gradient)

    def gradients(self) -> frozenset[int]:
        """The serial numbers of the parameters' gradients."""
        return frozenset(gradient.storage.serial for gradient in self._gradients)

    def backward(self, down_to: int = 0) -> None:
        """Undo the newest operations until `down_to` of them are left."""
        while len(self._operations) > down_to:
            operation = self._operations.pop()
            if any(gradient is not None for gradient in operation.gradients):
                self._undo(operation)

    def _undo(self, operation: Operation) -> None:
        if operation.segment is not None and operation.segment.function is not None:
            self._run_again(operation.segment)
        assert operation.derive is not None
        results = operation.derive(operation.gradients)
        if operation.segment is not None:  # what was recomputed is freed as soon as it has been used
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
    """Where the gradient of `x` goes."""
    return Edge(x) if isinstance(x, Leaf) else x.edge if x is not None else None
