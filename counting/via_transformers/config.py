"""Reads the config of a family without modules here with transformers: checked and completed, or refused in one line.

Nothing is downloaded and no remote code is run: only configuration classes of the installed transformers are used.
"""

from collections.abc import Iterator
from typing import Any

import msgspec

from counting.via_transformers.fields import (
    MTP_FIELDS,
    check_fields,
    declared_fields,
    own_name,
    passed_on,
    undeclared_switches,
    under_own_names,
    value_of,
    with_known_rope,
)
from counting.via_transformers.quiet import quiet
from counting.via_transformers.refusals import no_count_of, one_line
from torch_models.errors import ConfigError, UserError, show_value
from torch_models.fields.config import FAMILIES, ForeignConfig, architectures_in
from torch_models.fields.known_fields import FIXED_FIELDS, irrelevance
from torch_models.fields.sequence_length import trained_length

EXTRA = "transformers"

# Layer kinds that are measured; any other kind is refused by name.
ATTENTION_KINDS = {
    "attention",
    "full_attention",
    "sliding_attention",
    "chunked_attention",
    "indexed_attention",
    "global",
    "local",
}
STATE_KINDS = {"conv", "hybrid", "hybrid_sliding", "linear_attention", "mamba", "recurrent"}


class ForeignModel(msgspec.Struct, frozen=True, kw_only=True):
    """A config that transformers has read, with the data that the measurement needs."""

    name: str
    source: str  # the name of the config in errors
    model_type: str
    config: Any  # an instance of transformers' configuration class
    sequence_length: int | None
    sequence_length_source: str | None
    defaulted_fields: tuple[str, ...]  # "field = value" for each field with transformers' default
    notes: tuple[str, ...]  # about parts in the config that transformers does not build
    passed_over_fields: tuple[str, ...]  # "field = value (reason)" for each field that has no part in the model
    ignored_fields: tuple[str, ...]  # "field = value" for each field that the caller named as without influence
    switches: dict[str, bool]  # undeclared fields that say what the model is made of, to compare with it


def read_foreign(foreign: ForeignConfig) -> ForeignModel:
    """The config as read by transformers.

    Raises `UserError` if transformers is not installed, does not have the family or rejects a value, if a field is
    unknown, or if the model is not a text decoder.
    """
    try:
        return _read(foreign)
    except ConfigError as error:
        raise error.in_file(foreign.source) from None


def _read(foreign: ForeignConfig) -> ForeignModel:
    with quiet():
        known, config_classes = _what_transformers_knows(foreign)
        model_type = foreign.model_type or _model_type(foreign, known, config_classes)
        if model_type not in config_classes:
            rule = f"is not known; must be one of {', '.join(FAMILIES)}, and transformers has no such family"
            raise ConfigError("model_type", model_type, rule)
        config_class = config_classes[model_type]
    fields = under_own_names(foreign.fields, config_class) | {"model_type": model_type}
    _refuse_other_models(model_type, config_class, fields, known)
    ignored = [own_name(field, config_class) for field in foreign.ignore_fields]
    fields, replaced = with_known_rope(fields)
    with quiet():
        try:
            config = config_class.from_dict(passed_on(fields, config_class, ignored))
        except Exception as error:  # transformers' own checks may raise any exception
            raise UserError(f"{foreign.source}: transformers rejects the config: {one_line(error)}") from None
    _refuse_other_mixers(model_type, config)
    with quiet():
        found = check_fields(fields, config, ignored)
    if vars(config).get("num_key_value_heads", 0) is None:  # the documented default, which not every class sets
        config.num_key_value_heads = config.num_attention_heads
    length, source = _sequence_length(fields, config)
    return ForeignModel(
        name=foreign.name,
        source=foreign.source,
        model_type=model_type,
        config=config,
        sequence_length=length,
        sequence_length_source=source,
        defaulted_fields=tuple(_defaulted(fields, config)),
        notes=tuple(_left_out(fields, config_class)),
        passed_over_fields=(*found.passed_over, *replaced),
        ignored_fields=found.ignored,
        switches=undeclared_switches(fields, config),
    )


