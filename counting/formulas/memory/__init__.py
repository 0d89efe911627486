"""A simulation of autograd: bytes alive while a layer or a training step runs in torch's order of operations.

No values are computed. Each tensor is represented by its size, from its allocation until no variable, operation or
gradient refers to it any more; backward processes the operations in torch's order. Sizes come from spec and setup
alone. The simulation is torch-free and never reads a module, so it can be compared with measured bytes after every
operation. The rest of the project uses only `simulate`, `simulate_stage` and `simulate_halves`.

`tape` defines sizes, lifetimes and the order of backward; `operations` defines what each operation allocates and keeps;
`blocks`, `attention`, `experts`, `layer`, `step` and `stages` define which operations a model runs. On a rank of a
layout they run on the rank's part; `parameters`, `collectives`, `vocabulary`, `exchange` and `ring` define what it does
besides.
"""

from counting.counts import LayerCounts, ModelCounts
from counting.formulas.memory.layer import simulate_layer
from counting.formulas.memory.stages import (
    SimulatedHalves,
    SimulatedPass,
    SimulatedStage,
    simulate_halves,
    simulate_stage,
)
from counting.formulas.memory.step import simulate_step
from counting.setup import Setup
from torch_models.layout import Layout
from torch_models.spec import ModelSpec

__all__ = [
    "SimulatedHalves",
    "SimulatedPass",
    "SimulatedStage",
    "simulate",
    "simulate_halves",
    "simulate_stage",
]


def simulate(
    spec: ModelSpec, setup: Setup, *, step: bool, layout: Layout | None = None, context_rank: int = 0
) -> ModelCounts:
    """Return the peak bytes of one layer of each kind in 16 bits and, with `step`, the profile of a training step.

    With a `layout` the step is that of one rank, at place `context_rank` in cp: see `simulate_step`. Peaks of layers
    are left empty then, as are all other counts. `setup` and `layout` are resolved.
    """
    if layout is not None:
        return ModelCounts(
            layers=tuple(LayerCounts(kind=layer.kind, count=count) for layer, count in spec.layer_groups()),
            step_profile=simulate_step(spec, setup, layout, context_rank) if step else None,
        )
    batch, kernels = setup.micro_batch, setup.kernels
    return ModelCounts(
        layers=tuple(
            LayerCounts(
                kind=layer.kind,
                count=count,
                peak_memory_bytes=simulate_layer(layer, batch, kernels, grad=True),
                peak_memory_no_grad_bytes=simulate_layer(layer, batch, kernels, grad=False),
            )
            for layer, count in spec.layer_groups()
        ),
        step_profile=simulate_step(spec, setup, layout, context_rank) if step else None,
    )
