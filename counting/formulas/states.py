"""Bytes that a training step needs in addition to activations, in closed form: model states, inputs and buffers.

Torch-free. Weights, gradients and master weights are the recipe's bytes per parameter times the parameters of
formulas/parameters.py; moments depend on the shapes of formulas/tensors.py. If torch cannot run a recipe
(`states_measurable`), its states cannot be measured and the functions that return model states return None; the result
then contains states computed by the recipe from the measured parameters.
"""

from collections.abc import Iterable

from counting.formulas.parameters import (
    linear_weights,
    mtp_parameters,
    outside_parameters,
    parameters,
    router_correction_bias,
)
from counting.formulas.tensors import tensors, tensors_after_layers, tensors_before_layers
from counting.recipes import ModelStates, TrainedTensor, model_states, moment_bytes, states_measurable
from counting.setup import Setup
from torch_models.spec import LayerSpec, ModelSpec

TOKEN_ID_BYTES = 8  # torch's int64, of token ids and labels
CORRECTION_BIAS_BYTES = 4  # fp32, whatever the weights are in


def layer_states(spec: LayerSpec, setup: Setup) -> ModelStates | None:
    """Return the model states of one decoder layer, or None if the recipe cannot be measured."""
    return _states(parameters(spec).total, linear_weights(spec), layer_moments(spec, setup), setup)


def outside_states(spec: ModelSpec, setup: Setup) -> ModelStates | None:
    """Return the model states of embedding, final norm, head and, if trained, multi-token-prediction modules.

    Returns None if the recipe cannot be measured. The matrices in the layers of these modules are linear weights;
    embedding, head and the modules' projection are not.
    """
    total, linear, moments = outside_parameters(spec).total, 0, outside_moments(spec, setup)
    if setup.mtp:
        total += mtp_parameters(spec).total
        linear += sum(map(linear_weights, spec.mtp_layers))
        moments += mtp_moments(spec, setup)
    return _states(total, linear, moments, setup)


def layer_moments(spec: LayerSpec, setup: Setup) -> int:
    """Return the bytes of the optimiser's moments for one decoder layer."""
    return _moments(tensors(spec), setup)


def outside_moments(spec: ModelSpec, setup: Setup) -> int:
    """Return the bytes of the optimiser's moments for embedding, final norm and head."""
    return _moments([*tensors_before_layers(spec), *tensors_after_layers(spec, mtp=False)], setup)


def mtp_moments(spec: ModelSpec, setup: Setup) -> int:
    """Return the bytes of the optimiser's moments for the multi-token-prediction modules, whether trained or not."""
    main = len(tensors_after_layers(spec, mtp=False))
    return _moments(tensors_after_layers(spec, mtp=True)[main:], setup)


def input_bytes(spec: ModelSpec, setup: Setup) -> int:
    """Return bytes of token ids, labels, and the tables of each distinct rotary embedding, which layers share.

    The tables are cos and sin of dim / 2 angles for each of S positions, in the format of the activations; all
    sequences share them.
    """
    rotary = {layer.attention.rotary for layer in _trained_kinds(spec, setup)}
    width = setup.precision_recipe.activation_bytes
    tables = sum(2 * setup.micro_batch.length * (each.dim // 2) * width for each in rotary)
    return 2 * TOKEN_ID_BYTES * setup.tokens + tables


def buffer_bytes(spec: ModelSpec, setup: Setup) -> int:
    """Return bytes of the correction biases of all routers: one number per expert, not updated by the optimiser."""
    numbers = sum(router_correction_bias(layer) * count for layer, count in spec.layer_groups())
    if setup.mtp:
        numbers += sum(map(router_correction_bias, spec.mtp_layers))
    return CORRECTION_BIAS_BYTES * numbers


def _trained_kinds(spec: ModelSpec, setup: Setup) -> Iterable[LayerSpec]:
    return (*(layer for layer, _ in spec.layer_groups()), *(spec.mtp_layers if setup.mtp else ()))


def _moments(of: Iterable[TrainedTensor], setup: Setup) -> int:
    return sum(moment_bytes(tensor, setup.precision_recipe, setup.optimizer_recipe) for tensor in of)


def _states(total: int, linear: int, moments: int, setup: Setup) -> ModelStates | None:
    measurable = states_measurable(setup.precision_recipe, setup.optimizer_recipe)
    return model_states(total, linear, moments, setup.precision_recipe) if measurable else None
