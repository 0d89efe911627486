"""fully_shard's schedule on one rank: when each group is gathered, freed and reduced, and the bytes alive meanwhile.

The rules are those of torch 2.13, `torch/distributed/fsdp/_fully_shard/`: `_fsdp_state.py` (the hooks of a module),
`_fsdp_param_group.py` (what a hook does with a group) and `_fsdp_collectives.py` (the buffers of a collective). Each
function below is named after the one of torch whose steps it repeats, with bytes in place of tensors. No time passes on
the meta device, so that a collective is complete when the next line runs.
"""

from collections.abc import Iterable, Sequence

from counting.formulas.layouts.formats import Formats
from counting.formulas.layouts.groups import Group
from counting.ranks.profile import Axis, CollectiveOp, RankPhase, RankStretch, Traffic, Traffics
from counting.step.profile import Moment, Stretch


class Unit:
    """One call of fully_shard: the modules whose forward passes it acts on, and the state of its group.

    `training` is torch's `TrainingState` of the group; `pending` says that its all-gather was issued and its parameters
    not yet copied out of the flat buffer; `indices` are its places in the order of forward passes; `accumulated` says
    that it has whole gradients of earlier micro-batches, in the format of the reduction; `computed` that it has others
    as they were computed, to be added to those; `reduced` that it has its part of a gradient of an earlier micro-batch;
    `kept` are the bytes of the last all-reduce's buffer; `backward` that its backward pass has begun.
    """

    __slots__ = (
        "accumulated", "after", "backward", "before", "computed", "gathered", "group", "indices", "kept", "left",
        "modules", "pending", "reduced", "reshards", "training",
    )  # fmt: skip

    def __init__(self, group: Group, modules: tuple[str, ...], *, reshards: bool) -> None:
        self.group = group
        self.modules = modules
        self.reshards = reshards
        self.left: set[str] = set()
        self.training = "idle"
        self.backward = False
        self.gathered = False
        self.pending = False
        self.indices: list[int] = []
        self.after: set[object] = set()
        self.before: set[object] = set()
        self.accumulated = False
        self.computed = False
        self.reduced = False
        self.kept = 0


