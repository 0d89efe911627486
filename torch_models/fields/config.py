"""Converts the fields of a config.json in Hugging Face's format to a `ModelSpec`, and checks all of them.

A family module has a `Config`, which defines its fields and their rules, and `model_spec(config, name)`. Any other
field falls under the rule of `unknown_fields.py`: it is passed over and listed, or refused, because it may change the
architecture.
"""

import importlib
import os
import pkgutil
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import msgspec

from torch_models import families
from torch_models.errors import ArgumentError, ConfigError, NotModelledError, UserError, show_value
from torch_models.fields.conversion import MISSING, as_json, checked, convert
from torch_models.fields.family_config import FamilyConfig, PlainConfig
from torch_models.fields.file import read_config
from torch_models.fields.known_fields import ACTIVATION_FIELDS, ALIASES, EXPERT_COUNTS
from torch_models.fields.rope import passed_over_in_rope, with_other_angles
from torch_models.fields.switches import check_layer_types, check_switches, is_switch, parts_of_spec
from torch_models.fields.text_part import TextPart, all_fields, extracted_text_part, merged_text_part
from torch_models.fields.unknown_fields import (
    AS_BUILT,
    SortedFields,
    common_reason,
    names_given,
    show_field,
    sort_fields,
    without_comments,
)
from torch_models.spec import (
    ModelSpec,
)

# Each family is one module, named as its model_type.
FAMILIES = tuple(sorted(module.name for module in pkgutil.iter_modules(families.__path__)))

CAUSAL_LM = "ForCausalLM"
CAUSAL_LM_CLASSES = (CAUSAL_LM, "LMHeadModel")  # endings of the names of classes of language models
NAME_OF_A_MAPPING = "config"  # the name of a model whose fields are given without a file


class ForeignConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A config whose family has no module here; its fields are unchecked and unchanged."""

    name: str
    source: str  # the file, or another name to show in errors
    model_type: str | None  # None: the field is missing, and the family follows from `architectures`
    fields: dict[str, Any]
    folder: str | None = None  # the folder of the config, if the config was given as one; it may have weights
    ignore_fields: tuple[str, ...] = ()  # names of fields that do not matter, although they are not understood
    text_only: bool = False  # of a model made of several, the text part is meant
    passed_over_fields: tuple[str, ...] = ()  # "field = value (reason)" for each field left out of the text part
    defaulted_fields: tuple[str, ...] = ()  # "field = value" for each field that the class of the whole model decides


class Family(Protocol):
    """The interface of a family module."""

    Config: type[PlainConfig]

    def model_spec(self, config: Any, name: str) -> ModelSpec:
        """Return the spec of a checked config."""


# A config: its path, the folder that contains it, its name in configs/, or its fields.
Source = str | os.PathLike[str] | Mapping[str, Any]


def read_spec(config: Source, *, ignore_fields: Sequence[str] = ()) -> ModelSpec:
    """Return the spec of a config: a path, a folder with a config.json, a name in `configs/`, or a mapping of fields.

    `ignore_fields` are names of fields that are not understood and do not matter. Raises `UserError` (a `ValueError`);
    the message names file, field, value and rule.
    """
    read = _read(config)
    names = names_given(ignore_fields)
    try:
        spec = spec_from_fields(read.fields, read.name, names)
    except ConfigError as error:
        raise read.located(error) from None
    return msgspec.structs.replace(spec, folder=read.folder)


def read_model(
    config: Source, *, text_only: bool = False, ignore_fields: Sequence[str] = ()
) -> ModelSpec | ForeignConfig:
    """Like `read_spec`, but return a `ForeignConfig` instead of raising an error if the family has no module here.

    With `text_only`, the model is the text decoder of a config of several models; of any other config it is the whole.
    A folder's weights are those of the whole, so that with `text_only` the model has no folder.
    """
    (model,) = read_models([config], text_only=text_only, ignore_fields=ignore_fields)
    return model


def read_models(
    configs: Sequence[Source], *, text_only: bool = False, ignore_fields: Sequence[str] = ()
) -> list[ModelSpec | ForeignConfig]:
    """Return the models of several configs, as `read_model` does of one.

    A name in `ignore_fields` must be a field of at least one config, and applies to those that have it.
    """
    names = names_given(ignore_fields)
    sources = [_read(config) for config in configs]
    present = [set(all_fields(source.fields)) for source in sources]
    for name in names:
        if not any(name in fields for fields in present):
            which = "the config has no" if len(sources) == 1 else "none of the configs has"
            raise ArgumentError("ignore_fields", name, f"{which} such field")
    models: list[ModelSpec | ForeignConfig] = []
    for source, fields in zip(sources, present, strict=True):
        try:
            ignored = [name for name in names if name in fields]
            model = model_from_fields(source.fields, source.name, ignored, text_only=text_only)
        except ConfigError as error:
            raise source.located(error) from None
        if isinstance(model, ForeignConfig) and source.file is not None:
            model = msgspec.structs.replace(model, source=source.file)
        models.append(msgspec.structs.replace(model, folder=None if text_only else source.folder))
    return models


class _Read(NamedTuple):
    """The fields of a config, with its name and, if they were read from one, its file and the folder given for it."""

    fields: dict[str, Any]
    name: str
    file: str | None = None
    folder: str | None = None

    def located(self, error: ConfigError) -> ConfigError:
        """Return the error with the file in its message."""
        return error if self.file is None else error.in_file(self.file)


def _read(config: Source) -> _Read:
    if isinstance(config, Mapping):
        for field in config:
            if not isinstance(field, str):
                raise UserError(f"a config's fields have names, but one is {show_value(field)}")
        return _Read(dict(config), NAME_OF_A_MAPPING)
    if not isinstance(config, str | os.PathLike):
        raise ArgumentError("config", config, "must be a path, a folder, a name in configs/, or a mapping of fields")
    file, fields = read_config(config)
    folder = os.fspath(config) if os.path.isdir(config) else None
    name = Path(file).stem.removesuffix("_config") if folder is None else Path(folder).resolve().name
    return _Read(fields, name, file, folder)


def model_from_fields(
    fields: dict[str, Any], name: str, ignore_fields: Sequence[str] = (), *, text_only: bool = False
) -> ModelSpec | ForeignConfig:
    """Return the spec of these fields, or a `ForeignConfig` with the fields if their family has no module here.

    A part of a model may also be a `ForeignConfig` of a family that has a module here: transformers leaves out its
    defaults when it saves a part, and only it knows those that decide shapes. Or a part of it has no module here.
    """
    whole = checked(fields)
    part = extracted_text_part(whole) if text_only else TextPart(merged_text_part(whole))
    fields = part.fields
    model_type, architectures = fields.get("model_type"), architectures_in(fields)
    if model_type is None:
        is_foreign = bool(architectures) and not any(map(_family_of, architectures))
    else:
        is_foreign = isinstance(model_type, str) and model_type not in FAMILIES
    is_part = text_only and fields is not whole
    if not is_foreign:
        model_type = model_type or next(map(_family_of, architectures), None)
        try:
            spec = spec_from_fields(dict(fields), name, ignore_fields)
            if not is_part or "num_key_value_heads = num_attention_heads" not in spec.defaulted_fields:
                return msgspec.structs.replace(
                    spec,
                    passed_over_fields=(*spec.passed_over_fields, *part.left_out),
                    defaulted_fields=(*spec.defaulted_fields, *part.defaulted),
                )
        except ConfigError as error:
            if not (isinstance(error, NotModelledError) or (is_part and error.rule == MISSING)):
                raise
    return ForeignConfig(
        name=name,
        source=name,
        model_type=model_type,
        fields=fields,
        text_only=text_only,
        ignore_fields=tuple(ignore_fields),
        passed_over_fields=part.left_out,
        defaulted_fields=part.defaulted,
    )


def spec_from_fields(fields: dict[str, Any], name: str, ignore_fields: Sequence[str] = ()) -> ModelSpec:
    """Return the spec of the fields of a config.json.

    Raises `ConfigError` for an unknown family, field or value, and `ArgumentError` for a name in `ignore_fields` that
    cannot be ignored. Errors and the source of the sequence length have the names of fields that the config has.
    """
    given = merged_text_part(checked(fields))
    counts = {alias: standard for standard in EXPERT_COUNTS for alias in EXPERT_COUNTS if alias != standard}
    names = {standard: alias for alias, standard in (ALIASES | counts).items() if alias in given}
    names = {standard: alias for standard, alias in names.items() if standard not in given}
    try:
        spec = _spec_of_fields(given, name, ignore_fields)
    except ConfigError as error:
        raise error.under(names) from None
    source = spec.sequence_length_source
    return msgspec.structs.replace(spec, sequence_length_source=source and names.get(source, source))


def _spec_of_fields(given: dict[str, Any], name: str, ignore_fields: Sequence[str]) -> ModelSpec:
    fields = _renamed(given, ALIASES)
    module = family(_model_type(fields))
    known = module.Config.__struct_fields__
    for expert_count in set(EXPERT_COUNTS) & set(known):
        fields = _renamed(fields, dict.fromkeys(set(EXPERT_COUNTS) - {expert_count}, expert_count))
    renamed = {field for field in given if field not in fields}
    in_file = fields | {field: given[field] for field in renamed}
    sorted_fields = _sorted(in_file, {*known, *renamed}, msgspec.structs.fields(module.Config), ignore_fields)
    fields = without_comments(fields)
    config = convert({field: fields[field] for field in known if field in fields}, module.Config)
    spec = module.model_spec(config, name)
    undeclared = {field: value for field, value in fields.items() if field not in {*known, *ignore_fields}}
    check_switches(undeclared, parts_of_spec(spec))
    check_layer_types(undeclared.get("layer_types"), spec)
    if isinstance(config, FamilyConfig):
        spec = with_other_angles(spec, undeclared, config.rope_theta or config.default_rope_theta)
    without_effect = dict(config.passed_over())
    declared = (
        f"{show_field(field, fields[field])} ({why})" for field, why in without_effect.items() if field in fields
    )
    defaults = _defaults(config, fields)
    return msgspec.structs.replace(
        spec,
        defaulted_fields=tuple(
            f"{field} = {shown}" for field, (_, shown) in defaults.items() if field not in without_effect
        ),
        passed_over_fields=(*sorted_fields.passed_over, *declared, *passed_over_in_rope(fields)),
        ignored_fields=sorted_fields.ignored,
        config_json=as_json(
            {field: value for field, value in fields.items() if field not in ignore_fields}
            | {field: value for field, (value, _) in defaults.items()}
        ),
    )


def _sorted(
    fields: Mapping[str, Any],
    known: set[str],
    declared: Sequence[msgspec.structs.FieldInfo],
    ignore_fields: Sequence[str],
) -> SortedFields:
    """Apply the rule of unknown fields to a native family; it knows the fields in `known`."""
    model_type = fields["model_type"]
    sizes = {field.name: field.default for field in declared if field.default is not msgspec.NODEFAULT} | {**fields}

    def reason(field: str, value: Any) -> str | None:
        compared = field == "layer_types" and isinstance(value, list) and bool(value)
        if compared or (is_switch(field, value) and field not in ACTIVATION_FIELDS):
            return AS_BUILT  # compared with the spec afterwards
        others = {name: size for name, size in sizes.items() if name != field}  # no field repeats itself
        return common_reason(field, value, fields, others)

    def refusal(field: str) -> str:
        return f"which {'are' if field.endswith(('bias', 'norm')) else 'is'} not modelled for {model_type}"

    return sort_fields(
        fields,
        known.__contains__,
        reason=reason,
        refusal=refusal,
        of_a_family=part_of_a_family,
        declared={field.name: sizes.get(field.name) for field in declared},
        ignore_fields=ignore_fields,
    )


def _defaults(config: PlainConfig, fields: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    """Return the value of each field that is not in the config and takes the family's default, also as it is shown."""
    values = {field: getattr(config, field) for field in config.__struct_fields__ if field not in fields}
    defaults = {field: (value, show_value(value)) for field, value in values.items() if value is not None}
    return defaults | config.standard_values()


