"""Finds the structure of a model from transformers: its layers, which of them are equal, each part's component.

Parts are recognised by type, shape and what they computed, never by their names, but for the decay of a state. A part
that is not recognised is `other`.
"""

from collections.abc import Collection, Iterable
from typing import Any

from torch import nn

from counting.via_transformers.reading.positions import is_position_table
from torch_models.errors import UserError

_INDEX = {"layer_idx", "layer_id", "layer_number", "layer_index"}
DECAYS = {"A_log", "recurrent_param", "time_decay"}  # parameters of a state along the sequence, in all families
# Components whose matrices fp8 recipes quantise; head and router are not quantised.
QUANTISED = ("attention", "mlp", "routed_experts", "shared_experts")
_PLAIN = (bool, int, float, str, type(None))


def decoder_layers(model: nn.Module, count: int) -> tuple[str, nn.ModuleList]:
    """The name of the list of `count` modules with parameters that is in no other such list, and the list.

    Raises `UserError` unless there is exactly one.
    """
    found: list[tuple[str, nn.ModuleList]] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer, _ in found)
        if inside or not isinstance(module, nn.ModuleList) or len(module) != count:
            continue
        if all(any(True for _ in item.parameters()) for item in module):
            found.append((name, module))
    if len(found) != 1:
        raise UserError(f"{type(model).__name__} has {len(found)} lists of {count} layers; it must have one")
    return found[0]


def signature(layer: nn.Module, kind: str | None) -> tuple[Any, ...]:
    """A key that is equal for equal layers: types, plain attributes and parameter shapes of all their modules.

    The layer's number is not included. `kind` is the layer's type in the config.
    """
    parts: list[Any] = [kind]
    for name, module in layer.named_modules():
        attributes = tuple(
            (key, value)
            for key, value in sorted(vars(module).items())
            if not key.startswith("_") and key not in _INDEX and isinstance(value, _PLAIN)
        )
        weights = tuple((key, tuple(weight.shape)) for key, weight in module.named_parameters(recurse=False))
        parts.append((name, type(module), attributes, weights))
    return tuple(parts)


def is_part(module: nn.Module) -> bool:
    """Whether a module has no submodules, or parameters of its own and submodules without any."""
    inner = list(module.children())
    own = next(module.parameters(recurse=False), None) is not None
    return not inner or (own and not any(True for child in inner for _ in child.parameters()))


def is_norm(module: nn.Module) -> bool:
    """Whether a module has no submodules, an epsilon, and weights of one shape, as LayerNorm and RMSNorm have."""
    own = list(module.parameters(recurse=False))
    epsilon = any(isinstance(getattr(module, name, None), float) for name in ("eps", "variance_epsilon", "epsilon"))
    leaf = next(module.children(), None) is None
    return bool(own) and leaf and epsilon and len({weight.shape for weight in own}) == 1


def experts_in(layer: nn.Module) -> dict[str, nn.Module]:
    """The modules that own stacked weights, (experts, in, out), by name; none if the layer is dense.

    Matrices of the blocks of a width, as of a gate, are no experts: all tokens visit all of them.
    """
    return {
        name: module
        for name, module in layer.named_modules()
        if not isinstance(module, nn.Conv1d)
        and not carries_state(module)
        and any(weight.dim() == 3 and not _is_vector(weight) for weight in module.parameters(recurse=False))
    }


def _is_vector(weight: nn.Parameter) -> bool:
    """Whether a weight has one dimension of more than one number, the last, as (1, 1, channels)."""
    return weight.numel() == weight.shape[-1]


def carries_state(module: nn.Module) -> bool:
    """Whether a module owns the decay of a state along the sequence, which only its name tells from a weight."""
    return any(name in DECAYS for name, _ in module.named_parameters(recurse=False))


