"""Operations of one stage of a pipeline: forward and backward of a micro-batch, from and to tensors between stages.

A stage has some layers of the model; the first has the embedding too, the last one final norm, head and loss. Its input
is a buffer that the caller keeps, and so is the gradient of its output, so that nothing is added to that in place. Its
output and the gradient of its input are what it hands on: they are alive at a peak, and not counted at the end.
"""

from typing import NamedTuple

from counting.formulas.local.shapes import local_layer
from counting.formulas.memory.stages.tape import HalvedTape
from counting.formulas.memory.step import SimulatedStep
from counting.formulas.memory.tape import SINGLE, Array, Edge, Operation
from counting.formulas.tensors import tensors
from counting.setup import Setup
from counting.step.profile import Cut, Hook, Moment, Stretch, moments_of, stretches_between, whole_stretches
from torch_models.layout import Layout
from torch_models.stages import Stage


class SimulatedPass(NamedTuple):
    """The stretches of one pass in the order of execution, and the moments of each at which fully_shard may act."""

    stretches: tuple[Stretch, ...]
    moments: tuple[tuple[Moment, ...], ...]


class SimulatedStage(NamedTuple):
    """The passes of the first micro-batch, and those of a later one, which finds gradients.

    `added` is a backward pass whose gradients are added to others of the same format, whatever fully_shard does.
    """

    forward: tuple[SimulatedPass, SimulatedPass]
    backward: tuple[SimulatedPass, SimulatedPass]
    added: SimulatedPass


class SimulatedHalves(NamedTuple):
    """The two halves of backward; of the second one that finds no gradients, and one that adds to others."""

    inputs: SimulatedPass
    weights: SimulatedPass
    added: SimulatedPass


def simulate_stage(stage: Stage, setup: Setup, layout: Layout, context_rank: int = 0) -> SimulatedStage:
    """Return the passes of a stage with few layers on a rank, at place `context_rank` of cp.

    `setup` is that of the rank's positions; both settings are resolved. Stretches are cut before and after each layer.
    """
    return _StageStep(stage, setup, layout, context_rank).simulated()


def simulate_halves(stage: Stage, setup: Setup, layout: Layout, context_rank: int = 0) -> SimulatedHalves:
    """Return the halves of backward of a stage other than the first; see `simulate_stage`."""
    return _HalvedStep(stage, setup, layout, context_rank).halves()


class _StageStep(SimulatedStep):
    """Three micro-batches of a stage, one after the other."""

    def __init__(self, stage: Stage, setup: Setup, layout: Layout, context_rank: int) -> None:
        super().__init__(stage.spec, setup, layout, context_rank)
        self.stage = stage
        self.layers = [local_layer(each, self.division.tp) for each in stage.spec.layers]

    def simulated(self) -> SimulatedStage:
        """Run all passes; return their stretches."""
        (first, first_back), (later, later_back), (_, added) = [self._run_passes(index) for index in range(3)]
        found = self._found
        return SimulatedStage((found(first), found(later)), (found(first_back), found(later_back)), found(added))

    def _begin(self, index: int) -> None:
        super()._begin(min(index, 1))
        if index == 2:
            self.tape.keeps_gradients = False

    def _found(self, of_pass: "_Cuts") -> SimulatedPass:
        gradients = self.tape.gradients()
        stretches = stretches_between(whole_stretches(of_pass), gradients)
        return SimulatedPass(tuple(stretches), tuple(moments_of(of_pass, gradients)))

    def _run_passes(self, index: int) -> "tuple[_Cuts, _Cuts]":
        """The cuts of forward and of backward of one micro-batch."""
        self._begin(index)
        size = self.stream_tokens * self.spec.hidden_size
        received = None if self.stage.is_first else self._buffer(size)
        starts: list[int] = []
        out = self._forward(received, starts)
        forward = self._end_pass(out)
        gradient = None if self.stage.is_last else self.tape.new(size, self.width)
        self._backward(out, gradient, starts)
        return forward, self._end_pass(_gradient_of(received))

    def _buffer(self, size: int) -> Array:
        """A buffer to receive into; its gradient stays where it arrives."""
        x = self.tape.new(size, self.width)
        x.edge = Edge(Operation(1, (), (), lambda gradients: []))
        return x

    def _end_pass(self, handed_on: Array | None) -> "_Cuts":
        """Take the cuts of the pass that ends, without what it hands on in the last one."""
        hook, (at_peak, now) = self.cuts[-1]
        if handed_on is not None:
            now = {serial: size for serial, size in now.items() if serial != handed_on.storage.serial}
        cuts = [*self.cuts[:-1], (hook, Cut(at_peak, now))]
        self.cuts.clear()
        return cuts

    def _forward(self, received: Array | None, starts: list[int]) -> Array:
        """Run forward; return the output, and add to `starts` the number of operations before each layer."""
        tape, cut = self.tape, self._cut
        tape.watch()
        cut()
        self._at("model", "before_forward")
        stream = [self._embed(self.token_ids, 0) if received is None else received.again()]
        cut()
        starts.append(tape.position)
        for index in range(len(self.layers)):
            # What follows the last layer begins when that has run, while its call still refers to its input.
            ends = index == len(self.layers) - 1 and not self.stage.is_last
            given = stream[-1].again() if ends else None
            stream.append(self._run_layer(index, stream.pop()))
            cut()
            del given
            starts.append(tape.position)
        out = self._loss(stream) if self.stage.is_last else stream.pop()
        self._at("model", "after_forward")
        cut()
        return out

    def _run_layer(self, index: int, x: Array) -> Array:
        return self._layer(self.layers[index], x)

    def _undo(self, down_to: int = 0) -> None:
        """Process operations from the newest on until `down_to` of them are left."""
        self.tape.backward(down_to)

    def _backward(self, out: Array, gradient: Array | None, starts: list[int]) -> None:
        """Run backward from `gradient`, or from the loss.

        Without fully_shard, whose hooks end the first layer, that layer ends with the pass where its input is a buffer.
        """
        tape, cut = self.tape, self._cut
        ends_with_layer = not (self.hooked or self.stage.is_first)
        tape.watch()
        cut()
        seed: Array | None = tape.new(1, SINGLE) if gradient is None else gradient
        assert seed is not None
        tape.deliver(out.edge, seed.again())
        self._at("model", "before_backward")
        while starts:
            self._undo(starts.pop())
            if not starts and ends_with_layer:
                seed = None
                self._let_go_of(out)
            cut()
        self._undo()
        self._at("model", "after_backward")
        seed = None
        self._let_go_of(out)
        cut()

    def _let_go_of(self, out: Array) -> None:
        """Free what is not needed when backward ends."""


