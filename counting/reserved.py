"""What torch's caching allocator reserves for a step: the log of the whole model, replayed. An estimate.

The step is run as `analyze` measures it, but with all layers and twice, because the second step finds the free blocks
of the first, and the optimiser's states among them.
"""

from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache

from msgspec import structs

from counting.allocator.events import Event
from counting.allocator.replay import replay
from counting.allocator.reserved import PoolShare, Reserved
from counting.allocator.snapshot import memory_snapshot
from counting.alternatives import rank_alternatives
from counting.ranks.pipeline import micro_batches_to_run
from counting.ranks.result import RankAnalysis, worst_by_place, worst_of_classes
from counting.recipes import states_measurable
from counting.setup import Setup
from counting.step.memory import (
    COMPILED_NOTE,
    NOT_RESERVED_NOTE,
    RESERVED_NOTE,
    TAKES_LONG_NOTE,
    WORST_REPLAYED_NOTE,
    PoolOfStream,
    ReservedParts,
    StepMemory,
)
from torch_models.errors import ArgumentError
from torch_models.layout import Layout
from torch_models.spec import MixtureOfExpertsSpec, ModelSpec

MOST_LAYER_PASSES = 128  # of a dense layer and a micro-batch, which take about 10 s with the second step's
PASSES_OF_EXPERTS = 3  # dense layers whose log takes as long as that of a mixture-of-experts layer, at most


def with_reserved(
    memory: StepMemory, spec: ModelSpec, setup: Setup, layout: Layout | None = None, rank: int = 0
) -> StepMemory:
    """`memory` with what is reserved on one device or, with `layout`, on this rank of it; settings are resolved.

    Without it, and with a note, where torch does not run the update on the meta device, and where what is held is by
    formula alone.
    """
    if not _can_be_logged(setup, layout):
        return structs.replace(memory, notes=(*memory.notes, NOT_RESERVED_NOTE))
    found = replay(allocation_log(spec, setup, layout, rank), expandable_segments=setup.expandable_segments)
    return structs.replace(
        memory,
        reserved_bytes=found.reserved_bytes,
        reserved_parts=_parts(found),
        notes=(*memory.notes, RESERVED_NOTE, *([COMPILED_NOTE] if setup.execution == "compiled" else [])),
    )


def memory_with_reserved(
    memory: StepMemory | None,
    classes: tuple[RankAnalysis, ...] | None,
    spec: ModelSpec,
    setup: Setup,
    layout: Layout | None,
) -> tuple[StepMemory | None, tuple[RankAnalysis, ...] | None]:
    """Both, with what is reserved on one device or, of a step that is spread, on its worst ranks."""
    if layout is None or classes is None:
        assert memory is not None, "a step that was measured"
        return with_reserved(memory, spec, setup), classes
    return memory, ranks_with_reserved(classes, spec, setup, layout)


def ranks_with_reserved(
    classes: tuple[RankAnalysis, ...], spec: ModelSpec, setup: Setup, layout: Layout
) -> tuple[RankAnalysis, ...]:
    """`classes` with what is reserved on the ranks that may need most: those with the largest peak at each place.

    In a pipeline whose ranks all together take long only that with the largest peak, with a note. The class that then
    is the worst has the variants that need less memory.
    """
    if layout.framework != "torch":
        return classes  # no step that could be replayed
    before = worst_of_classes(classes)
    alone = layout.pp > 1 and takes_long(spec, setup, layout, places=layout.pp)
    replayed = (before,) if alone else worst_by_place(classes)

    def found(each: RankAnalysis) -> RankAnalysis:
        if not any(each is other for other in replayed):
            return each
        rank = each.first_rank + each.context_rank * layout.tp
        memory = with_reserved(each.memory, spec, setup, layout, rank)
        if alone and memory.reserved_bytes is not None:
            memory = structs.replace(memory, notes=(*memory.notes, WORST_REPLAYED_NOTE))
        return structs.replace(each, memory=memory)

    after = tuple(map(found, classes))
    worst = worst_of_classes(after)
    if worst.first_rank == before.first_rank:
        return after
    variants = {worst.first_rank: rank_alternatives(spec, setup, layout, worst)}
    return tuple(
        structs.replace(each, memory=structs.replace(each.memory, alternatives=variants.get(each.first_rank, ())))
        for each in after
    )


def _can_be_logged(setup: Setup, layout: Layout | None) -> bool:
    runs = layout is None or layout.framework == "torch"
    return runs and states_measurable(setup.precision_recipe, setup.optimizer_recipe)


