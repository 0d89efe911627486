"""The tape of a backward pass in halves, as schedules without bubbles split it."""

from collections.abc import Callable, Iterable, Sequence

from counting.formulas.memory.tape import Array, Edge, Gradients, Leaf, Operation, Segment, Tape, TooLarge


class HalvedTape(Tape):
    """A tape whose backward runs in two halves: the gradients of the input first, later those of the parameters.

    So torch splits backward (torch 2.13, torch/distributed/pipelining/_backward.py). The first half runs only the
    operations on the way to `source`, the stage's input, and frees nothing. It notes the gradients at each of these
    operations that a parameter reaches too. The second half starts from there, for one parameter after the other in
    their order; parameters that meet at one operation belong together. An operation then frees what it kept. What other
    operations kept is alive until the end, since each refers to those before it. Each parameter's gradients are a
    backward pass of their own, which runs a checkpoint again; what that restores for other operations stays with them.
    """

    def __init__(self) -> None:
        super().__init__(grad=True)
        self.source: Operation | None = None
        self.place = (0, 0)  # section, and order within it
        self.leaves: list[tuple[tuple[int, int], Leaf]] = []  # of this micro-batch, with the place of each
        self._leads: dict[int, bool] = {}
        self._halved: list[Operation] = []  # the newest first
        self._noted: dict[int, Gradients] = {}
        self._restored: dict[int, list[Sequence[Array]]] = {}
        self._run_in_this_pass: set[int] = set()
        self._in_second_half = False
        self._added: list[Array] = []

    def parameter(self, numel: int, width: int, *, apart: bool = False) -> Leaf:
        """Return a new weight, and take notice of it."""
        leaf = super().parameter(numel, width, apart=apart)
        if self._again is None:
            self.leaves.append((self.place, leaf))
        return leaf

    # --- The first half ----------------------------------------------------------------------------------------------

    def begin_inputs(self, source: Operation) -> None:
        """Begin the first half, which ends at `source`."""
        self.source = source
        self._leads = {id(source): True}
        self._halved, self._noted, self._restored = [], {}, {}
        self._run_in_this_pass = set()
        for operation in self._operations:
            self._leads[id(operation)] = any(map(self._leads_to_source, operation.edges))

    def _leads_to_source(self, edge: Edge | None) -> bool:
        return edge is not None and self._leads.get(id(edge.target), False)

    def backward_to_inputs(self, down_to: int = 0) -> None:
        """Process operations from the newest on until `down_to` of them are left."""
        while len(self._operations) > down_to:
            operation = self._operations.pop()
            self._halved.append(operation)
            if self._leads[id(operation)] and any(gradient is not None for gradient in operation.gradients):
                self._undo_to_inputs(operation)

    def _undo_to_inputs(self, operation: Operation) -> None:
        for hook in operation.before:
            hook()
        operation.before = ()
        self._restore(operation)
        leads = [self._leads_to_source(edge) for edge in operation.edges]
        gradients = operation.gradients
        results = self._derived(operation, gradients, leads)
        if any(edge is not None and not way for edge, way in zip(operation.edges, leads, strict=True)):
            self._noted[id(operation)] = gradients
        operation.gradients = []
        del gradients
        for edge, way in zip(operation.edges, leads, strict=True):
            result = results.pop(0)
            if way:
                self.deliver(edge, result)

    def _derived(
        self, operation: Operation, gradients: Gradients, wanted: Sequence[bool]
    ) -> "list[Array | TooLarge | None]":
        """The gradients of the inputs that are wanted, and of others of which an operation makes one all the same.

        What was restored for this is freed before they are summed.
        """
        assert operation.derive is not None
        self.wanted = wanted
        results = operation.derive(gradients)
        self.wanted = None
        if operation.segment is not None:
            self._restored.get(id(operation), [()]).pop()
        for index, result in enumerate(results):
            if isinstance(result, TooLarge):
                results[index] = self.like(result.size) if wanted[index] else None
        return results

    def end_inputs(self) -> None:
        """End the first half: free what no operation refers to that a parameter reaches."""
        reached: set[int] = set(self._noted)
        for operation in self._halved:
            if id(operation) in reached:
                reached.update(id(edge.target) for edge in operation.edges if edge is not None)
            else:
                operation.kept, operation.derive, operation.segment = (), None, None
                self._restored.pop(id(operation), None)

    # --- A checkpoint ------------------------------------------------------------------------------------------------

    def _restore(self, operation: Operation) -> None:
        """Run the checkpoint of an operation again, once in each pass."""
        segment = operation.segment
        if segment is None or id(segment) in self._run_in_this_pass:
            return
        self._run_in_this_pass.add(id(segment))
        for each, recomputed in zip(segment.operations, self._run_once_more(segment), strict=True):
            if each.derive is not None:  # it has not run yet
                detached = [Array(x.size, x.storage) for x in recomputed.kept]
                self._restored.setdefault(id(each), []).append(detached)

    def _run_once_more(self, segment: Segment) -> list[Operation]:
        assert segment.function is not None
        below, self._operations = self._operations, []
        self._again = segment
        segment.function(*segment.inputs)
        self._again = None
        again, self._operations = [operation for operation in self._operations if operation.kept], below
        return again

    # --- The second half ---------------------------------------------------------------------------------------------

    def backward_to_weights(self, enter: Callable[[int], None]) -> None:
        """Derive the gradients of all parameters; `enter` is called before those of each section."""
        self._in_second_half = True
        before: list[Gradients] = []  # variables of torch's loop refer to the gradients of the group before
        for section, leaves, operations in self._groups():
            enter(section)
            before.clear()
            self._run_in_this_pass = set()
            needed = self._needed(leaves, operations)
            added, self._added = self._added, []  # those of the group before
            for operation in needed:
                noted = self._noted.pop(id(operation), None)
                if noted is not None:
                    before.append(noted)
                self._undo_to_weights(operation, operation.gradients if noted is None else noted, needed, leaves)
            del added
        for operation in self._halved:
            if operation.segment is not None:
                operation.segment.operations = []  # they refer to each other
        self._in_second_half = False
        self._added, self._halved, self.leaves = [], [], []
        self._noted, self._restored = {}, {}

    def _undo_to_weights(
        self, operation: Operation, gradients: Gradients, needed: Sequence[Operation], leaves: Iterable[Leaf]
    ) -> None:
        goals = {id(each) for each in (*needed, *leaves)}
        self._restore(operation)
        wanted = [edge is not None and id(edge.target) in goals for edge in operation.edges]
        results = self._derived(operation, gradients, wanted)
        operation.gradients, operation.kept, operation.derive = [], (), None
        self._restored.pop(id(operation), None)
        del gradients
        for edge, way in zip(operation.edges, wanted, strict=True):
            result = results.pop(0)
            if way:
                self.deliver(edge, result)

    def _needed(self, leaves: Iterable[Leaf], operations: Iterable[Operation]) -> list[Operation]:
        """The operations between `operations` and these parameters, the newest first."""
        goals, below = {id(leaf) for leaf in leaves}, {id(operation) for operation in operations}
        for operation in reversed(self._halved):
            if any(edge is not None and id(edge.target) in goals for edge in operation.edges):
                goals.add(id(operation))
        for operation in self._halved:
            if id(operation) in below:
                below.update(id(edge.target) for edge in operation.edges if edge is not None)
        return [operation for operation in self._halved if id(operation) in goals & below]

    def _groups(self) -> list[tuple[int, list[Leaf], list[Operation]]]:
        """The parameters that belong together, with their first section and the operations at which they are noted."""
        reach: dict[int, set[int]] = {}  # operation beside the way -> the parameters that it reaches
        noted_of: dict[int, list[Operation]] = {}
        for operation in reversed(self._halved):
            found: set[int] = set()
            for edge in operation.edges:
                if edge is None or self._leads_to_source(edge):
                    continue
                target = edge.target
                found |= {id(target)} if isinstance(target, Leaf) else reach.get(id(target), set())
            if not self._leads[id(operation)]:
                reach[id(operation)] = found
                continue
            if id(operation) in self._noted:
                for leaf in found:
                    noted_of.setdefault(leaf, []).append(operation)
        groups: list[tuple[int, list[Leaf], list[Operation]]] = []
        group_of: dict[int, tuple[int, list[Leaf], list[Operation]]] = {}
        for (section, _), parameter in sorted(self.leaves, key=lambda each: each[0]):
            operations = noted_of.get(id(parameter), [])
            if not operations:
                continue
            group = next((group_of[id(each)] for each in operations if id(each) in group_of), None)
            if group is None:
                group = (section, [], [])
                groups.append(group)
            group[1].append(parameter)
            for each in operations:
                if id(each) not in group_of:
                    group_of[id(each)] = group
                    group[2].append(each)
        return groups

    def _keep_or_let_go(self, parameter: Leaf) -> None:
        """A variable refers to a gradient that was added to another one until those of the next group are there."""
        (gradient,) = parameter.gradients
        if self._in_second_half and gradient is not None and not self.keeps_gradients:
            self._added.append(gradient.again())
        super()._keep_or_let_go(parameter)
