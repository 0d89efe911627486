"""The rotary fields of a config.json, in their old form (`rope_theta`, `rope_scaling`) and new (`rope_parameters`)."""

from typing import Any

import msgspec

from torch_models.config import FamilyConfig, Positive, SequenceLength, Theta, convert
from torch_models.errors import ConfigError
from torch_models.spec import LinearRopeScaling, Llama3RopeScaling, RopeScaling, RotarySpec, YarnRopeScaling

KNOWN_TYPES = ("default", "linear", "llama3", "yarn")


class _LinearFields(msgspec.Struct, forbid_unknown_fields=True):
    factor: Positive


class _Llama3Fields(msgspec.Struct, forbid_unknown_fields=True):
    factor: Positive
    low_freq_factor: Positive
    high_freq_factor: Positive
    original_max_position_embeddings: SequenceLength


class _YarnFields(msgspec.Struct, forbid_unknown_fields=True):
    factor: Positive
    original_max_position_embeddings: SequenceLength
    beta_fast: Positive = 32.0
    beta_slow: Positive = 1.0
    mscale: Positive | None = None
    mscale_all_dim: Positive | None = None
    attention_factor: Positive | None = None
    truncate: bool = True


class _ThetaField(msgspec.Struct):
    rope_theta: Theta


def rotary_spec(config: FamilyConfig, dim: int, interleaved: bool = False) -> RotarySpec:
    """The rotary embedding over `dim` channels that the config's fields describe."""
    field = "rope_parameters" if config.rope_parameters is not None else "rope_scaling"
    fields: dict[str, Any] = dict(getattr(config, field) or {})
    theta = _theta(config, fields.pop("rope_theta", None))
    rope_type = _agreed(field, fields, "rope_type", "type") or "default"
    if rope_type not in KNOWN_TYPES:
        raise ConfigError(f"{field}.rope_type", rope_type, f"is not known; must be one of {', '.join(KNOWN_TYPES)}")
    if rope_type == "default" and fields:
        unknown = next(iter(fields))
        raise ConfigError(f"{field}.{unknown}", fields[unknown], "is not understood beside the default rope_type")
    return RotarySpec(
        dim=dim, theta=theta, scaling=_scaling(str(rope_type), fields, f"{field}."), interleaved=interleaved
    )


def _scaling(rope_type: str, fields: dict[str, Any], prefix: str) -> RopeScaling | None:
    try:
        if rope_type == "linear":
            return LinearRopeScaling(factor=convert(fields, _LinearFields, prefix).factor)
        if rope_type == "llama3":
            return Llama3RopeScaling(**msgspec.structs.asdict(convert(fields, _Llama3Fields, prefix)))
        if rope_type == "yarn":
            return YarnRopeScaling(**msgspec.structs.asdict(convert(fields, _YarnFields, prefix)))
    except ConfigError as error:
        field = error.field if error.field.startswith(prefix) else prefix + error.field
        raise ConfigError(field, error.value, error.rule) from None
    return None


def _theta(config: FamilyConfig, inner: object) -> float:
    if inner is None:
        return 10000.0 if config.rope_theta is None else config.rope_theta
    theta = convert({"rope_theta": inner}, _ThetaField, "rope_parameters.").rope_theta
    if config.rope_theta not in (None, theta):
        raise ConfigError("rope_theta", config.rope_theta, f"rope_parameters.rope_theta is {theta}")
    return theta


def _agreed(field: str, fields: dict[str, Any], name: str, alias: str) -> object:
    """The value under `name` or `alias`, taken out of `fields`; both may stand there if they agree."""
    value, other = fields.pop(name, None), fields.pop(alias, None)
    if None not in (value, other) and value != other:
        raise ConfigError(f"{field}.{alias}", other, f"is another name of {name}, which is {value}")
    return other if value is None else value
