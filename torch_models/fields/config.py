"""Converts the fields of a config.json in Hugging Face's format to a `ModelSpec`, and checks all of them.

A family module has a `Config`, which defines its fields and their rules, and `model_spec(config, name)`. Fields that
have no influence are listed in `known_fields.py` with the reason. Any other field raises an error, because an unknown
field may change the architecture.
"""

import difflib
import importlib
import os
import pkgutil
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar, cast, get_args, get_type_hints

import msgspec

from torch_models import families
from torch_models.errors import ConfigError, UserError, show_value
from torch_models.fields.file import read_config
from torch_models.fields.known_fields import ALIASES, EXPERT_COUNTS, FIXED_FIELDS, IRRELEVANT_FIELDS
from torch_models.fields.sequence_length import trained_length
from torch_models.fields.stored_names import SEPARATE_EXPERTS, StoredName
from torch_models.fields.text_part import text_part, without_other_modalities
from torch_models.spec import (
    Activation,
    Epsilon,
    Heads,
    Layers,
    LayerSpec,
    ModelSpec,
    SequenceLength,
    Theta,
    Vocabulary,
    Width,
    runs_of,
)

# Each family is one module, named as its model_type.
FAMILIES = tuple(sorted(module.name for module in pkgutil.iter_modules(families.__path__)))

CAUSAL_LM = "ForCausalLM"
MISSING = "is missing and has no default"
NAME_OF_A_MAPPING = "config"  # the name of a model whose fields are given without a file


class FamilyConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Fields that every family has; each family defines a subclass with its own fields, rules and defaults."""

    default_rope_theta: ClassVar[float] = 10_000.0
    stored_names: ClassVar[tuple[StoredName, ...]] = SEPARATE_EXPERTS  # names in checkpoints that differ from ours

    model_type: str
    vocab_size: Vocabulary
    hidden_size: Width
    intermediate_size: Width
    num_hidden_layers: Layers
    num_attention_heads: Heads
    num_key_value_heads: Heads | None = None
    head_dim: Width | None = None
    max_sequence_length: SequenceLength | None = None
    max_position_embeddings: SequenceLength | None = None
    rms_norm_eps: Epsilon = 1e-6
    tie_word_embeddings: bool = False
    hidden_act: Activation = "silu"
    attention_bias: bool = False
    attention_dropout: float | None = 0.0
    rope_theta: Theta | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.attention_dropout:
            raise ConfigError("attention_dropout", self.attention_dropout, "must be 0: dropout is not modelled")

    def model_spec(
        self, name: str, layers: Iterable[LayerSpec], mtp_layers: Iterable[LayerSpec] = (), **options: Any
    ) -> ModelSpec:
        """Return the spec with these layers and the fields that all families share; `options` are further fields."""
        length, source = trained_length(msgspec.structs.asdict(self), ["max_position_embeddings"])
        return ModelSpec(
            name=name,
            model_type=self.model_type,
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            layer_runs=runs_of(layers),
            norm_eps=self.rms_norm_eps,
            tie_word_embeddings=self.tie_word_embeddings,
            sequence_length=length,
            sequence_length_source=source,
            mtp_layers=tuple(mtp_layers),
            **options,
        )


class ForeignConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A config whose family has no module here; its fields are unchecked and unchanged."""

    name: str
    source: str  # the file, or another name to show in errors
    model_type: str | None  # None: the field is missing, and the family follows from `architectures`
    fields: dict[str, Any]
    text_only: bool = False  # of a model made of several, the text part is meant


class Family(Protocol):
    """The interface of a family module."""

    Config: type[FamilyConfig]

    def model_spec(self, config: Any, name: str) -> ModelSpec:
        """Return the spec of a checked config."""


Source = str | os.PathLike[str] | Mapping[str, Any]  # a config: its path, its name in configs/, or its fields


def read_spec(config: Source) -> ModelSpec:
    """Return the spec of a config, given as a path, the name of a file in `configs/`, or a mapping of its fields.

    Raises `UserError` (a `ValueError`); the message names file, field, value and rule.
    """
    return _read(config, spec_from_fields)


