"""The passes of one stage of a pipeline: the compute of the simulation, with fully_shard's schedule around it.

In a pipeline fully_shard gathers the parameters of a stage once a step: each group in the first forward pass, or, with
several stages on a rank, all groups of a stage at once before it. They stay until the gradients have been reduced,
group after group, once, after the last backward pass of the stage (torch 2.13, torch/distributed/pipelining/stage.py,
`backward_maybe_with_nosync`, `perform_reduce_grad`; schedules.py, `UNSHARD`).
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import NamedTuple, Self

from counting.formulas.layouts.flops import local_model
from counting.formulas.layouts.groups import outside_shapes_of_stage
from counting.formulas.layouts.passes import LayerUnits, Sharded
from counting.formulas.layouts.schedule import Unit
from counting.formulas.layouts.sharding import Shape
from counting.formulas.layouts.traffic import compute_traffic, gradient_traffic
from counting.formulas.local.shapes import local_setup
from counting.formulas.memory import SimulatedHalves, SimulatedPass, SimulatedStage, simulate_halves, simulate_stage
from counting.formulas.tensors import gradients_apart
from counting.ranks.pipeline import NOTHING_RUNS, StagePass
from counting.ranks.profile import RankStretch, Traffics, total_traffic
from counting.ranks.shallow import shallow
from counting.setup import Setup
from torch_models.layout import HALVED, Layout
from torch_models.spec import LayerSpec, ModelSpec
from torch_models.stages import Stage

OF_PREDICTION = 4  # parameters that a prediction layer has beside those of a layer: three norms and a projection

PassesByKey = dict[str, StagePass]


class StageTraffic(NamedTuple):
    """The traffic of each stretch of a pass beside fully_shard's, in the order of execution."""

    forward: tuple[Traffics, ...]
    backward: tuple[Traffics, ...]
    inputs: tuple[Traffics, ...]
    weights: tuple[Traffics, ...]


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
    halves = layout.schedule in HALVED
    return _passes_of_stage(shallow_stage(stage), setup, alike, context_rank, halves=halves)


@lru_cache(maxsize=256)
def _passes_of_stage(stage: Stage, setup: Setup, layout: Layout, context_rank: int, *, halves: bool) -> PassesByKey:
    local = local_setup(setup, layout.cp)
    whole = simulate_stage(stage, local, layout, context_rank)
    in_halves = simulate_halves(stage, local, layout, context_rank) if halves and not stage.is_first else None
    traffic = _traffic(stage.spec, setup, layout, stage)
    if layout.is_sharded:
        found = _sharded_passes(partial(_ShardedStage, stage, setup, layout, traffic), whole, in_halves)
    else:
        found = _plain_passes(whole, in_halves, traffic)
    return found | _halves_of_first(found) if halves and stage.is_first else found


def _plain_passes(whole: SimulatedStage, halves: SimulatedHalves | None, traffic: "StageTraffic") -> PassesByKey:
    def stretches(one_pass: SimulatedPass, traffics: tuple[Traffics, ...]) -> list[RankStretch]:
        return [
            RankStretch(memory=memory, traffic=traffic)
            for memory, traffic in zip(one_pass.stretches, traffics, strict=True)
        ]

    found = {"forward nothing": _ascending(stretches(whole.forward[0], traffic.forward))}
    for what, backward in zip(("nothing", "gradients"), whole.backward, strict=True):
        found[f"backward {what}"] = _descending(stretches(backward, traffic.backward))
    if halves is not None:
        for what, weights in (("nothing", halves.weights), ("gradients", halves.added)):
            found[f"input_backward {what}"] = _descending(stretches(halves.inputs, traffic.inputs))
            found[f"weight_backward {what}"] = _ascending(stretches(weights, traffic.weights))
    return found


