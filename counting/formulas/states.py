"""Bytes that a training step needs in addition to activations, in closed form: model states, inputs and buffers.

Torch-free. Weights, gradients and master weights are the recipe's bytes per parameter times the parameters of
formulas/parameters.py; moments depend on the shapes of formulas/tensors.py, and are worked out here. If torch cannot
run a recipe (`states_measurable`), its states cannot be measured and the functions that return model states return
None; the result then contains states computed by the recipe from the measured parameters.
"""

from collections.abc import Iterable

from counting.formulas.parameters import (
    frozen_parameters,
    linear_weights,
    mtp_parameters,
    outside_parameters,
    parameters,
    router_correction_bias,
)
from counting.formulas.tensors import tensors, tensors_after_layers, tensors_before_layers, tensors_of_mtp
from counting.recipes import (
    BLOCK_IN_8_BITS,
    SMALLEST_IN_8_BITS,
    ModelStates,
    TrainedTensor,
    model_states,
    states_measurable,
)
from counting.setup import Setup
from torch_models.spec import LayerSpec, ModelSpec

TOKEN_ID_BYTES = 8  # torch's int64, of token ids and labels
CORRECTION_BIAS_BYTES = 4  # fp32, whatever the weights are in


def layer_states(spec: LayerSpec, setup: Setup) -> ModelStates | None:
    """Return the model states of one decoder layer, or None if the recipe cannot be measured."""
    total, moments = parameters(spec).total, layer_moments(spec, setup)
    return _states(total, linear_weights(spec), moments, setup, frozen_parameters(spec))


def outside_states(spec: ModelSpec, setup: Setup) -> ModelStates | None:
    """Return the model states of embedding, final norm, head and, if trained, multi-token-prediction modules.

    Returns None if the recipe cannot be measured. The matrices in the layers of these modules are linear weights;
    embedding, head and the modules' projection are not.
    """
    total, linear, frozen, moments = outside_parameters(spec).total, 0, 0, outside_moments(spec, setup)
    if setup.mtp:
        total += mtp_parameters(spec).total
        linear += sum(map(linear_weights, spec.mtp_layers))
        frozen += sum(map(frozen_parameters, spec.mtp_layers))
        moments += mtp_moments(spec, setup)
    return _states(total, linear, moments, setup, frozen)


def layer_moments(spec: LayerSpec, setup: Setup) -> int:
    """Return the bytes of the optimiser's moments for one decoder layer."""
    return _moments(tensors(spec), setup)


def outside_moments(spec: ModelSpec, setup: Setup) -> int:
    """Return the bytes of the optimiser's moments for embedding, final norm and head."""
    return _moments([*tensors_before_layers(spec), *tensors_after_layers(spec)], setup)


def mtp_moments(spec: ModelSpec, setup: Setup) -> int:
    """Return the bytes of the optimiser's moments for the multi-token-prediction modules, whether trained or not."""
    return _moments(tensors_of_mtp(spec), setup)


def input_bytes(spec: ModelSpec, setup: Setup, *, depths: int = 0) -> int:
    """Return bytes of token ids and labels of one micro-batch, and of the rotary tables.

    `depths` are prediction depths that get token ids and labels of their own.
    """
    return 2 * TOKEN_ID_BYTES * setup.tokens * (1 + depths) + table_bytes(spec, setup)


def table_bytes(spec: ModelSpec, setup: Setup) -> int:
    """Return bytes of the tables of each distinct rotary embedding, which layers share.

    The tables are cos and sin of dim / 2 angles for each of S positions, in the format of the activations; all
    sequences share them. A layer without rotary embedding has none.
    """
    rotary = dict.fromkeys(layer.attention.rotary for layer in _trained_kinds(spec, setup))
    width = setup.precision_recipe.activation_bytes
    return sum(2 * setup.micro_batch.length * (each.dim // 2) * width for each in rotary if each is not None)


def buffer_bytes(spec: ModelSpec, setup: Setup, *, sharded: bool = False) -> int:
    """Return bytes of all numbers that the optimiser does not update.

    A router's correction bias is one fp32 number per expert. The factor of a layer's output is one number in the format
    of the weights, which is fp32 where fully_shard keeps `sharded` fp32 weights for a step in mixed precision.
    """
    recipe = setup.precision_recipe
    width = CORRECTION_BIAS_BYTES if sharded and recipe.master_bytes else recipe.activation_bytes

    def of_layer(layer: LayerSpec) -> int:
        return CORRECTION_BIAS_BYTES * router_correction_bias(layer) + width * layer.output_scale

    main = sum(of_layer(layer) * count for layer, count in spec.layer_groups())
    return main + sum(map(of_layer, spec.mtp_layers if setup.mtp else ()))


def _trained_kinds(spec: ModelSpec, setup: Setup) -> Iterable[LayerSpec]:
    return (*(layer for layer, _ in spec.layer_groups()), *(spec.mtp_layers if setup.mtp else ()))


def _moments(of: Iterable[TrainedTensor], setup: Setup) -> int:
    return sum(_moments_of(tensor, setup) for tensor in of)


def _moments_of(tensor: TrainedTensor, setup: Setup) -> int:
    """Return the bytes of the moments of one tensor of n numbers, m of them bytes each by the precision recipe.

    - two moments (Kingma & Ba 2015, arXiv 1412.6980, algorithm 1): 2 m n; one momentum: m n;
    - in 8 bits (Dettmers et al. 2022, arXiv 2110.02861, §2.1): twice a byte a number and 4 bytes a block; small tensors
      twice 4 bytes a number;
    - rows and columns (Shazeer & Stern 2018, arXiv 1804.04235, algorithm 4): of each R x C matrix m (R + C); of a
      vector m n.
    """
    kind, of_each, shape = setup.optimizer_recipe.moments_of(tensor), setup.precision_recipe.moment_bytes, tensor.shape
    numel = 1
    for size in shape:
        numel *= size
    match kind:
        case "none":
            return 0
        case "one":
            return of_each * numel
        case "two":
            return of_each * numel + of_each * numel
        case "two_in_8_bits":
            blocks, rest = divmod(numel, BLOCK_IN_8_BITS)
            in_8_bits = numel + 4 * (blocks + (1 if rest else 0))
            return 2 * (4 * numel if numel < SMALLEST_IN_8_BITS else in_8_bits)
    if len(shape) == 1:
        return of_each * numel
    rows, columns = shape[-2:]
    return of_each * (numel // columns + numel // rows)


def _states(total: int, linear: int, moments: int, setup: Setup, frozen: int) -> ModelStates | None:
    if not states_measurable(setup.precision_recipe, setup.optimizer_recipe):
        return None
    return model_states(total, linear, moments, setup.precision_recipe, frozen=frozen)
