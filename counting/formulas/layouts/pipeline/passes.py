"""The passes of one stage of a pipeline: the compute of the simulation, with fully_shard's schedule around it.

In a pipeline fully_shard gathers the parameters of a stage once a step: each group in the first forward pass, or, with
several stages on a rank, all groups of a stage at once before it. They stay until the gradients have been reduced,
group after group, once, after the last backward pass of the stage (torch 2.13, torch/distributed/pipelining/stage.py,
`backward_maybe_with_nosync`, `perform_reduce_grad`; schedules.py, `UNSHARD`).
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from counting.formulas.layouts.flops import local_model
from counting.formulas.layouts.groups import outside_shapes_of_stage
from counting.formulas.layouts.passes import LayerUnits, Sharded
from counting.formulas.layouts.schedule import Unit
from counting.formulas.layouts.sharding import Shape
from counting.formulas.layouts.traffic import compute_traffic
from counting.formulas.local.shapes import local_setup
from counting.formulas.memory import SimulatedPass, simulate_stage
from counting.ranks.pipeline import StagePass
from counting.ranks.profile import RankStretch, Traffics
from counting.ranks.shallow import shallow
from counting.setup import Setup
from torch_models.layout import Layout
from torch_models.spec import ModelSpec
from torch_models.stages import Stage

PassesByKey = dict[str, StagePass]


class StageTraffic(NamedTuple):
    """The traffic of each stretch of a pass beside fully_shard's, in the order of execution."""

    forward: tuple[Traffics, ...]
    backward: tuple[Traffics, ...]


def embeds(stage: Stage, setup: Setup) -> bool:
    """Whether the stage has an embedding: the first one, and the last one for multi-token prediction."""
    return stage.is_first or (stage.is_last and bool(setup.mtp))


def outside_of_stage(stage: Stage, setup: Setup, layout: Layout) -> dict[tuple[str, ...], tuple[Shape, ...]]:
    """Return the shapes of the groups outside the layers of a stage, on a rank."""
    local = local_model(stage.spec, layout.tp, mtp=setup.mtp)
    return outside_shapes_of_stage(local, layout.grouping, embeds=embeds(stage, setup), is_last=stage.is_last)


def shallow_stage(stage: Stage) -> Stage:
    """The stage with few layers, which stand for all."""
    return stage._replace(spec=shallow(stage.spec).spec, number=0, first_layer=0)


def passes_of_stage(stage: Stage, setup: Setup, layout: Layout, context_rank: int = 0) -> PassesByKey:
    """Return the passes of the shallow stage, by kind and by what is found.

    They are computed once for all stages and layouts that do not differ in what they depend on.
    """
    alike = Layout(
        dp=layout.dp,
        fsdp=layout.fsdp,
        zero=1,
        tp=layout.tp,
        sequence_parallel=layout.sequence_parallel or layout.tp == 1,
        cp=layout.cp,
        ep=layout.ep,
        pp=2,
        schedule="interleaved" if (layout.stages_per_rank or 1) > 1 else "1f1b",
        grouping=layout.grouping,
        expert_imbalance=layout.expert_imbalance,
    )
    return _passes_of_stage(shallow_stage(stage), setup, alike, context_rank)


@lru_cache(maxsize=256)
def _passes_of_stage(stage: Stage, setup: Setup, layout: Layout, context_rank: int) -> PassesByKey:
    compute = simulate_stage(stage, local_setup(setup, layout.cp), layout, context_rank)
    traffic = _traffic(stage.spec, setup, layout, stage)
    if layout.is_sharded:
        return _ShardedStage(stage, setup, layout, traffic).run(compute.forward, compute.backward)

    def stretches(one_pass: SimulatedPass, traffics: tuple[Traffics, ...]) -> list[RankStretch]:
        return [
            RankStretch(memory=memory, traffic=traffic)
            for memory, traffic in zip(one_pass.stretches, traffics, strict=True)
        ]

    found = {}
    found["forward nothing"] = _ascending(stretches(compute.forward[0], traffic.forward))
    for what, backward in zip(("nothing", "gradients"), compute.backward, strict=True):
        found[f"backward {what}"] = _descending(stretches(backward, traffic.backward))
    return found


def _ascending(stretches: Sequence[RankStretch]) -> StagePass:
    before, *layers, after = stretches
    return StagePass(before=before, layers=tuple(layers), after=after, ascending=True)


def _descending(stretches: Sequence[RankStretch]) -> StagePass:
    before, *layers, after = stretches
    return StagePass(before=before, layers=tuple(reversed(layers)), after=after, ascending=False)


