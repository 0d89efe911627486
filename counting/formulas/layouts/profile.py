"""What a rank holds, sends and computes in one step, in closed form: the `RankProfile` that is measured too."""

from counting.formulas.flops import training_flops
from counting.formulas.held import forward_pass, layer_held
from counting.formulas.layouts.formats import formats
from counting.formulas.layouts.groups import Shape, layer_shapes, mtp_layer_shapes, outside_shapes
from counting.formulas.layouts.passes import ShardedStep
from counting.formulas.layouts.shards import (
    sharded_parameters,
    sharded_shares,
    sharded_states,
    update_bytes,
)
from counting.formulas.memory import simulate
from counting.formulas.states import buffer_bytes, input_bytes
from counting.ranks.profile import RankLayer, RankProfile, RankStretch
from counting.ranks.shallow import shallow
from counting.setup import Setup
from counting.step.profile import Stretch
from torch_models.layout import Layout
from torch_models.spec import ModelSpec


def ranks_by_formula(spec: ModelSpec, setup: Setup, layout: Layout) -> RankProfile:
    """Return what the ranks of `layout` hold, send and compute in one step of `spec`; both settings are resolved."""
    model = shallow(spec)
    counts = model.counts()
    form, optimizer = formats(setup), setup.optimizer_recipe
    profile = simulate(model.spec, setup, step=True, layout=layout).step_profile
    assert profile is not None, "a simulated step"
    first, *others = ShardedStep(model.spec, setup, layout, profile).run()
    of_layers = [layer_shapes(layer) for layer in model.spec.layers]
    outside: list[Shape] = [
        *(shape for shapes in outside_shapes(spec, "layers").values() for shape in shapes),
        *(shape for layer in (spec.mtp_layers if setup.mtp else ()) for shape in mtp_layer_shapes(layer)),
    ]
    groups = [(outside, 1), *zip(of_layers, counts, strict=True)]
    run = forward_pass(setup)
    return RankProfile(
        layers=tuple(
            RankLayer(
                kind=layer.kind,
                count=count,
                parameters=sharded_parameters(shapes, layout.fsdp),
                states=sharded_states(shapes, layout.fsdp, form, optimizer),
                held=layer_held(layer, run),
            )
            for layer, count, shapes in zip(model.spec.layers, counts, of_layers, strict=True)
        ),
        outside_parameters=sharded_parameters(outside, layout.fsdp),
        outside_states=sharded_states(outside, layout.fsdp, form, optimizer),
        inputs=input_bytes(spec, setup),
        buffers=buffer_bytes(spec, setup),
        first_micro_batch=first,
        middle_micro_batch=others[0] if len(others) == 2 else None,
        last_micro_batch=others[-1] if others else None,
        optimizer_step=RankStretch(
            memory=Stretch(peak=update_bytes(groups, layout.fsdp, form, optimizer), net=0),
        ),
        flops=training_flops(spec, setup),
        shares=sharded_shares(
            [(shape, times) for shapes, times in groups for shape in shapes], layout, form, optimizer
        ),
    )
