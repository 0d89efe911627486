"""Reads the config of a family without modules here with transformers: checked and completed, or refused in one line.

Nothing is downloaded and no remote code is run: only configuration classes of the installed transformers are used.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import msgspec

from counting.via_transformers.quiet import quiet
from counting.via_transformers.reading.decoders import (
    Decoder,
    decoder_class,
    decoder_of,
    one_line,
    take_text_part,
)
from counting.via_transformers.reading.fields import (
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
from counting.via_transformers.reading.positions import POSITION_FIELDS, position_field
from torch_models.errors import ConfigError, UserError, show_value
from torch_models.fields.config import FAMILIES, ForeignConfig, architectures_in, plain_name
from torch_models.fields.family_config import trained_length
from torch_models.fields.known_fields import FIXED_FIELDS, irrelevance
from torch_models.fields.text_part import HEAD, TextPart

EXTRA = "transformers"

_COMPRESSED_SPARSE = "compressed_sparse_attention"
# Layer kinds that are measured; any other kind is refused by name.
ATTENTION_KINDS = {
    "attention",
    "full_attention",
    "sliding_attention",
    "chunked_attention",
    "indexed_attention",
    _COMPRESSED_SPARSE,
    "heavily_compressed_attention",
    "global",
    "local",
}
STATE_KINDS = {"conv", "hybrid", "hybrid_sliding", "linear_attention", "mamba", "recurrent"}
FEED_FORWARD_KINDS = {"mlp", "moe"}  # of layers that have nothing else

# Names of published code whose files have other fields than those of transformers' own class.
OTHER_FORMS = {
    "minimax_text_01": "is not known; transformers has this model as minimax, with layer_types in place of "
    "attn_type_list: give the config.json of MiniMax-Text-01-hf",
}


class ForeignModel(msgspec.Struct, frozen=True, kw_only=True):
    """A config that transformers has read, with the data that the measurement needs."""

    name: str
    source: str  # the name of the config in errors
    model_type: str
    decoder: Decoder
    sequence_length: int | None
    sequence_length_source: str | None
    defaulted_fields: tuple[str, ...]  # "field = value" for each field with transformers' default
    notes: tuple[str, ...]  # about parts in the config that transformers does not build
    passed_over_fields: tuple[str, ...]  # "field = value (reason)" for each field that has no part in the model
    ignored_fields: tuple[str, ...]  # "field = value" for each field that the caller named as without influence
    switches: dict[str, bool]  # undeclared fields that say what the model is made of, to compare with it

    @property
    def config(self) -> Any:
        """The decoder's config, an instance of transformers' configuration class."""
        return self.decoder.config


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
        if model_type in OTHER_FORMS:
            raise ConfigError("model_type", model_type, OTHER_FORMS[model_type])
        if model_type not in config_classes:
            rule = f"is not known; must be one of {', '.join(FAMILIES)}, and transformers has no such family"
            raise ConfigError("model_type", model_type, rule)
        part = TextPart(foreign.fields)
        if foreign.text_only:
            with _rejections(foreign.source):
                part = take_text_part(part.fields, model_type, config_classes)
            model_type = part.fields.get("model_type", model_type)
        config_class = config_classes[model_type]
    fields = under_own_names(part.fields, config_class) | {"model_type": model_type}
    with quiet():
        built_from = decoder_class(model_type, config_class, fields, known)
    ignored = [own_name(field, config_class) for field in foreign.ignore_fields]
    fields, replaced = with_known_rope(fields)
    with quiet(), _rejections(foreign.source):
        config = config_class.from_dict(passed_on(fields, config_class, ignored))
    _refuse_other_mixers(model_type, config)
    whole_only = {HEAD} if built_from.whole else set()  # the head is the whole model's
    with quiet():
        found = check_fields(
            {field: value for field, value in fields.items() if field not in whole_only}, config, ignored
        )
    if vars(config).get("num_key_value_heads", 0) is None:  # the documented default, which not every class sets
        config.num_key_value_heads = config.num_attention_heads
    length, source = _sequence_length(fields, config)
    with quiet(), _rejections(foreign.source):
        decoder = decoder_of(built_from, config, fields)
    return ForeignModel(
        name=foreign.name,
        source=foreign.source,
        model_type=model_type,
        decoder=decoder,
        sequence_length=length,
        sequence_length_source=source,
        defaulted_fields=(*_defaulted(fields, decoder), *foreign.defaulted_fields, *part.defaulted),
        notes=(*_left_out(fields, config_class), *_counted_otherwise(config)),
        passed_over_fields=(*found.passed_over, *replaced, *foreign.passed_over_fields, *part.left_out),
        ignored_fields=found.ignored,
        switches=undeclared_switches(fields, config),
    )


@contextlib.contextmanager
def _rejections(source: str) -> Iterator[None]:
    """Context in which exceptions of transformers' own checks, which may be of any kind, become a `UserError`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{source}: transformers rejects the config: {one_line(error)}") from None


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
        if plain_name(architecture) in map(plain_name, named)
    }
    if len(found) != 1:
        names = f"may be {' or '.join(sorted(found))}" if found else "are no causal language model of transformers"
        raise ConfigError("architectures", named, f"{names}; give model_type, which is missing")
    return str(found.pop())


def _defaulted(fields: dict[str, Any], decoder: Decoder) -> Iterator[str]:
    """The family's own fields that are missing in the config, as "field = value" with transformers' default."""
    config = decoder.config
    own = declared_fields(type(config)) - declared_fields(type(config).__mro__[1])
    own |= {HEAD} if decoder.whole else set()
    for field in sorted(field for field in own - FIXED_FIELDS.keys() if not irrelevance(field)):
        value = value_of(field, (decoder.whole or config) if field == HEAD else config)
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


def _counted_otherwise(config: Any) -> Iterator[str]:
    """A note where all keys are counted and the model chooses some: DeepSeek-V4's compressed tokens."""
    if _COMPRESSED_SPARSE in (getattr(config, "layer_types", None) or ()):
        yield (
            "Compressed sparse attention counts the keys of all compressed tokens beside its window, not only those "
            f"that its indexer chooses (index_topk = {config.index_topk:,})."
        )


def _refuse_other_mixers(model_type: str, config: Any) -> None:
    kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None) or ()
    other = {str(kind) for kind in kinds} - ATTENTION_KINDS - STATE_KINDS - FEED_FORWARD_KINDS
    if other:
        rule = f"is made of layers whose kind is not known here: {', '.join(sorted(other))}"
        raise ConfigError("model_type", model_type, rule)


def _sequence_length(fields: dict[str, Any], config: Any) -> tuple[int | None, str | None]:
    """The sequence length to analyse, and the field that contains it; (None, None) if there is none."""
    own_name, default = position_field(config)
    length, source = trained_length(fields, [own_name, *POSITION_FIELDS, "seq_length"])
    if source is not None:
        return length, source
    return default, None if default is None else f"{own_name}, transformers' default"
