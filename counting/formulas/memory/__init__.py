"""A simulation of autograd: bytes alive while a layer, and a training step, run as torch runs them.

Nothing is computed. Every tensor that the modules make is followed by its size from its birth to the moment when the
last variable, operation or gradient that refers to it is gone; backward undoes the operations in torch's order. The
sizes come from the spec alone: the simulation is torch-free and never reads a module, so that it can be held against
measured bytes after every operation. `simulate` is the only function for the rest of the project.

`tape` has sizes, lifetimes and the order of backward; `operations` what one operation allocates and keeps; `blocks`,
`attention`, `experts`, `layer` and `step` which operations a model runs.
"""

from counting.counts import LayerCounts, ModelCounts
from counting.formulas.memory.layer import simulate_layer
from counting.formulas.memory.step import simulate_step
from counting.setup import Setup
from torch_models.spec import ModelSpec

__all__ = ["simulate"]


def simulate(spec: ModelSpec, setup: Setup, *, step: bool) -> ModelCounts:
    """Peaks of one layer of each kind in 16 bits and, with `step`, the profile of a training step; no other counts.

    `setup` is resolved: it has a sequence length, and says whether `mtp_layers` are trained.
    """
    length, kernels = setup.sequence_length, setup.kernels
    assert length is not None, "a resolved setup"
    return ModelCounts(
        layers=tuple(
            LayerCounts(
                kind=layer.kind,
                count=count,
                peak_memory_bytes=simulate_layer(layer, length, kernels, grad=True),
                peak_memory_no_grad_bytes=simulate_layer(layer, length, kernels, grad=False),
            )
            for layer, count in spec.layer_groups()
        ),
        step_profile=simulate_step(spec, setup) if step else None,
    )
