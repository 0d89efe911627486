"""The fields that families have in common. A family's module defines a subclass, with its own fields and rules."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import msgspec

from torch_models.fields.stored_names import IRRELEVANT_TENSORS, SEPARATE_EXPERTS, StoredName
from torch_models.spec import (
    DEFAULT_INITIALIZER_RANGE,
    Activation,
    Epsilon,
    Heads,
    InitializerRange,
    Layers,
    LayerSpec,
    ModelSpec,
    SequenceLength,
    Theta,
    Vocabulary,
    Width,
    runs_of,
)

ORIGINAL = "original_max_position_embeddings"
NO_ROPE = "no_rope"


class PlainConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Fields that every family has."""

    stored_names: ClassVar[tuple[StoredName, ...]] = SEPARATE_EXPERTS  # names in checkpoints that differ from ours
    irrelevant_tensors: ClassVar[Mapping[str, str]] = IRRELEVANT_TENSORS  # endings of names -> why they are no weights
    architecture: ClassVar[str | None] = None  # the class in transformers, if the family's name does not give it

    model_type: str
    vocab_size: Vocabulary
    hidden_size: Width
    num_hidden_layers: Layers
    num_attention_heads: Heads
    max_sequence_length: SequenceLength | None = None
    max_position_embeddings: SequenceLength | None = None
    tie_word_embeddings: bool = False
    initializer_range: InitializerRange | None = None  # None: DEFAULT_INITIALIZER_RANGE

    def passed_over(self) -> Iterator[tuple[str, str]]:
        """Yield each field that the family declares and that has no effect with these values, with the reason."""
        yield from ()

    def standard_values(self) -> dict[str, tuple[Any, str]]:
        """Return the value of each field that is None and has one by another field, also as it is shown."""
        return {}

    def spec_of_model(
        self,
        name: str,
        layers: Iterable[LayerSpec],
        norm_eps: float,
        mtp_layers: Iterable[LayerSpec] = (),
        **options: Any,
    ) -> ModelSpec:
        """Return the spec with these layers and the fields that all families share; `options` are further fields."""
        length, source = trained_length(msgspec.structs.asdict(self), ["max_position_embeddings"])
        return ModelSpec(
            name=name,
            model_type=self.model_type,
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            layer_runs=runs_of(_marked(layers)),
            norm_eps=norm_eps,
            tie_word_embeddings=self.tie_word_embeddings,
            sequence_length=length,
            sequence_length_source=source,
            mtp_layers=tuple(mtp_layers),
            initializer_range=(DEFAULT_INITIALIZER_RANGE if self.initializer_range is None else self.initializer_range),
            **options,
        )


class FamilyConfig(PlainConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Fields that every family with RMSNorm, gated MLPs and rotary positions has, that is nearly every family."""

    default_rope_theta: ClassVar[float] = 10_000.0

    intermediate_size: Width
    num_key_value_heads: Heads | None = None
    head_dim: Width | None = None
    rms_norm_eps: Epsilon = 1e-6
    hidden_act: Activation = "silu"
    attention_bias: bool = False
    original_max_position_embeddings: SequenceLength | None = None
    rope_theta: Theta | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None

    def standard_values(self) -> dict[str, tuple[Any, str]]:
        """Return the number of key/value heads and theta where other fields or the family decide them."""
        found: dict[str, tuple[Any, str]] = {}
        if self.num_key_value_heads is None:
            found["num_key_value_heads"] = self.num_attention_heads, "num_attention_heads"
        if self.rope_theta is None and "rope_theta" not in str(self.rope_parameters or self.rope_scaling):
            found["rope_theta"] = self.default_rope_theta, f"{self.default_rope_theta}"
        return found

    def model_spec(
        self, name: str, layers: Iterable[LayerSpec], mtp_layers: Iterable[LayerSpec] = (), **options: Any
    ) -> ModelSpec:
        """Return the spec with these layers and the fields that all families share; `options` are further fields."""
        return self.spec_of_model(name, layers, self.rms_norm_eps, mtp_layers, **options)


def _marked(layers: Iterable[LayerSpec]) -> list[LayerSpec]:
    """Return the layers; where some rotate queries and keys, those that do not are marked ``no_rope``."""
    given = list(layers)
    if not any(layer.attention.rotary for layer in given):
        return given
    return [layer if layer.attention.rotary else msgspec.structs.replace(layer, mark=NO_ROPE) for layer in given]


def trained_length(fields: Mapping[str, Any], positions: Sequence[str]) -> tuple[Any, str | None]:
    """Return the length and the name of its field, or (None, None) if no field has it. Values are not checked.

    The first of these fields that is present is used: `max_sequence_length`; `original_max_position_embeddings` at any
    depth, for models whose positions were stretched after pre-training; the fields in `positions`, the family's names
    for the maximum length.
    """
    named = {"max_sequence_length": fields.get("max_sequence_length")}
    named |= dict(_originals(fields))
    named |= {field: fields.get(field) for field in positions}
    return next(((value, field) for field, value in named.items() if value is not None), (None, None))


def _originals(fields: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the path and value of the field at the top level, then at any depth within the rotary fields."""
    if ORIGINAL in fields:
        yield f"{path}{ORIGINAL}", fields[ORIGINAL]
    for field, inner in fields.items():
        if isinstance(inner, Mapping) and (path or field.startswith("rope")):
            yield from _originals(inner, f"{path}{field}.")