def _what_transformers_knows(foreign: ForeignConfig) -> tuple[Any, Any]:
    """transformers' tables of models and of configurations; raises `ConfigError` if it is not installed."""
    try:
        from transformers.models.auto import modeling_auto
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    except ImportError:
        field = "model_type" if foreign.model_type else "architectures"
        rule = (
            f"is not known here; must be one of {', '.join(FAMILIES)}, or a family of transformers, which is not "
            f"installed: pip install 'model-training-cost-analysis[{EXTRA}]'"
        )
        raise ConfigError(field, foreign.fields.get(field), rule) from None
    return modeling_auto, CONFIG_MAPPING


def _model_type(foreign: ForeignConfig, known: Any, config_classes: Any) -> str:
    """The family of a config without `model_type`, found by its `architectures`."""
    named = architectures_in(foreign.fields)
    found = {
        config_classes[model_type].model_type  # several names may share one configuration
        for model_type, architecture in known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()
        if architecture in named
    }
    if len(found) != 1:
        names = f"may be {' or '.join(sorted(found))}" if found else "are no causal language model of transformers"
        raise ConfigError("architectures", named, f"{names}; give model_type, which is missing")
    return str(found.pop())


def _defaulted(fields: dict[str, Any], config: Any) -> Iterator[str]:
    """The family's own fields that are missing in the config, as "field = value" with transformers' default."""
    own = declared_fields(type(config)) - declared_fields(type(config).__mro__[1])
    for field in sorted(field for field in own - FIXED_FIELDS.keys() if not irrelevance(field)):
        value = value_of(field, config)
        if fields.get(field) is None and value is not None:
            yield f"{field} = {show_value(value)}"


def _left_out(fields: dict[str, Any], config_class: Any) -> Iterator[str]:
    """A note for each part of published checkpoints that transformers does not build: multi-token prediction."""
    declared = declared_fields(config_class)
    given = ", ".join(
        f"{field} = {show_value(value)}"
        for field, value in fields.items()
        if value and MTP_FIELDS.fullmatch(field) and field not in declared
    )
    if given:
        yield f"Multi-token prediction ({given}) is not counted: transformers does not build it with the model."


def _refuse_other_models(model_type: str, config_class: Any, fields: dict[str, Any], known: Any) -> None:
    """Refuse a model that is not a text decoder, by the declarations of its configuration class."""
    if fields.get("is_encoder_decoder", getattr(config_class, "is_encoder_decoder", False)):
        raise ConfigError("model_type", model_type, "has an encoder beside its decoder; only decoders are measured")
    parts = ", ".join(
        name
        for name, part in config_class.sub_configs.items()
        if getattr(part, "model_type", None) in (None, *known.MODEL_MAPPING_NAMES)  # None: a model of any family
    )
    if parts:
        rule = f"is made of several models ({parts}); only text decoders are measured: give its text_config alone"
        raise ConfigError("model_type", model_type, rule)
    if model_type not in known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ConfigError("model_type", model_type, "transformers has no causal language model of this family")
    fills_gaps = model_type in known.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if fills_gaps and not fields.get("is_decoder", getattr(config_class, "is_decoder", True)):
        raise ConfigError(
            "model_type", model_type, "is an encoder unless is_decoder is true; only decoders are measured"
        )
    expected = known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]
    for architecture in architectures_in(fields):
        if architecture != expected:
            rule = f"is not what model_type {model_type} is measured as, which is {expected}"
            raise ConfigError("architectures", architecture, rule)


def _refuse_other_mixers(model_type: str, config: Any) -> None:
    kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None) or ()
    other = {str(kind) for kind in kinds} - ATTENTION_KINDS
    with_state = ", ".join(sorted(other & STATE_KINDS))
    if with_state:
        from counting.via_transformers.elementwise_share import share_of_elementwise_steps

        share = share_of_elementwise_steps(config)
        raise ConfigError("model_type", model_type, f"{no_count_of(f'its {with_state} layers')}; {share}")
    if other:
        rule = f"is made of layers whose kind is not known here: {', '.join(sorted(other))}"
        raise ConfigError("model_type", model_type, rule)


def _sequence_length(fields: dict[str, Any], config: Any) -> tuple[int | None, str | None]:
    """The sequence length to analyse, and the field that contains it; (None, None) if there is none."""
    standard = "max_position_embeddings"
    own_name = config.attribute_map.get(standard, standard)
    length, source = trained_length(fields, [own_name, standard, "seq_length"])
    if source is not None:
        return length, source
    default = getattr(config, standard, None)
    return default, None if default is None else f"{own_name}, transformers' default"