def _sharded_passes(
    make: "Callable[[], _ShardedStage]", whole: SimulatedStage, halves: SimulatedHalves | None
) -> PassesByKey:
    """Each pass of a stage that is new but for what the pass finds."""
    found: PassesByKey = make().gathering(whole.forward[0])
    for what in ("parameters", "gradients", "pending", "both"):
        backward = whole.backward[what != "parameters"] if what in ("parameters", "gradients") else whole.added
        stage = make().after_forward(whole.forward[0], what)
        found.setdefault("forward parameters", stage.forward(whole.forward[1]))
        found[f"backward {what}"] = make().after_forward(whole.forward[0], what).backward(backward)
        found[f"reduction {what}"] = make().after_forward(whole.forward[0], what).reduction()
        if halves is not None:
            weights = halves.weights if make().makes_new_gradients(what) else halves.added
            stage = make().after_forward(whole.forward[0], what)
            found[f"input_backward {what}"] = stage.input_half(halves.inputs)
            found[f"weight_backward {what}"] = make().after_forward(whole.forward[0], what).weight_half(weights)
    return found


def _halves_of_first(found: PassesByKey) -> PassesByKey:
    """Those of the first stage, whose input has no gradient: nothing, and a whole backward pass."""
    halves: PassesByKey = {}
    for key, one_pass in found.items():
        kind, what = key.split()
        if kind == "backward":
            nothing = (NOTHING_RUNS,) * len(one_pass.layers)
            halves[f"input_backward {what}"] = StagePass(
                before=NOTHING_RUNS, layers=nothing, after=NOTHING_RUNS, ascending=False
            )
            halves[f"weight_backward {what}"] = one_pass
    return halves


def _ascending(stretches: Sequence[RankStretch]) -> StagePass:
    before, *layers, after = stretches
    return StagePass(before=before, layers=tuple(layers), after=after, ascending=True)


def _descending(stretches: Sequence[RankStretch]) -> StagePass:
    before, *layers, after = stretches
    return StagePass(before=before, layers=tuple(reversed(layers)), after=after, ascending=False)


def _traffic(spec: ModelSpec, setup: Setup, layout: Layout, stage: Stage) -> StageTraffic:
    found, gradients = compute_traffic(spec, setup, layout), gradient_traffic(spec, setup, layout)
    kinds = [layer for layer, _ in spec.layer_groups()]
    places = [kinds.index(layer) for layer in spec.layers]

    def of(traffics: Traffics, phase: str, there: bool) -> Traffics:
        return {key: traffic for key, traffic in traffics.items() if there and key.startswith(phase)}

    of_loss = of(found.loss, "backward", stage.is_last)
    of_loss_gradients = of(gradients.loss, "backward", stage.is_last)
    embedding = of(found.embedding_backward, "backward", stage.is_first)
    return StageTraffic(
        forward=(
            of(found.embedding_forward, "forward", stage.is_first),
            *(found.forward[place] for place in places),
            of(found.loss, "forward", stage.is_last),
        ),
        backward=(of_loss, *(found.backward[place] for place in reversed(places)), embedding),
        inputs=(
            _without(of_loss, of_loss_gradients),
            *(_without(found.backward[place], gradients.backward[place]) for place in reversed(places)),
            embedding,
        ),
        weights=(
            {},
            *(
                total_traffic([(gradients.backward[place], 1), *_again(layer, setup, found.forward[place])])
                for place, layer in zip(places, spec.layers, strict=True)
            ),
            total_traffic([(of_loss_gradients, 1), *_predictions_again(stage, setup, layout, found.loss)]),
        ),
    )


def _again(layer: LayerSpec, setup: Setup, forward: Traffics) -> list[tuple[Traffics, int]]:
    """What the second half of backward sends because a checkpoint runs once for each parameter's gradient."""
    if layer.recompute_in(setup.recompute) != "full":
        return []
    of_backward = {key.replace("forward", "backward", 1): traffic for key, traffic in forward.items()}
    return [(of_backward, gradients_apart(layer))]