def takes_long(spec: ModelSpec, setup: Setup, layout: Layout | None, *, places: int = 1) -> bool:
    """Whether a step of the log has more than `MOST_LAYER_PASSES`; arguments are those of `passes_of_log`."""
    return passes_of_log(spec, setup, layout, places=places) > MOST_LAYER_PASSES


def passes_of_log(spec: ModelSpec, setup: Setup, layout: Layout | None, *, places: int = 1) -> int:
    """Passes of a dense layer that take as long as a step of the log; `setup` and `layout` are resolved.

    Of a pipeline, the logs of the ranks at so many `places`; a rank is taken to have an even share.
    """
    assert setup.micro_batches is not None, "a resolved setup"
    layers = (*spec.layers, *(spec.mtp_layers if setup.mtp else ()))
    experts = sum(isinstance(layer.feed_forward, MixtureOfExpertsSpec) for layer in layers)
    weight, micro_batches = len(layers) + (PASSES_OF_EXPERTS - 1) * experts, min(setup.micro_batches, 3)
    if layout is not None and layout.pp > 1:
        weight, micro_batches = -(-weight * places // layout.pp), micro_batches_to_run(layout, setup.micro_batches)
    return weight * micro_batches


def with_note_of_left_out(
    memory: StepMemory | None, classes: tuple[RankAnalysis, ...] | None, note: str = TAKES_LONG_NOTE
) -> tuple[StepMemory | None, tuple[RankAnalysis, ...] | None]:
    """Both with a note why what is reserved is left out, because it takes long; with `classes`, only those."""

    def noted(each: StepMemory) -> StepMemory:
        return structs.replace(each, notes=(*each.notes, note))

    if classes:
        return memory, tuple(structs.replace(each, memory=noted(each.memory)) for each in classes)
    return None if memory is None else noted(memory), classes


def memory_trace(
    spec: ModelSpec, setup: Setup, layout: Layout | None = None, classes: tuple[RankAnalysis, ...] | None = None
) -> bytes:
    """Torch's memory snapshot of a step or, with `layout`, of that of the worst rank of `classes`, as a file.

    Raises `ArgumentError` where there is no log; see `with_reserved`.
    """
    for field, recipe in (("precision", setup.precision_recipe), ("optimizer", setup.optimizer_recipe)):
        if not recipe.measurable:
            raise ArgumentError(field, recipe.name, "runs on no meta device, so its memory cannot be traced")
    if layout is not None and not _can_be_logged(setup, layout):
        raise ArgumentError("framework", layout.framework, "is by formula, and not run, so its memory cannot be traced")
    rank = 0 if layout is None or classes is None else rank_of_worst(classes, layout)
    events = allocation_log(spec, setup, layout, rank)
    return memory_snapshot(events, expandable_segments=setup.expandable_segments)


def rank_of_worst(classes: tuple[RankAnalysis, ...], layout: Layout) -> int:
    """The first rank of the class that needs most, at the place of cp that does."""
    worst = worst_of_classes(classes)
    return worst.first_rank + worst.context_rank * layout.tp


@lru_cache(maxsize=1)
def allocation_log(spec: ModelSpec, setup: Setup, layout: Layout | None = None, rank: int = 0) -> Sequence[Event]:
    """Every allocation and release of two steps, in order. Arguments are those of `with_reserved`."""
    if layout is None:
        from counting.measurements.allocations import log_of_step

        return log_of_step(spec, setup)
    from counting.measurements.ranks import log_of_rank

    return log_of_rank(spec, setup, layout, rank)


def _parts(found: Reserved) -> ReservedParts:
    of_streams: dict[str, list[PoolShare]] = defaultdict(list)  # small and large blocks of each stream
    for pool in found.high.pools:
        of_streams[pool.stream].append(pool)
    assert not found.high.waiting_bytes, "no storage of a step is used by a second stream that torch is told of"
    return ReservedParts(
        expandable_segments=found.expandable_segments,
        replays=found.replays,
        allocated_bytes=found.high.allocated_bytes,
        pools=tuple(
            PoolOfStream(
                stream=stream,
                reserved_bytes=sum(pool.reserved_bytes for pool in pools),
                idle_bytes=sum(pool.idle_bytes for pool in pools),
                fragment_bytes=sum(pool.fragment_bytes for pool in pools),
            )
            for stream, pools in of_streams.items()
        ),
        peak_allocated_bytes=max(found.peak_allocated_bytes),
    )