def block_matrices(layer: nn.Module) -> list[tuple[int, ...]]:
    """The shapes (blocks, out, in) of stacked weights that are no experts: each block of a width has a matrix."""
    grouped = [
        (groups, module.out_features // groups, module.in_features)
        for module in layer.modules()
        if isinstance(module, nn.Linear) and isinstance(groups := getattr(module, "n_groups", None), int)
    ]
    return grouped + [
        tuple(weight.shape)
        for module in layer.modules()
        if carries_state(module)
        for name, weight in module.named_parameters(recurse=False)
        if weight.dim() == 3 and name not in DECAYS
    ]


def refuse_surplus_experts(model: nn.Module) -> None:
    """Raise `UserError` where a module has more of one matrix than of another: no token visits the experts beyond."""
    for experts in experts_in(model).values():
        sizes = {name: weight.shape[0] for name, weight in experts.named_parameters(recurse=False) if weight.dim() == 3}
        most, fewest = max(sizes, key=lambda name: sizes[name]), min(sizes.values())
        if sizes[most] != fewest:
            raise UserError(
                f"transformers allocates {sizes[most]:,} experts in {most} of {type(experts).__name__}, where the "
                f"model has {fewest:,}: its parameters are not the model's"
            )


def number_of_experts(experts: nn.Module) -> int:
    """The first size of its stacked weights. Raises `UserError` unless it is the same for all of them."""
    sizes = {weight.shape[0] for weight in experts.parameters(recurse=False) if weight.dim() == 3}
    if len(sizes) != 1:
        raise UserError(f"{type(experts).__name__} stacks weights of {sorted(sizes)} experts; there must be one number")
    return int(sizes.pop())


def matrix_weights(layer: nn.Module) -> int:
    """Weights in the matrices of attention and feed-forward of a labelled layer, without routers and biases.

    A module's matrices are its own parameters with the most dimensions, at least two: stacked biases have one
    dimension fewer than stacked weights, (experts, in, out).
    """
    total = 0
    for module in layer.modules():
        own = [] if isinstance(module, nn.Conv1d) else _matrices_of(module)
        dimensions = max((weight.dim() for weight in own), default=0)
        if dimensions >= 2 and module.component in QUANTISED:
            total += sum(weight.numel() for weight in own if weight.dim() == dimensions)
    return total


def _matrices_of(module: nn.Module) -> list[nn.Parameter]:
    """A module's own parameters, without decays of a state, which no product takes."""
    return [
        weight
        for name, weight in module.named_parameters(recurse=False)
        if name not in DECAYS and not _is_vector(weight)
    ]


def label_layer(layer: nn.Module, mixers: Collection[str]) -> None:
    """Set the `component` of each part of a layer; `mixers` are the names of parts with attention's core or a scan."""
    _label(layer, "other")
    for name, child in layer.named_children():
        if name in mixers:
            _label(child, "attention")
        elif any(weight.dim() == 2 for weight in child.parameters()):
            _label(child, "mlp")
    for name, experts in experts_in(layer).items():
        parent = layer.get_submodule(name.rpartition(".")[0])
        total = number_of_experts(experts)
        for sibling in parent.children():
            if sibling is experts:
                _label(sibling, "routed_experts")
            elif _gives_one_number_each(sibling, total):
                _label(sibling, "router")
            elif parent is not layer:
                _label(sibling, "shared_experts")
    for name in indexers_in(layer):
        _label(layer.get_submodule(name), "indexer")
    _label_norms(layer)


def _gives_one_number_each(module: nn.Module, experts: int) -> bool:
    """Whether a module's last matrix gives a number for each expert; a feed-forward may be as wide inside."""
    matrices = [tuple(weight.shape) for weight in module.parameters() if weight.dim() == 2]
    goes_on = len(matrices) > 1 and any(inner == experts for _, inner in matrices)
    return not goes_on and any(outer == experts for outer, _ in matrices)


def chosen_by(module: nn.Module) -> int | None:
    """How many keys an indexer chooses for each query; None if a module is no indexer.

    All families keep the number in the attribute `index_topk` of the module whose scores choose.
    """
    most = getattr(module, "index_topk", None)
    return most if isinstance(most, int) else None


def indexers_in(layer: nn.Module) -> list[str]:
    """The names of the modules of a layer that choose keys, through which no gradient passes."""
    return [name for name, module in layer.named_modules() if chosen_by(module) is not None]


def label_outside(model: nn.Module, layers: Iterable[nn.Module], positions: int | None) -> None:
    """Set the `component` of each module outside the layers; `positions` is the number of rows of a position table."""
    inside = {module for layer in layers for module in layer.modules()}
    words, head = model.get_input_embeddings(), model.get_output_embeddings()  # type: ignore[operator]
    for module in model.modules():
        if module in inside:
            continue
        _set(module, "other")
        if module is words:
            _set(module, "word_embedding")
        elif module is head:
            _set(module, "lm_head")
        elif is_norm(module):
            _set(module, "norm")
        elif is_position_table(module, positions):
            _set(module, "positional_embedding")


def _label(root: nn.Module, component: str) -> None:
    for module in root.modules():
        _set(module, component)


def _label_norms(root: nn.Module) -> None:
    for module in root.modules():
        if is_norm(module):
            _set(module, "norm")


def _set(module: nn.Module, component: str) -> None:
    module.component = component  # type: ignore[assignment]
