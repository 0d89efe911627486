"""What a training step holds beside its activations, in closed form: model states, inputs and buffers, in bytes.

Torch-free. Model states are a recipe's bytes times the parameters of formulas/parameters.py. Where torch cannot run a
recipe (`Precision.measurable`) there is nothing to hold the formula against, and it says None: such states stand in
the result by recipe, from the measured parameters.
"""

from collections.abc import Iterable

from counting.formulas.parameters import (
    linear_weights,
    mtp_parameters,
    outside_parameters,
    parameters,
    router_correction_bias,
)
from counting.recipes import ModelStates, model_states
from counting.setup import Setup
from torch_models.spec import LayerSpec, ModelSpec

TOKEN_ID_BYTES = 8  # torch's int64, of token ids and labels
CORRECTION_BIAS_BYTES = 4  # fp32, whatever the weights are in


def layer_states(spec: LayerSpec, setup: Setup) -> ModelStates | None:
    """Of one decoder layer; None where the recipe cannot be measured."""
    return _states(parameters(spec).total, linear_weights(spec), setup)


def outside_states(spec: ModelSpec, setup: Setup) -> ModelStates | None:
    """Of embedding, final norm and head and, where they are trained, of the multi-token-prediction modules.

    The matrices of the latter's layers are linear weights; embedding, head and the projection are not.
    """
    total, linear = outside_parameters(spec).total, 0
    if setup.mtp:
        total += mtp_parameters(spec).total
        linear += sum(map(linear_weights, spec.mtp_layers))
    return _states(total, linear, setup)


def input_bytes(spec: ModelSpec, setup: Setup) -> int:
    """Token ids, labels, and the tables of each distinct rotary embedding, which all layers share.

    A table pair is cos and sin of dim / 2 angles for each of T positions, as wide as an activation.
    """
    rotary = {layer.attention.rotary for layer in _trained_kinds(spec, setup)}
    width = setup.precision_recipe.activation_bytes
    tables = sum(2 * setup.tokens * (each.dim // 2) * width for each in rotary)
    return 2 * TOKEN_ID_BYTES * setup.tokens + tables


def buffer_bytes(spec: ModelSpec, setup: Setup) -> int:
    """The correction biases of all routers, one number an expert, which no optimiser updates."""
    numbers = sum(router_correction_bias(layer) * count for layer, count in spec.layer_groups())
    if setup.mtp:
        numbers += sum(map(router_correction_bias, spec.mtp_layers))
    return CORRECTION_BIAS_BYTES * numbers


def _trained_kinds(spec: ModelSpec, setup: Setup) -> Iterable[LayerSpec]:
    return (*(layer for layer, _ in spec.layer_groups()), *(spec.mtp_layers if setup.mtp else ()))


def _states(total: int, linear: int, setup: Setup) -> ModelStates | None:
    precision = setup.precision_recipe
    return model_states(total, linear, precision, setup.optimizer_recipe) if precision.measurable else None
