"""What a rank holds, sends and computes in one step, in closed form: the `RankProfile` that is measured too."""

from counting.formulas.layouts.clipping import clipping_by_formula
from counting.formulas.layouts.flops import local_model, rank_flops
from counting.formulas.layouts.formats import stored
from counting.formulas.layouts.groups import frozen_shapes, layer_shapes, outside_shapes
from counting.formulas.layouts.passes import micro_batches
from counting.formulas.layouts.search import worst_context_rank
from counting.formulas.layouts.sharding import data_sharding, expert_sharding
from counting.formulas.layouts.shards import Tensor, Update, counted_tensors, rank_shares, updated_numbers
from counting.formulas.local.held import local_layer_held
from counting.formulas.local.shapes import depths_with_inputs, local_setup
from counting.formulas.states import buffer_bytes, input_bytes
from counting.ranks.profile import RankLayer, RankProfile, RankStretch
from counting.ranks.shallow import shallow
from counting.setup import Setup
from counting.step.profile import Stretch
from torch_models.layout import Layout
from torch_models.spec import LayerSpec, ModelSpec


def ranks_by_formula(spec: ModelSpec, setup: Setup, layout: Layout, context_rank: int | None = None) -> RankProfile:
    """Return what the ranks of `layout` hold, send and compute in one step of `spec`; both settings are resolved.

    States are those of the first rank. The passes are those of the ranks at place `context_rank` of cp; None: of the
    place with the largest peak, the lowest of several.
    """
    model = shallow(spec)
    if context_rank is None:
        context_rank = worst_context_rank(spec, setup, layout)
    counts, local = model.counts(), local_model(model.spec, layout.tp, mtp=setup.mtp)
    update = Update(stored(setup, sharded=layout.is_sharded), setup.optimizer_recipe)
    first, *others = micro_batches(model.spec, setup, layout, context_rank)
    of_layers = [_tensors(layer, layout) for layer in local.layers]
    data = data_sharding(layout)
    outside = [Tensor(shape, data) for shapes in outside_shapes(local, "layers").values() for shape in shapes]
    for layer in local.mtp_layers if setup.mtp else ():
        outside += _tensors(layer, layout, predicts=True)
    groups = [(outside, 1), *zip(of_layers, counts, strict=True)]
    return RankProfile(
        layers=tuple(
            RankLayer(
                kind=layer.kind,
                count=count,
                parameters=updated_numbers(tensors),
                states=update.states(tensors),
                held=local_layer_held(layer, setup, layout, context_rank),
            )
            for layer, count, tensors in zip(model.spec.layers, counts, of_layers, strict=True)
        ),
        outside_parameters=updated_numbers(outside),
        outside_states=update.states(outside),
        inputs=input_bytes(spec, local_setup(setup, layout.cp), depths=depths_with_inputs(spec, setup, layout.cp)),
        buffers=buffer_bytes(spec, setup, sharded=layout.is_sharded),
        first_micro_batch=first,
        middle_micro_batch=others[0] if len(others) == 2 else None,
        last_micro_batch=others[-1] if others else None,
        gradient_clipping=clipping_by_formula(counted_tensors(groups), update.formats.gradient, layout)
        if setup.clip_gradients
        else None,
        optimizer_step=RankStretch(memory=Stretch(peak=update.temporary_bytes(groups), net=0)),
        flops=rank_flops(spec, setup, layout),
        shares=rank_shares(groups, layout, update),
        context_rank=context_rank,
    )


def _tensors(layer: LayerSpec, layout: Layout, *, predicts: bool = False) -> list[Tensor]:
    """The tensors of a layer on a rank."""
    shapes, stacks, experts = layer_shapes(layer, layout.ep, predicts=predicts)
    data, of_experts = data_sharding(layout), expert_sharding(layout, experts)
    frozen = [Tensor(shape, data, frozen=True) for shape in frozen_shapes(layer).shapes]
    return [*(Tensor(shape, data) for shape in shapes), *(Tensor(shape, of_experts) for shape in stacks), *frozen]
