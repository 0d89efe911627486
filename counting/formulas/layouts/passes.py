"""One step on a rank, stretch by stretch: the compute of the simulation, with fully_shard's schedule around it.

Example: Llama-3-8B on 64 ranks of fsdp, one sequence of 8,192 tokens, mixed precision, a group for each layer. The
worst moment is in the backward pass of the loss:

    501,891,328     parameters: 8,030,261,248 / 64 in fp32
    1,003,783,820   AdamW: two moments, and a step count of 4 bytes for each of 291 tensors
    2,228,224       token ids and labels, 2 x 8 x 8,192; rotary tables, 2 x 8,192 x 64 x 2
    67,108,864      the embedded tokens, 8,192 x 4,096 x 2
    44,059,067,136  what 32 layers keep: 1,376,845,848 each (formulas/held.py)
    2,101,354,496   embedding, head and final norm, gathered in 16 bits until backward ends
    436,224,000     the flat buffer of the last layer's 218,112,000 parameters: gathered when backward begins
    12,675,219,464  logarithms of probabilities, their gradients and those of the logits, 3 x 4 x 8,192 x 128,256; the
                    normed hidden states, 67,108,864, and 4 bytes of each row; the loss and its gradient, 8 bytes

    60,846,877,332  in all. The reduction's buffers are not there yet: the first group is reduced after this moment.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from counting.formulas.layouts.flops import local_model
from counting.formulas.layouts.formats import formats
from counting.formulas.layouts.groups import frozen_shapes, group_of, layer_shapes, outside_shapes
from counting.formulas.layouts.schedule import Rank, Unit
from counting.formulas.layouts.sharding import Shape, data_sharding, expert_sharding
from counting.formulas.layouts.traffic import StretchTraffic, compute_traffic
from counting.formulas.memory import simulate
from counting.ranks.profile import RankMicroBatch, RankStretch, Traffics
from counting.setup import Setup
from counting.step.profile import Hook, Moment, Passes, StepProfile
from torch_models.layout import Layout
from torch_models.spec import LayerSpec, ModelSpec

LONGEST = 3  # micro-batches that can differ: the first, those between, the last


class Compute(NamedTuple):
    """What does not depend on how many ranks divide the states: the passes of one rank, and its part of the model."""

    profile: StepProfile
    traffic: StretchTraffic
    local: ModelSpec
    kind_of_layer: tuple[int, ...]  # the place of each layer among the layer kinds


def compute_of(spec: ModelSpec, setup: Setup, layout: Layout, context_rank: int = 0) -> Compute:
    """Return the passes of the shallow model `spec`, computed once for all layouts that do not change them.

    They depend on how tensors, experts and positions are divided, on whether fully_shard is applied, and on whether
    whole gradients stay where they are, without another format, from one micro-batch to the next.
    """
    stay = layout.is_sharded and layout.zero == 1 and not formats(setup).converts_gradients
    alike = Layout(
        dp=2 if layout.is_sharded else 1,
        zero=1 if stay else 3,
        tp=layout.tp,
        sequence_parallel=layout.sequence_parallel or layout.tp == 1,
        ep=layout.ep,
        cp=layout.cp,
        grouping=layout.grouping if stay else "torchtitan",
        expert_imbalance=layout.expert_imbalance,
    )
    return _compute_of(spec, setup, alike, context_rank)


@lru_cache(maxsize=256)
def _compute_of(spec: ModelSpec, setup: Setup, layout: Layout, context_rank: int) -> Compute:
    profile = simulate(spec, setup, step=True, layout=layout, context_rank=context_rank).step_profile
    assert profile is not None, "a simulated step"
    kinds = [layer for layer, _ in spec.layer_groups()]
    of_layers = tuple(kinds.index(layer) for layer in spec.layers)
    return Compute(
        profile, compute_traffic(spec, setup, layout), local_model(spec, layout.tp, mtp=setup.mtp), of_layers
    )


def micro_batches(spec: ModelSpec, setup: Setup, layout: Layout, context_rank: int = 0) -> list[RankMicroBatch]:
    """Return the first, a middle and the last micro-batch of a step of the shallow model, as far as they differ."""
    compute = compute_of(spec, setup, layout, context_rank)
    return ShardedStep(setup, layout, compute).run() if layout.is_sharded else _unsharded(setup, compute)


def _unsharded(setup: Setup, compute: Compute) -> list[RankMicroBatch]:
    """The micro-batches of a step without fully_shard, whose memory is that of the passes alone."""
    assert setup.micro_batches is not None, "a resolved setup"
    traffic, kinds = compute.traffic, compute.kind_of_layer

    def micro_batch(passes: Passes | None) -> RankMicroBatch:
        assert passes is not None, "a simulated step"
        of_layers = passes.layers
        return RankMicroBatch(
            embedding_forward=RankStretch(memory=passes.embedding_forward, traffic=traffic.embedding_forward),
            forward=tuple(RankStretch(memory=of_layers[k].forward, traffic=traffic.forward[k]) for k in kinds),
            loss=RankStretch(memory=passes.loss, traffic=traffic.loss),
            backward=tuple(RankStretch(memory=of_layers[k].backward, traffic=traffic.backward[k]) for k in kinds),
            embedding_backward=RankStretch(memory=passes.embedding_backward, traffic=traffic.embedding_backward),
        )

    first = micro_batch(compute.profile.first_micro_batch)
    further = min(setup.micro_batches, LONGEST) - 1
    return [first, *(micro_batch(compute.profile.later_micro_batch) for _ in range(further))]


class LayerUnits(NamedTuple):
    """What fully_shard acts on in one layer: the layer, and its experts if they are a group of their own."""

    layer: Unit
    experts: Unit | None


class Sharded:
    """The groups of fully_shard in a model or a part of it, and what it does with them while a pass runs.

    `local` is the part of the model on a rank, and `outside` has the groups outside its layers, by the modules that
    each of them spans.
    """

    def __init__(
        self, setup: Setup, layout: Layout, local: ModelSpec, outside: Mapping[tuple[str, ...], tuple[Shape, ...]]
    ) -> None:
        self.layout = layout
        form = formats(setup)
        self.rank = Rank(form)
        self.makes_gradients = True  # whether the backward pass computes the gradients of parameters
        reshards = layout.zero == 3

        def units(layer: LayerSpec, module: str) -> LayerUnits:
            shapes, stacks, experts = layer_shapes(layer, layout.ep, predicts=module == "mtp")
            group = group_of(shapes, data_sharding(layout), form, frozen_shapes(layer))
            whole = Unit(group, (module,), reshards=reshards)
            if not stacks:
                return LayerUnits(whole, None)
            of_experts = group_of(stacks, expert_sharding(layout, experts), form)
            return LayerUnits(whole, Unit(of_experts, ("experts",), reshards=reshards))

        self.layers = [units(layer, "layer") for layer in local.layers]
        self.mtp = [units(layer, "mtp") for layer in (local.mtp_layers if setup.mtp else ())]
        self.running = self.layers[0]  # the layer whose experts run next
        self.outside: dict[str, Unit] = {}  # by module
        groups: dict[tuple[str, ...], Unit] = {}
        for modules, shapes in outside.items():
            stays = modules == ("model",) or "head" in modules
            group = group_of(shapes, data_sharding(layout), form)
            groups[modules] = Unit(group, modules, reshards=reshards and not stays)
            self.outside |= dict.fromkeys(modules, groups[modules])
        # The order in which torch finds them below the root: embedding, layers, then norm and head.
        self.before_layers = [found for modules, found in groups.items() if modules[0] in ("model", "embedding")]
        self.after_layers = [unit for found in self.mtp for unit in found if unit is not None]
        self.after_layers += [found for modules, found in groups.items() if modules[0] == "norm"]
        of_layers = [unit for found in self.layers for unit in found if unit is not None]
        self.units = [*self.before_layers, *of_layers, *self.after_layers]

    def _layer_forward(self, units: LayerUnits, moments: Sequence[Moment], traffic: Traffics) -> RankStretch:
        self.running = units
        self.rank.pre_forward(units.layer, "layer", None, has_gradient=True)
        self._pass(moments)
        self.rank.post_forward(units.layer, "layer", None)
        return self.rank.end(traffic)

    def _layer_backward(self, units: LayerUnits, moments: Sequence[Moment], traffic: Traffics) -> RankStretch:
        self.running = units
        self.rank.pre_backward(units.layer)
        self._pass(moments)
        self.rank.post_backward(units.layer, has_gradients=self.makes_gradients)
        return self.rank.end(traffic)

    def _stretch(self, moments: Sequence[Moment], traffic: Traffics) -> RankStretch:
        self._pass(moments)
        return self.rank.end(traffic)

    def _pass(self, moments: Sequence[Moment]) -> None:
        for moment in moments:
            self.rank.run(moment)
            if moment.hook is not None:
                self._act(moment.hook)

    def _act(self, hook: Hook) -> None:
        """What fully_shard does at this moment."""
        rank, (module, moment, depth) = self.rank, hook
        unit = self._unit(module, depth)
        place = (module, depth)
        match moment:
            case "before_forward" if unit is not None:
                rank.pre_forward(unit, module, place, has_gradient=module not in ("model", "embedding"))
            case "after_forward":
                if unit is not None:
                    rank.post_forward(unit, module, place)
                if module == "model":
                    rank.finish_forward(self.units, place)
            case "before_backward":
                rank.phase = "backward"
                for each in [unit] if module == "experts" else self.units:
                    if each is not None and place in each.before:
                        rank.pre_backward(each)
            case "after_backward":
                if module == "model":
                    self._finish_backward()
                elif unit is not None and place in unit.after:
                    # A head that runs again for a further depth has no whole gradient before its first run is undone.
                    rank.post_backward(
                        unit, has_gradients=self.makes_gradients and not (module == "head" and depth > 0)
                    )

    def _unit(self, module: str, depth: int) -> Unit | None:
        """The unit that acts on a module; None if there is none."""
        if module == "mtp":
            return self.mtp[depth - 1].layer
        if module == "experts":
            return (self.mtp[depth - 1] if depth else self.running).experts
        return self.outside.get(module)

    def _finish_backward(self) -> None:
        """The end of a backward pass."""
        self.rank.finish_backward(self.units)


class ShardedStep(Sharded):
    """The micro-batches of one step of the shallow model under fully_shard."""

    def __init__(self, setup: Setup, layout: Layout, compute: Compute) -> None:
        assert setup.micro_batches is not None, "a resolved setup"
        super().__init__(setup, layout, compute.local, outside_shapes(compute.local, layout.grouping))
        self.micro_batches = setup.micro_batches
        self.traffic = compute.traffic
        self.kind_of_layer = compute.kind_of_layer
        profile = compute.profile
        self.first = profile.first_micro_batch
        self.later = profile.later_micro_batch
        self.last = profile.last_micro_batch or profile.later_micro_batch

    def run(self) -> list[RankMicroBatch]:
        """Return the first, a middle and the last micro-batch, as far as they differ."""
        number = min(self.micro_batches, LONGEST)
        return [self._micro_batch(index, number) for index in range(number)]

    def _micro_batch(self, index: int, number: int) -> RankMicroBatch:
        passes = self.first if index == 0 else self.last if index == number - 1 else self.later
        assert passes is not None and passes.moments is not None, "a simulated step of a rank"
        rank, kinds = self.rank, len(passes.layers)
        rank.synchronises = self.layout.zero != 1 or index == number - 1
        embedding_forward, *of_layers = passes.moments[: kinds + 1]
        loss, *backward_of_layers, embedding_backward = passes.moments[kinds + 1 :]
        backward_of_layers.reverse()
        rank.phase = "forward"
        traffic = self.traffic
        before = self._stretch(embedding_forward, traffic.embedding_forward)
        forward = [
            self._layer_forward(unit, of_layers[kind], traffic.forward[kind])
            for unit, kind in zip(self.layers, self.kind_of_layer, strict=True)
        ]
        of_loss = self._stretch(loss, traffic.loss)
        backward = [
            self._layer_backward(unit, backward_of_layers[kind], traffic.backward[kind])
            for unit, kind in zip(reversed(self.layers), reversed(self.kind_of_layer), strict=True)
        ]
        return RankMicroBatch(
            embedding_forward=before,
            forward=tuple(forward),
            loss=of_loss,
            backward=tuple(reversed(backward)),
            embedding_backward=self._stretch(embedding_backward, traffic.embedding_backward),
        )