def _predictions_again(stage: Stage, setup: Setup, layout: Layout, of_loss: Traffics) -> list[tuple[Traffics, int]]:
    """The same of the prediction layers, which exchange rows of experts alone."""
    layers = stage.spec.mtp_layers if setup.mtp else ()
    if not layers or layout.tp > 1 or layers[0].recompute_in(setup.recompute) != "full":
        return []
    forward = {key: traffic for key, traffic in of_loss.items() if key.startswith("forward")}
    return [(traffic, times + OF_PREDICTION) for traffic, times in _again(layers[0], setup, forward)]


def _without(traffics: Traffics, others: Traffics) -> Traffics:
    found = total_traffic([(traffics, 1), (others, -1)])
    return {key: traffic for key, traffic in found.items() if traffic.calls}


class _ShardedStage(Sharded):
    """The passes of one stage under fully_shard."""

    def __init__(self, stage: Stage, setup: Setup, layout: Layout, traffic: StageTraffic) -> None:
        local = local_model(stage.spec, layout.tp, mtp=setup.mtp)
        super().__init__(setup, layout, local, outside_of_stage(stage, setup, layout))
        self.traffic = traffic
        self.gathers_at_once = (layout.stages_per_rank or 1) > 1
        self.rank.synchronises = self.rank.frees_after_backward = False

    def gathering(self, forward: SimulatedPass) -> PassesByKey:
        """The passes of a stage that has nothing: those that gather its parameters, and the first one forward."""
        if not self.gathers_at_once:
            return {"forward nothing": self.forward(forward)}
        return {
            "unshard nothing": self._each(self._unshard),
            "wait nothing": self._each(self._wait),
            "reshard parameters": self._each(self.rank.reshard),
        }

    def after_forward(self, forward: SimulatedPass, found: str) -> Self:
        """This stage after a forward pass, with gradients as `found` says."""
        if self.gathers_at_once:
            self._each(self._unshard)
            self._each(self._wait)
        self.forward(forward)
        for unit in self.units:
            unit.accumulated = found in ("gradients", "both")
            unit.computed = found in ("pending", "both")
        return self

    def makes_new_gradients(self, found: str) -> bool:
        """Whether the gradients that W computes are not added to others."""
        return found == "parameters" or (found == "gradients" and self.rank.formats.converts_gradients)

    def forward(self, compute: SimulatedPass) -> StagePass:
        """A forward pass."""
        self.rank.phase = "forward"
        before, *of_layers, after = zip(compute.moments, self.traffic.forward, strict=True)
        return _ascending(
            [
                self._stretch(*before),
                *(self._layer_forward(unit, *each) for unit, each in zip(self.layers, of_layers, strict=True)),
                self._stretch(*after),
            ]
        )

    def backward(self, compute: SimulatedPass) -> StagePass:
        """A whole backward pass."""
        return self._back(compute, self.traffic.backward)

    def input_half(self, compute: SimulatedPass) -> StagePass:
        """The first half of a backward pass; the hooks after it add gradients that an earlier second half has left."""
        self.makes_gradients = False
        return self._back(compute, self.traffic.inputs)

    def _back(self, compute: SimulatedPass, traffic: Sequence[Traffics]) -> StagePass:
        self.rank.phase = "backward"
        before, *of_layers, after = zip(compute.moments, traffic, strict=True)
        back = zip(reversed(self.layers), of_layers, strict=True)
        return _descending(
            [self._stretch(*before), *(self._layer_backward(unit, *each) for unit, each in back), self._stretch(*after)]
        )

    def weight_half(self, compute: SimulatedPass) -> StagePass:
        """The second half of a backward pass, in which no hook runs."""
        self.rank.phase = "backward"
        stretches = []
        for moments, traffic in zip(compute.moments, self.traffic.weights, strict=True):
            for moment in moments:
                self.rank.run(moment)
            stretches.append(self.rank.end(traffic))
        return _ascending(stretches)

    def _finish_backward(self) -> None:
        self.rank.finish_pass(self.units, has_gradients=self.makes_gradients)

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

    def reduction(self) -> StagePass:
        """The reduction of all gradients."""
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