_Cuts = list[tuple[Hook | None, Cut]]


class _HalvedStep(_StageStep):
    """Micro-batches of a stage, the backward pass of each in halves."""

    tape: HalvedTape

    def new_tape(self) -> HalvedTape:
        """The tape on which the step runs."""
        return HalvedTape()

    def halves(self) -> SimulatedHalves:
        """Run all passes; return the stretches of the halves."""
        (inputs, weights), (_, added) = [self._run_passes(index) for index in (0, 2)]
        return SimulatedHalves(self._found(inputs), self._found(weights), self._found(added))

    def _run_passes(self, index: int) -> tuple[_Cuts, _Cuts]:
        """The cuts of both halves of one micro-batch."""
        self._begin(index)
        size = self.stream_tokens * self.spec.hidden_size
        received = self._buffer(size)
        starts: list[int] = []
        out = self._forward(received, starts)
        self._end_pass(out)
        assert received.edge is not None and isinstance(received.edge.target, Operation)
        self.tape.begin_inputs(received.edge.target)
        gradient = None if self.stage.is_last else self.tape.new(size, self.width)
        self._backward(out, gradient, starts)
        inputs = self._end_pass(_gradient_of(received))
        self._weights()
        return inputs, self._end_pass(None)

    def _undo(self, down_to: int = 0) -> None:
        self.tape.backward_to_inputs(down_to)

    def _let_go_of(self, out: Array) -> None:
        out.edge = None
        self.tape.end_inputs()

    def _in_order_of_modules(self) -> None:
        """Number the parameters of each layer in the order of the modules that have them, which compute in another."""
        leaves = self.tape.leaves
        for index, layer in enumerate(self.layers):
            of_layer = [place for place, ((section, _), _) in enumerate(leaves) if section == index + 1]
            for number, tensor in enumerate(tensors(layer)):
                size = tensor.numel // (self.division.ep if tensor.stacked else 1)
                place = next(each for each in of_layer if leaves[each][1].size.numel == size)
                of_layer.remove(place)
                leaves[place] = ((index + 1, number), leaves[place][1])

    def _weights(self) -> None:
        """Run the second half."""
        self._in_order_of_modules()
        tape, cut = self.tape, self._cut
        tape.watch()
        cut()
        section = 0

        def enter(other: int) -> None:
            nonlocal section
            for _ in range(other - section):
                cut()
            section = other

        tape.backward_to_weights(enter)
        enter(len(self.layers) + 1)
        cut()

    # --- The places of parameters ------------------------------------------------------------------------------------

    def _begin(self, index: int) -> None:
        self.tape.leaves.clear()
        super()._begin(index)
        last = len(self.layers) + 1
        self.tape.leaves[:] = [
            ((0, 0) if leaf is self.embedding else (last, HEAD), leaf) for _, leaf in self.tape.leaves
        ]

    def _run_layer(self, index: int, x: Array) -> Array:
        self.tape.place = (index + 1, 0)
        return super()._run_layer(index, x)

    def _final_norm(self, stream: list[Array]) -> Array:
        last = len(self.layers) + 1
        self.tape.place = (last, NORM)
        out = super()._final_norm(stream)
        self.tape.place = (last, PREDICTION)
        return out


# The order of the parameters after the layers: of multi-token prediction, of the final norm, of the head.
PREDICTION, NORM, HEAD = range(3)


def _gradient_of(received: Array | None) -> Array | None:
    """The gradient that has arrived at a buffer."""
    if received is None or received.edge is None:
        return None
    (gradient,) = received.edge.target.gradients
    return gradient
