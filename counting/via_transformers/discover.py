"""Builds a config's model with transformers on the meta device, and finds its decoder layers and which are equal.

The whole model is built, which takes milliseconds per layer, because only transformers' code defines each layer.
"""

from typing import Any, NamedTuple

import torch
from torch import nn

from counting.via_transformers.quiet import quiet
from counting.via_transformers.refusals import no_count_of
from counting.via_transformers.structure import decoder_layers, signature
from torch_models.errors import UserError

BUILT_DTYPE = torch.bfloat16


class LayerGroup(NamedTuple):
    """Layers that compute the same; only the first one is run."""

    first: int  # index of the first one among all layers
    layer: nn.Module  # the first one
    number: int  # how many layers are in the group
    kind: str | None  # the config's layer type, such as "sliding_attention"; None if there is none or full attention


class Discovered(NamedTuple):
    """A model that transformers built, and its decoder layers."""

    model: nn.Module
    layers_name: str  # name of the list of layers within the model
    layers: tuple[nn.Module, ...]
    groups: tuple[LayerGroup, ...]  # in the order of their first layers
    first_alike: tuple[int, ...]  # for each layer, the index of the first one that computes the same


def load_code_of(config: Any) -> str:
    """Import the family's code and return transformers' version.

    The code imports torch's compiler, so it must be imported before `measuring` is entered.
    """
    with quiet():
        import transformers

        transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]  # a lazy table: the look-up imports
    return transformers.__version__


def discover(config: Any, attention: str) -> Discovered:
    """Build the model of a transformers config, and find its layers. `attention` is a name in transformers' table.

    `config` is not changed. Raises `UserError` if the layers cannot be found or keep a state from token to token; any
    exception of transformers while it builds the model is passed on.
    """
    model = _build(config, attention)
    name, layers = decoder_layers(model, config.num_hidden_layers)
    if not layers:
        raise UserError("it has no decoder layers")
    kinds = getattr(config, "layer_types", None) or [None] * len(layers)
    first: dict[tuple[Any, ...], int] = {}
    first_alike = tuple(
        first.setdefault(signature(layer, kind), index)
        for index, (layer, kind) in enumerate(zip(layers, kinds, strict=True))
    )
    return Discovered(
        model=model,
        layers_name=name,
        layers=tuple(layers),
        groups=tuple(
            LayerGroup(
                first=index,
                layer=layers[index],
                number=first_alike.count(index),
                kind=None if kinds[index] in (None, "full_attention") else str(kinds[index]),
            )
            for index in first.values()
        ),
        first_alike=first_alike,
    )


def _build(config: Any, attention: str) -> nn.Module:
    from transformers import AutoModelForCausalLM

    own_config = type(config).from_dict(config.to_dict())
    own_config.use_cache = False
    with torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            own_config, dtype=BUILT_DTYPE, attn_implementation=attention, trust_remote_code=False
        )
    if model._can_set_experts_implementation():  # type: ignore[operator]
        model.set_experts_implementation("grouped_mm")  # type: ignore[operator]
    for module in model.modules():
        if isinstance(module, nn.Conv1d):
            raise UserError(no_count_of(f"{type(module).__name__} and what follows it"))
    return model.eval()