def _traffic(spec: ModelSpec, setup: Setup, layout: Layout, stage: Stage) -> StageTraffic:
    found = compute_traffic(spec, setup, layout)
    kinds = [layer for layer, _ in spec.layer_groups()]
    places = [kinds.index(layer) for layer in spec.layers]

    def of(traffics: Traffics, phase: str, there: bool) -> Traffics:
        return {key: traffic for key, traffic in traffics.items() if there and key.startswith(phase)}

    return StageTraffic(
        (
            of(found.embedding_forward, "forward", stage.is_first),
            *(found.forward[place] for place in places),
            of(found.loss, "forward", stage.is_last),
        ),
        (
            of(found.loss, "backward", stage.is_last),
            *(found.backward[place] for place in reversed(places)),
            of(found.embedding_backward, "backward", stage.is_first),
        ),
    )


class _ShardedStage(Sharded):
    """The passes of one stage under fully_shard."""

    def __init__(self, stage: Stage, setup: Setup, layout: Layout, traffic: StageTraffic) -> None:
        local = local_model(stage.spec, layout.tp, mtp=setup.mtp)
        super().__init__(setup, layout, local, outside_of_stage(stage, setup, layout))
        self.traffic = traffic
        self.gathers_at_once = (layout.stages_per_rank or 1) > 1
        self.rank.synchronises = self.rank.frees_after_backward = False

    def run(self, forward: Sequence[SimulatedPass], backward: Sequence[SimulatedPass]) -> PassesByKey:
        """Return all passes."""
        found: PassesByKey = {}
        if self.gathers_at_once:
            found["unshard nothing"] = self._each(self._unshard)
            found["wait nothing"] = self._each(self._wait)
            found["reshard parameters"] = self._each(self.rank.reshard)
            self._each(self._unshard)
            self._each(self._wait)
            found["forward parameters"] = self._forward(forward[0])
        else:
            found["forward nothing"] = self._forward(forward[0])
        found["backward parameters"] = self._backward(backward[0])
        later = self._forward(forward[1])
        found.setdefault("forward parameters", later)
        found["backward gradients"] = self._backward(backward[1])
        found["reduction gradients"] = self._reduction()
        return found

    def _forward(self, compute: SimulatedPass) -> StagePass:
        self.rank.phase = "forward"
        before, *of_layers, after = zip(compute.moments, self.traffic.forward, strict=True)
        return _ascending(
            [
                self._stretch(*before),
                *(self._layer_forward(unit, *each) for unit, each in zip(self.layers, of_layers, strict=True)),
                self._stretch(*after),
            ]
        )

    def _backward(self, compute: SimulatedPass) -> StagePass:
        self.rank.phase = "backward"
        before, *of_layers, after = zip(compute.moments, self.traffic.backward, strict=True)
        back = zip(reversed(self.layers), of_layers, strict=True)
        return _descending(
            [self._stretch(*before), *(self._layer_backward(unit, *each) for unit, each in back), self._stretch(*after)]
        )

    def _finish_backward(self) -> None:
        self.rank.finish_pass(self.units)

    # --- Passes of fully_shard alone ---------------------------------------------------------------------------------

    def _each(self, act: "Act") -> StagePass:
        """Do something with each group, in the order in which torch finds the modules."""
        return _ascending([self._alone(act, units) for units in self._parts()])

    def _parts(self) -> Iterator[list[Unit]]:
        yield self.before_layers
        yield from map(_units, self.layers)
        yield self.after_layers

    def _alone(self, act: "Act", units: Sequence[Unit]) -> RankStretch:
        for unit in units:
            act(unit)
        return self.rank.end({})

    def _unshard(self, unit: Unit) -> None:
        self.rank.phase = "forward"
        self.rank.unshard(unit)

    def _wait(self, unit: Unit) -> None:
        self.rank.wait_for_unshard(unit, forward=False)

    def _reduction(self) -> StagePass:
        rank = self.rank
        rank.phase = "backward"
        rank.synchronises = True
        *parts, last = self._parts()
        stretches = [self._alone(self._reduce, units) for units in parts]
        for unit in last:
            self._reduce(unit)
        rank.finish_backward(self.units)
        return _ascending([*stretches, rank.end({})])

    def _reduce(self, unit: Unit) -> None:
        self.rank.post_backward(unit, has_gradients=False)


Act = Callable[[Unit], None]


def _units(units: LayerUnits) -> list[Unit]:
    return [unit for unit in units if unit is not None]