class Rank:
    """The bytes that are alive on a rank, relative to the start of the stretch, and the worst moment so far.

    `compute` is the part of the pass itself: total, gradients of parameters, and bytes released since the start. The
    rest is fully_shard's.
    """

    def __init__(self, formats: Formats) -> None:
        self.formats = formats
        self.phase: RankPhase = "forward"
        self.order: list[Unit] = []
        self.deferred = 0  # the flat buffer of the last forward all-gather, freed by the next
        self.reducing = 0  # the input of the last reduce-scatter, freed by the next
        self.synchronises = True
        self.frees_after_backward = True  # False in a pipeline, where other passes need the parameters
        self.start()

    # --- Bytes -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin a stretch here."""
        self.compute = self.compute_gradients = self.released = 0
        self.gradients = self.gathered = self.communication = 0
        self.peak = self.peak_gradients = self.peak_gathered = self.peak_communication = self.peak_released = 0
        self.traffic: dict[str, list[int]] = {}

    def check(self) -> None:
        """Note the worst moment, if it is now."""
        now = self.compute + self.gradients + self.gathered + self.communication
        if now > self.peak:
            self.peak = now
            self.peak_gradients = self.compute_gradients + self.gradients
            self.peak_gathered, self.peak_communication = self.gathered, self.communication
            self.peak_released = self.released

    def run(self, moment: Moment) -> None:
        """Pass through a part of the pass, to its end."""
        beside = self.gradients + self.gathered + self.communication
        if moment.peak + beside > self.peak:
            self.peak = moment.peak + beside
            self.peak_gradients = moment.peak_gradients + self.gradients
            self.peak_gathered, self.peak_communication = self.gathered, self.communication
            self.peak_released = moment.peak_released
        self.compute, self.compute_gradients, self.released = moment.net, moment.gradients, moment.released

    def end(self, others: Traffics) -> RankStretch:
        """Return the stretch that ends here, with the traffic of other collectives in it, and begin the next."""
        stretch = RankStretch(
            memory=Stretch(
                peak=self.peak,
                net=self.compute + self.gradients + self.gathered + self.communication,
                gradients=self.compute_gradients + self.gradients,
                peak_gradients=self.peak_gradients,
                peak_released=self.peak_released,
                gathered=self.gathered,
                peak_gathered=self.peak_gathered,
                communication=self.communication,
                peak_communication=self.peak_communication,
            ),
            traffic=self._traffics() | others,
        )
        self.start()
        return stretch

    def _traffics(self) -> Traffics:
        return {
            key: Traffic(calls=calls, bytes_in=bytes_in, bytes_out=bytes_out)
            for key, (calls, bytes_in, bytes_out) in self.traffic.items()
        }

    def call(self, operation: CollectiveOp, axis: Axis, bytes_in: int, bytes_out: int) -> None:
        """Count one call of a collective."""
        total = self.traffic.setdefault(f"{self.phase} {operation} {axis}", [0, 0, 0])
        total[0] += 1
        total[1] += bytes_in
        total[2] += bytes_out

    # --- Gathering ---------------------------------------------------------------------------------------------------

    def unshard(self, unit: Unit) -> None:
        """Issue the all-gather: `FSDPParamGroup.unshard`, `foreach_all_gather`.

        The shards are converted in a copy, which is freed when the collective is called; the flat output stays.
        """
        if unit.pending or unit.gathered:
            return
        unit.pending = True
        group, sharding = unit.group, unit.group.sharding
        if sharding.shards == 1:
            return
        self.communication += group.shard_copy + group.gathered
        self.check()
        self.communication -= group.shard_copy
        self.call("all_gather", sharding.shard_axis, group.gathered // sharding.shards, group.gathered)

    def wait_for_unshard(self, unit: Unit, *, forward: bool) -> None:
        """Copy the parameters out of the flat buffer: `wait_for_unshard`, `foreach_all_gather_copy_out`.

        In forward the flat buffer is freed only after the next group's copy (note "Overlapping all-gather copy-in and
        all-gather" there; a variable refers to it until then), in backward at once. Slices of the second dimension are
        copied once more. A single shard is copied without a collective.
        """
        if not unit.pending:
            return
        unit.pending = False
        before = self.deferred if forward else 0
        if forward:
            self.deferred = 0
        group = unit.group
        if group.sharding.shards == 1:
            self._copy_single_shard(group)
        else:
            self.gathered += group.gathered
            rearranged = group.gathered if group.sharding.second_dimension else 0
            self.communication += rearranged
            self.check()
            self.communication -= rearranged
            if forward:
                self.deferred = group.gathered
            else:
                self.communication -= group.gathered
        self.communication -= before
        unit.gathered = True

    def _copy_single_shard(self, group: Group) -> None:
        """Convert and copy tensor by tensor; the variable with the converted one is replaced by the next."""
        converted = 0
        for size in group.parameters:
            if self.formats.copies_shards:
                self.communication += size
                self.check()
                self.communication -= converted
                converted = size
            self.gathered += size
            self.check()
        self.communication -= converted

    def reshard(self, unit: Unit) -> None:
        """Free the gathered parameters: `FSDPParamGroup.reshard`."""
        if unit.gathered:
            self.gathered -= unit.group.gathered
            unit.gathered = False

    # --- Forward -----------------------------------------------------------------------------------------------------

    def pre_forward(self, unit: Unit, module: str, place: object, *, has_gradient: bool) -> None:
        """The hook before a module's forward pass: `FSDPParamGroup.pre_forward`.

        `has_gradient`: an input of the module has one, so that the hook after backward can be attached to it; of the
        modules of one group, only the first that runs attaches it. A module that runs again in backward, because its
        layer is recomputed, does so too; if its own backward pass has begun, it has its parameters already.
        """
        if unit.backward:
            self.unshard(unit)
            self.wait_for_unshard(unit, forward=False)
            return
        if not unit.left:
            unit.left = set(unit.modules)
        entering = unit.training != "forward"
        unit.training = "forward"
        self.unshard(unit)
        self.wait_for_unshard(unit, forward=True)
        if entering and has_gradient:
            unit.after.add(place)

    def post_forward(self, unit: Unit, module: str, place: object) -> None:
        """The hook after a module's forward pass; it acts when all modules of the group have run.

        A module that runs again in backward keeps its parameters. If its own backward pass has not begun, it is the
        root of this pass, which frees the flat buffer (`_fsdp_state.py`, `_post_forward`).
        """
        unit.left.discard(module)
        if self.phase == "backward":
            if not unit.backward:
                unit.training = "idle"
                self.communication -= self.deferred
                self.deferred = 0
            return
        if not unit.left:
            self._complete_forward(unit, place)

    def _complete_forward(self, unit: Unit, place: object) -> None:
        """`FSDPParamGroup.post_forward`, and the hook before backward on the module's output."""
        if unit.reshards:
            self.reshard(unit)
        unit.indices.append(len(self.order))
        self.order.append(unit)
        unit.training = "idle"
        unit.before.add(place)

    def finish_forward(self, units: Iterable[Unit], place: object) -> None:
        """The end of the root's forward pass: `_force_complete_incomplete_states`, and the last flat buffer is freed.

        Groups of several modules of which not all have run, because one runs again for each prediction depth, are
        completed; their hook before backward is attached to the loss.
        """
        for unit in reversed(list(units)):
            if unit.left:
                unit.left = set()
                self._complete_forward(unit, place)
        self.communication -= self.deferred
        self.deferred = 0

    # --- Backward ----------------------------------------------------------------------------------------------------

    def pre_backward(self, unit: Unit) -> None:
        """Gather the group, then issue the all-gather of the one before it: `pre_backward`, `_backward_prefetch`."""
        if unit.training == "before_backward":
            return
        unit.training = "before_backward"
        unit.backward = True
        self.unshard(unit)
        self.wait_for_unshard(unit, forward=False)
        if unit.indices:
            index = unit.indices.pop()
            if index > 0:
                self.unshard(self.order[index - 1])

    def post_backward(self, unit: Unit, *, has_gradients: bool = True) -> None:
        """Free the group's parameters, and reduce its gradients: `FSDPParamGroup.post_backward`.

        Without gradients of this micro-batch, those that were accumulated before are reduced, if there are any.
        """
        unit.training = "after_backward"
        has_gradients = has_gradients or unit.computed
        unit.computed = False
        if unit.accumulated and self.formats.converts_gradients and has_gradients:
            self.gradients -= unit.group.all_tensors  # added in place to those of the micro-batches before
        if not self.synchronises:
            if self.frees_after_backward:
                self.reshard(unit)
            if has_gradients:
                self._accumulate(unit)
            return
        reduces = has_gradients or unit.accumulated
        self.reshard(unit)
        self.communication -= self.reducing
        self.reducing = 0
        if reduces:
            self.communication -= unit.kept
            unit.kept = 0
            self._reduce(unit)

    def _accumulate(self, unit: Unit) -> None:
        """Keep whole gradients, in the format of the reduction: `to_accumulated_grad_if_needed`, tensor by tensor."""
        if self.formats.converts_gradients and not unit.accumulated:
            for converted, size in zip(unit.group.accumulated, unit.group.tensors, strict=True):
                self.gradients += converted
                self.check()
                self.gradients -= size
        unit.accumulated = True

    def _reduce(self, unit: Unit) -> None:
        """Reduce the gradients over the ranks: `foreach_reduce`.

        They are copied to one flat buffer and freed, but for the last: a variable of a loop over them refers to it
        until the end. The flat buffer is kept until the next group is reduced. The result holds this rank's part of the
        gradients; if there is one of an earlier micro-batch, it is added to that and freed. With replicas it is the
        buffer of their all-reduce, which is kept until the end of backward.
        """
        group, sharding = unit.group, unit.group.sharding
        gradients, total = group.tensors, group.all_tensors
        if unit.accumulated:
            gradients, total = group.accumulated, group.all_accumulated
        unit.accumulated = False
        last = gradients[-1] if sharding.shards > 1 else 0
        copies = 0
        if sharding.second_dimension and sharding.shards > 1:
            copies, total = self._rearrange(gradients), last
        self.communication += group.reduce_input
        self.check()
        self.communication -= copies
        self.gradients += last - total
        result = group.reduce_output
        if unit.reduced:
            self.communication += result
        else:
            self.gradients += result
        self.check()
        if sharding.shards > 1:
            self.call("reduce_scatter", sharding.shard_axis, group.reduce_input, result)
        elif sharding.scaled:
            self.communication += group.reduce_input  # the quotient, which is copied to the result
            self.check()
            self.communication -= group.reduce_input
        if sharding.replicas > 1:
            self.call("all_reduce", sharding.replica_axis, result, result)
        self.gradients -= last
        if unit.reduced and sharding.replicas > 1:
            unit.kept = result
        elif unit.reduced:
            self.communication -= result
        unit.reduced = True
        self.reducing = group.reduce_input

    def _rearrange(self, gradients: Sequence[int]) -> int:
        """Copy gradients so that the slices of each rank stand together; return the bytes of the copies.

        Each gradient is freed when the next one is copied; the last is still referred to.
        """
        before = 0
        for size in gradients:
            self.gradients -= before
            self.communication += size
            self.check()
            before = size
        return sum(gradients)

    def finish_pass(self, units: Iterable[Unit], *, has_gradients: bool) -> None:
        """The end of a backward pass of a pipeline, which is not the last: `_root_post_backward_final_callback`."""
        for unit in units:
            if unit.training != "after_backward":
                self.post_backward(unit, has_gradients=has_gradients)
            unit.training = "idle"
            unit.backward = False
            unit.after.clear()
            unit.before.clear()

    def finish_backward(self, units: Iterable[Unit]) -> None:
        """The end of backward: `_root_post_backward_final_callback`.

        Groups whose inputs have no gradient, those of root and embedding, are reduced now.
        """
        for unit in units:
            if unit.training != "after_backward":
                self.post_backward(unit)
            unit.training = "idle"
            unit.backward = False
            self.communication -= unit.kept
            unit.kept = 0
            if unit.pending and unit.group.sharding.shards > 1:
                self.communication -= unit.group.gathered
            unit.pending = False
            unit.indices.clear()
            unit.after.clear()
            unit.before.clear()
        self.order.clear()
        self.communication -= self.reducing
        self.reducing = 0