def read_model(config: Source, *, text_only: bool = False) -> ModelSpec | ForeignConfig:
    """Like `read_spec`, but return a `ForeignConfig` instead of raising an error if the family has no module here.

    With `text_only`, the model is the text decoder of a config of several models; of any other config it is the whole.
    """
    model = _read(config, partial(model_from_fields, text_only=text_only))
    if isinstance(model, ForeignConfig) and not isinstance(config, Mapping):
        return msgspec.structs.replace(model, source=os.fspath(config))
    return model


R = TypeVar("R")


def _read(config: Source, parse: Callable[[dict[str, Any], str], R]) -> R:
    if isinstance(config, Mapping):
        for field in config:
            if not isinstance(field, str):
                raise UserError(f"a config's fields have names, but one is {show_value(field)}")
        return parse(dict(config), NAME_OF_A_MAPPING)
    file, fields = read_config(config)
    try:
        return parse(fields, Path(file).stem.removesuffix("_config"))
    except ConfigError as error:
        raise error.in_file(file) from None


def model_from_fields(fields: dict[str, Any], name: str, *, text_only: bool = False) -> ModelSpec | ForeignConfig:
    """Return the spec of these fields, or a `ForeignConfig` with the fields if their family has no module here.

    A part of a model may also be a `ForeignConfig` of a family that has a module here: transformers leaves out its
    defaults when it saves a part, and only transformers knows those that decide shapes.
    """
    whole, fields = fields, text_part(fields, text_only=text_only)
    model_type, architectures = fields.get("model_type"), architectures_in(fields)
    if model_type is None:
        is_foreign = bool(architectures) and not any(map(_family_of, architectures))
    else:
        is_foreign = isinstance(model_type, str) and model_type not in FAMILIES
    is_part = text_only and fields is not whole
    if not is_foreign:
        fields = without_other_modalities(fields) if is_part else fields
        model_type = model_type or next(map(_family_of, architectures), None)
        try:
            spec = spec_from_fields(dict(fields), name)
            if not is_part or fields.get("num_key_value_heads") is not None:
                return spec
        except ConfigError as error:
            if not (is_part and error.rule == MISSING):
                raise
    return ForeignConfig(name=name, source=name, model_type=model_type, fields=fields, text_only=text_only)


def spec_from_fields(fields: dict[str, Any], name: str) -> ModelSpec:
    """Return the spec of the fields of a config.json; raise `ConfigError` for an unknown family, field or value."""
    fields = _renamed(text_part(fields, text_only=False), ALIASES)
    module = family(_model_type(fields))
    known = module.Config.__struct_fields__
    for expert_count in set(EXPERT_COUNTS) & set(known):
        fields = _renamed(fields, dict.fromkeys(set(EXPERT_COUNTS) - {expert_count}, expert_count))
    for field, value in fields.items():
        if field in FIXED_FIELDS:
            if value is not None and value != FIXED_FIELDS[field]:
                raise ConfigError(field, value, f"must be {show_value(FIXED_FIELDS[field])}: nothing else is modelled")
        elif field not in known and field not in IRRELEVANT_FIELDS and value is not None:
            raise ConfigError(field, value, _unknown_field_rule(field, known))
    config = convert({field: fields[field] for field in known if field in fields}, module.Config)
    spec = module.model_spec(config, name)
    return msgspec.structs.replace(spec, defaulted_fields=tuple(_defaulted(config, fields)))


def _defaulted(config: FamilyConfig, fields: Mapping[str, Any]) -> Iterator[str]:
    """Yield "field = value" for each field that is not in the config and takes the family's default."""
    for field in config.__struct_fields__:
        value = getattr(config, field)
        if field not in fields and value is not None:
            yield f"{field} = {show_value(value)}"
    if config.num_key_value_heads is None:
        yield "num_key_value_heads = num_attention_heads"
    if config.rope_theta is None and "rope_theta" not in (config.rope_parameters or {}):
        yield f"rope_theta = {config.default_rope_theta}"


