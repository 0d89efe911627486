"""Builds a config's model with transformers on the meta device, and finds its decoder layers and which are equal.

The whole model is built, which takes milliseconds per layer, because only transformers' code defines each layer.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from counting.via_transformers.quiet import quiet
from counting.via_transformers.reading.decoders import Decoder
from counting.via_transformers.structure import decoder_layers, refuse_surplus_experts, signature
from torch_models.errors import UserError
from torch_models.fields.known_fields import LAYER_DROP

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


class TextDecoder(nn.Module):
    """The text part of a model of several: its text model and its head, as one decoder."""

    base_model_prefix = "text_model"
    _keys_to_ignore_on_load_unexpected = None

    def __init__(self, whole: Any, text_model: Any) -> None:
        super().__init__()
        self.config = text_model.config
        self.text_model = text_model
        self.head = whole.get_output_embeddings()
        if self.head is None or self.text_model is whole:
            raise UserError(f"{type(whole).__name__} has no text model and head of its own")

    def get_input_embeddings(self) -> nn.Module:
        """The word embedding."""
        embedding: nn.Module = self.text_model.get_input_embeddings()
        return embedding

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        head: nn.Module = self.head
        return head

    def forward(self, **inputs: Any) -> Any:
        """Tokens (B, S) give logits (B, S, V)."""
        return self.head(self.text_model(**inputs)[0])


def load_code_of(decoder: Decoder) -> str:
    """Import the family's code and return transformers' version.

    The code imports torch's compiler, so it must be imported before `measuring` is entered.
    """
    with quiet():
        import transformers

        decoder.built_from.load()
    return transformers.__version__


def discover(decoder: Decoder, attention: str, dtype: torch.dtype = BUILT_DTYPE) -> Discovered:
    """Build a decoder in `dtype`, and find its layers. `attention` is a name in transformers' table.

    Its config is not changed. Raises `UserError` if the layers cannot be found or are not those of a decoder, and for
    experts that no token visits; any exception of transformers while it builds the model is passed on.
    """
    config = decoder.config
    model = _build(decoder, attention, dtype)
    refuse_surplus_experts(model)
    name, layers = decoder_layers(model, config.num_hidden_layers)
    if not layers:
        raise UserError("it has no decoder layers")
    kinds: Sequence[str | None] = kinds_of_layers(config) or [None] * len(layers)
    _refuse_encoder_layers(layers, config)
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


def kinds_of_layers(config: Any) -> list[str] | None:
    """The kind of each layer, as the config has it; None if it has none."""
    return getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None)


def _refuse_encoder_layers(layers: Iterable[nn.Module], config: Any) -> None:
    """Raise `UserError` for a layer whose attention is not causal; beside causal attention, it is to another model."""
    for layer in layers:
        causal = {module: module.is_causal for module in layer.modules() if hasattr(module, "is_causal")}
        if causal and not any(causal.values()):
            name = type(next(iter(causal))).__name__
            unless = " unless is_decoder is true" if getattr(config, "is_decoder", None) is False else ""
            raise UserError(
                f"its attention ({name}) sees later tokens: it is an encoder{unless}; only decoders are measured"
            )


def _build(decoder: Decoder, attention: str, dtype: torch.dtype) -> nn.Module:
    config = decoder.whole or decoder.config
    own_config = type(config).from_dict(config.to_dict())
    own_config.use_cache = False
    for rate in LAYER_DROP:
        if hasattr(own_config, rate):
            setattr(own_config, rate, 0.0)
    chosen: str | dict[str, str] = attention
    if decoder.whole:  # the other parts are not run
        parts = own_config.sub_configs.items()
        chosen = {"": "eager"} | {name: attention if part is type(decoder.config) else "eager" for name, part in parts}
    with torch.device("meta"):
        model: nn.Module = decoder.built_from.load()._from_config(own_config, dtype=dtype, attn_implementation=chosen)
    if model._can_set_experts_implementation():  # type: ignore[operator]
        model.set_experts_implementation("grouped_mm")  # type: ignore[operator]
    if decoder.whole:
        text_model: Any = model.get_decoder()  # type: ignore[operator]
        has_head = text_model.get_output_embeddings() is not None
        model = text_model if has_head else TextDecoder(model, text_model)
    for module in model.modules():
        if isinstance(module, nn.Conv1d) and module.groups != module.in_channels:
            raise UserError("a Conv1d of it multiplies several channels with each other, which is not counted")
    return model.eval()
