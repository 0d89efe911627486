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
from counting.ranks.pipeline import micro_batches_to_run
from counting.ranks.result import RankAnalysis, worst_of_classes
from counting.recipes import states_measurable
from counting.setup import Setup
from counting.step.memory import (
    COMPILED_NOTE,
    NOT_RESERVED_NOTE,
    RESERVED_NOTE,
    PoolOfStream,
    ReservedParts,
    StepMemory,
)
from torch_models.errors import ArgumentError
from torch_models.layout import Layout
from torch_models.spec import ModelSpec

MOST_LAYER_PASSES = 128  # of a layer and a micro-batch, which take about 10 s with the second step's


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


def _can_be_logged(setup: Setup, layout: Layout | None) -> bool:
    runs = layout is None or layout.framework == "torch"
    return runs and states_measurable(setup.precision_recipe, setup.optimizer_recipe)


def takes_long(spec: ModelSpec, setup: Setup, layout: Layout | None) -> bool:
    """Whether a step of the log has more than `MOST_LAYER_PASSES`; `setup` and `layout` are resolved."""
    assert setup.micro_batches is not None, "a resolved setup"
    layers, micro_batches = spec.num_layers, min(setup.micro_batches, 3)
    if layout is not None and layout.pp > 1:
        layers, micro_batches = -(-layers // layout.pp), micro_batches_to_run(layout, setup.micro_batches)
    return layers * micro_batches > MOST_LAYER_PASSES


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
