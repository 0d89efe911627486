"""Peak bytes and traffic of the first rank for one layout, without the rest of its profile: for a search over many.

It computes what `counting.ranks.result.rank_classes` computes from `ranks_by_formula`, and nothing else. The passes are
simulated once for all layouts that divide tensors and experts alike (`compute_of`).
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from counting.formulas.layouts.clipping import Counted, clipping_by_formula
from counting.formulas.layouts.formats import stored
from counting.formulas.layouts.groups import frozen_shapes, layer_shapes, outside_shapes
from counting.formulas.layouts.passes import compute_of, micro_batches
from counting.formulas.layouts.sharding import Shape, Sharding, data_sharding, expert_sharding
from counting.formulas.layouts.shards import Tensor, Update
from counting.formulas.local.shapes import depths_with_inputs, local_setup
from counting.formulas.states import buffer_bytes, input_bytes
from counting.ranks.profile import RankMicroBatch, RankStretch, Traffic, Traffics
from counting.ranks.shallow import Shallow, shallow
from counting.setup import Setup
from torch_models.layout import Layout
from torch_models.spec import ModelSpec


class RankCost(NamedTuple):
    """What the first rank holds at the worst moment of a step, and what it sends and receives in the whole step."""

    peak_bytes: int
    traffic: Traffics


def rank_cost(spec: ModelSpec, setup: Setup, layout: Layout) -> RankCost:
    """Return the peak and the traffic of the first rank; both settings are resolved. Pipelines are not searched.

    With cp the peak is that of the place in cp with the largest one; all places send and receive the same.
    """
    assert layout.pp == 1, "pipeline_by_formula has the ranks of a pipeline"
    places = list(_places(spec, setup, layout, largest_context_ranks(layout)))
    first = places[0]
    traffic = _traffic(shallow(spec), setup, first.passes)
    if first.clipping is not None:
        traffic |= first.clipping.traffic  # nothing else is sent in that phase
    return RankCost(max(each.peak for each in places), traffic)


def worst_context_rank(spec: ModelSpec, setup: Setup, layout: Layout) -> int:
    """Return the place in cp with the largest peak, the lowest of several; 0 without cp."""
    if layout.cp == 1:
        return 0
    return max(_places(spec, setup, layout, distinct_context_ranks(layout)), key=lambda each: each.peak).context_rank


class _Place(NamedTuple):
    """A place in cp, with the passes of its ranks and their peak."""

    context_rank: int
    passes: list[RankMicroBatch]
    peak: int
    clipping: RankStretch | None


def _places(spec: ModelSpec, setup: Setup, layout: Layout, context_ranks: tuple[int, ...]) -> Iterator[_Place]:
    model = shallow(spec)
    held = _held(model, setup, layout)
    start = held.bytes + _inputs(spec, setup, layout.cp, layout.is_sharded)
    for context_rank in context_ranks:
        passes = micro_batches(model.spec, setup, layout, context_rank)
        peak = position = start
        for each in passes:
            highest, position = _walk(model, each, position)
            peak = max(peak, highest)
        after = max(held.update, held.clipping.memory.peak if held.clipping else 0)
        yield _Place(context_rank, passes, max(peak, position + after), held.clipping)


def distinct_context_ranks(layout: Layout) -> tuple[int, ...]:
    """Return the lowest place of cp of each kind: the first, those between, which are alike, and the last.

    The first rank runs kernels for the second half of its queries alone, the last for the first half of keys alone, and
    those between for both (formulas/memory/attention/ring.py).
    """
    return tuple(sorted({0, min(1, layout.cp - 1), layout.cp - 1}))


def largest_context_ranks(layout: Layout) -> tuple[int, ...]:
    """Return the places of which one has the largest peak.

    The ranks between first and last do what both of these do, and hold as much as either at each moment.
    """
    return distinct_context_ranks(layout) if layout.cp < 3 else (1,)


def _walk(model: Shallow, passes: RankMicroBatch, position: int) -> tuple[int, int]:
    """The highest point of one micro-batch of the deep model, and the position at its end.

    Each of a run of equal layers adds the same bytes, so the highest point of a run is at its first or its last layer.
    All buffers are freed at the end, also those of layers that the shallow model does not have.
    """
    highest, buffers = position, 0

    def go(stretch: RankStretch, times: int = 1) -> None:
        nonlocal highest, position, buffers
        memory = stretch.memory
        before_last = position + memory.net * (times - 1)
        highest = max(highest, max(position, before_last) + memory.peak)
        position = before_last + memory.net
        buffers += memory.communication * times

    go(passes.embedding_forward)
    for layer, times in model.runs:
        go(passes.forward[layer], times)
    go(passes.loss)
    for layer, times in reversed(model.runs):
        go(passes.backward[layer], times)
    go(passes.embedding_backward)
    return highest, position - buffers


def _traffic(model: Shallow, setup: Setup, passes: list[RankMicroBatch]) -> Traffics:
    """The traffic of the step of the deep model; the second of three micro-batches stands for all between."""
    assert setup.micro_batches is not None, "a resolved setup"
    counts = model.counts()
    totals: dict[str, list[int]] = {}
    for index, each in enumerate(passes):
        times = setup.micro_batches - 2 if index == 1 and len(passes) == 3 else 1
        for stretch, number in _with_times(each, counts):
            for key, (calls, bytes_in, bytes_out) in _parts(stretch.traffic):
                total = totals.setdefault(key, [0, 0, 0])
                total[0] += calls * number * times
                total[1] += bytes_in * number * times
                total[2] += bytes_out * number * times
    return {key: Traffic(calls=calls, bytes_in=of_in, bytes_out=out) for key, (calls, of_in, out) in totals.items()}


def _with_times(passes: RankMicroBatch, counts: tuple[int, ...]) -> Iterator[tuple[RankStretch, int]]:
    """Each stretch with the number of stretches that it stands for."""
    yield passes.embedding_forward, 1
    yield from zip(passes.forward, counts, strict=True)
    yield passes.loss, 1
    yield from zip(passes.backward, counts, strict=True)
    yield passes.embedding_backward, 1


def _parts(traffics: Traffics) -> Iterator[tuple[str, tuple[int, int, int]]]:
    for key, traffic in traffics.items():
        yield key, (traffic.calls, traffic.bytes_in, traffic.bytes_out)


# --- What is held ------------------------------------------------------------------------------------------------


class _OfGroup(NamedTuple):
    bytes: int  # of weights, masters, the optimiser's state, and gradients that stay
    update: int  # of the optimiser's temporary tensors


class _Held(NamedTuple):
    bytes: int
    update: int
    clipping: RankStretch | None  # of the whole model


def _held(model: Shallow, setup: Setup, layout: Layout) -> _Held:
    local = compute_of(model.spec, setup, layout).local
    update = Update(stored(setup, sharded=layout.is_sharded), setup.optimizer_recipe)
    data, held = data_sharding(layout), 0
    groups = [(shapes, data, 1) for shapes in outside_shapes(local, "layers").values()]
    layers = [*zip(local.layers, model.counts(), strict=True)]
    layers += [(layer, 1) for layer in (local.mtp_layers if setup.mtp else ())]
    for index, (layer, count) in enumerate(layers):
        shapes, stacks, experts = layer_shapes(layer, layout.ep, predicts=index >= len(local.layers))
        groups.append((shapes, data, count))
        held += sum(map(data.stored, frozen_shapes(layer).shapes)) * update.formats.weight * count
        if stacks:
            groups.append((stacks, expert_sharding(layout, experts), count))
    temporary = 0
    tensors = Counted(0, 0)
    for shapes, sharding, count in groups:
        of_group = _held_by_group(shapes, sharding, update)
        held += of_group.bytes * count
        if update.optimizer.all_at_once:
            temporary += of_group.update * count
        else:
            temporary = max(temporary, of_group.update)
        tensors = tensors.plus(len(shapes) * count, experts=sharding.scaled)
    clipping = clipping_by_formula(tensors, update.formats.gradient, layout) if setup.clip_gradients else None
    return _Held(held, temporary, clipping)


@lru_cache(maxsize=1 << 14)
def _held_by_group(shapes: tuple[Shape, ...], sharding: Sharding, update: Update) -> _OfGroup:
    tensors = [Tensor(shape, sharding) for shape in shapes]
    states = update.states(tensors)
    held = states.weights + states.masters + states.moments
    if update.formats.master and update.formats.gradient != update.formats.weight:
        held += states.gradients  # buffers that stay
    return _OfGroup(held, update.temporary_bytes([(tensors, 1)]))


@lru_cache(maxsize=64)
def _inputs(spec: ModelSpec, setup: Setup, cp: int, sharded: bool) -> int:
    depths = depths_with_inputs(spec, setup, cp)
    buffers = buffer_bytes(spec, setup, sharded=sharded)
    return input_bytes(spec, local_setup(setup, cp), depths=depths) + buffers