def family(model_type: str) -> Family:
    """Return the family module of `model_type`, which must be one of `FAMILIES`."""
    return cast(Family, importlib.import_module(f"{families.__name__}.{model_type}"))


def part_of_a_family(field: str) -> str | None:
    """Return in words which family here declares the field, or None. Imports all families, so only for errors."""
    declaring = (name for name in FAMILIES if field in family(name).Config.__struct_fields__)
    return next((f"a part of {name}" for name in declaring), None)


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
        if not (plain_name(name).endswith(tuple(map(plain_name, CAUSAL_LM_CLASSES))) and alike):
            raise ConfigError("architectures", name, f"is not a language model of model_type {model_type}")
    return model_type


def architectures_in(fields: dict[str, Any]) -> list[str]:
    """Return the class names in `architectures`; an empty list if the field is missing or not a list."""
    names = fields.get("architectures")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _family_of(architecture: str) -> str | None:
    """Return the family of an architecture, such as qwen3_moe for Qwen3MoeForCausalLM; None if there is none.

    The class of a text part is named without "text": Gemma3ForCausalLM for gemma3_text.
    """
    name = plain_name(architecture)
    named = ((each, each.removesuffix("_text") + ending) for each in FAMILIES for ending in CAUSAL_LM_CLASSES)
    return next((each for each, class_name in named if plain_name(class_name) == name), None)


def plain_name(name: str) -> str:
    """Return a name of a class or family without case, underscores and hyphens, in which published names differ."""
    return re.sub("[_-]", "", name).lower()