def family(model_type: str) -> Family:
    """Return the family module of `model_type`, which must be one of `FAMILIES`."""
    return cast(Family, importlib.import_module(f"{families.__name__}.{model_type}"))


S = TypeVar("S", bound=msgspec.Struct)


def convert(fields: dict[str, Any], struct: type[S]) -> S:
    """Convert `fields` to a `struct`; raise a `ConfigError` that names field and rule if that fails."""
    try:
        return msgspec.convert(fields, struct)
    except UnicodeEncodeError as error:  # a lone surrogate: valid in JSON, but not in a text
        field = next(f for f, value in fields.items() if isinstance(value, str) and value == error.object)
        raise ConfigError(field, fields[field], "is not valid text") from None
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, ConfigError):  # raised by a struct's own check
            raise error.__cause__ from None
        raise _as_config_error(str(error), fields, struct) from None


def _renamed(fields: dict[str, Any], aliases: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields under their standard names; alias and standard name may both be present if they agree."""
    renamed = dict(fields)
    for alias, standard in aliases.items():
        if alias not in renamed:
            continue
        value = renamed.pop(alias)
        if standard in renamed and renamed[standard] != value:
            raise ConfigError(alias, value, f"is another name of {standard}, which is {show_value(renamed[standard])}")
        renamed[standard] = value
    return renamed


def _model_type(fields: dict[str, Any]) -> str:
    """Return the family's name; if `model_type` is missing, set it in `fields` from `architectures`.

    Raises `ConfigError` if the family is unknown, or if the two fields disagree.
    """
    model_type, named = fields.get("model_type"), architectures_in(fields)
    of_names = {_family_of(name) for name in named}
    if model_type is None:
        if len(of_names) != 1 or None in of_names:
            raise ConfigError("model_type", model_type, f"is missing: it names the family, as {', '.join(FAMILIES)}")
        (model_type,) = of_names
        fields["model_type"] = model_type
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ConfigError("model_type", model_type, f"is not known; must be one of {', '.join(FAMILIES)}")
    for name in named:
        of_name = _family_of(name)
        alike = of_name in (None, model_type) or issubclass(family(model_type).Config, family(of_name).Config)
        if not (plain_name(name).endswith(plain_name(CAUSAL_LM)) and alike):
            raise ConfigError("architectures", name, f"is not a language model of model_type {model_type}")
    return model_type


def architectures_in(fields: dict[str, Any]) -> list[str]:
    """Return the class names in `architectures`; an empty list if the field is missing or not a list."""
    names = fields.get("architectures")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _family_of(architecture: str) -> str | None:
    """Return the family of an architecture, such as qwen3_moe for Qwen3MoeForCausalLM; None if there is none."""
    name = plain_name(architecture)
    return next((family for family in FAMILIES if plain_name(f"{family}{CAUSAL_LM}") == name), None)


def plain_name(name: str) -> str:
    """Return a name of a class or family without case, underscores and hyphens, in which published names differ."""
    return re.sub("[_-]", "", name).lower()


def _unknown_field_rule(field: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(field, known, n=1, cutoff=0.8)
    hint = f"; did you mean {close[0]}?" if close else "; if it does not change the architecture, remove it"
    return f"this field is not understood{hint}"


def _as_config_error(message: str, fields: dict[str, Any], struct: type[msgspec.Struct]) -> ConfigError:
    """Convert msgspec's message "<rule> - at `$.<path>`" to a `ConfigError` with field, value and rule."""
    rule, _, path = message.partition(" - at `$.")
    if rule.startswith("Object missing required field"):
        return ConfigError(rule.split("`")[1], None, MISSING)
    if rule.startswith("Object contains unknown field"):
        field = rule.split("`")[1]
        return ConfigError(field, fields.get(field), "this field is not understood")
    keys = path.rstrip("`").split(".")
    value: Any = fields
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    if rule.startswith("Invalid enum value"):
        allowed = get_args(get_type_hints(struct).get(keys[-1]))
        rule = f"must be {' or '.join(map(show_value, allowed))}"
    rule = rule.replace("`", "").replace("Expected ", "must be ").replace(", got", ", is")
    return ConfigError(".".join(keys), value, rule)
