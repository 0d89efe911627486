"""The rotary fields of a config.json, in the old form (`rope_theta`, `rope_scaling`) or the new (`rope_parameters`)."""

from typing import Any

import msgspec

from torch_models.errors import ConfigError, show_value
from torch_models.fields.config import FamilyConfig, convert
from torch_models.spec import (
    LinearRopeScaling,
    Llama3RopeScaling,
    RopeScaling,
    RotarySpec,
    Share,
    Theta,
    YarnRopeScaling,
)

SCALINGS: dict[str, type[RopeScaling]] = {
    "linear": LinearRopeScaling,
    "llama3": Llama3RopeScaling,
    "yarn": YarnRopeScaling,
}
DEFAULT = "default"


PARTIAL = "partial_rotary_factor"


def rotary_share(config: FamilyConfig, default: float) -> float:
    """Return the rotated share of a head's channels; the field may be nested in `rope_parameters`."""
    share = getattr(config, PARTIAL)
    inner = (config.rope_parameters or config.rope_scaling or {}).get(PARTIAL)
    if inner is not None:
        inner = convert({PARTIAL: inner}, _PartialField).partial_rotary_factor
    if None not in (share, inner) and share != inner:
        raise ConfigError(PARTIAL, share, f"rope_parameters.{PARTIAL} is {inner}")
    given: float | None = inner if share is None else share
    return default if given is None else given


class _PartialField(msgspec.Struct):
    partial_rotary_factor: Share


class _ThetaField(msgspec.Struct):
    rope_theta: Theta


def rotary_spec(config: FamilyConfig, dim: int, *, size: str = "head_dim", **options: bool) -> RotarySpec:
    """Return the spec of the rotary embedding over `dim` channels.

    `size` is the name of `dim` in error messages; `options` are further fields of the spec. Raises `ConfigError`.
    """
    if dim < 2 or dim % 2:
        raise ConfigError(size, dim, "the rotated channels of a head must be even in number")
    if config.rope_parameters and config.rope_scaling and config.rope_parameters != config.rope_scaling:
        rule = f"is another name of rope_parameters, which is {show_value(config.rope_parameters)}"
        raise ConfigError("rope_scaling", config.rope_scaling, rule)
    field = "rope_parameters" if config.rope_parameters else "rope_scaling"
    fields: dict[str, Any] = dict(getattr(config, field) or {})
    theta = _theta(config, fields.pop("rope_theta", None))
    if PARTIAL in config.__struct_fields__:
        fields.pop(PARTIAL, None)  # `dim` already includes it
    rope_type = _agreed(field, fields, "rope_type", "type") or DEFAULT
    return RotarySpec(dim=dim, theta=theta, scaling=_scaling(rope_type, fields, field), **options)


def _scaling(rope_type: object, fields: dict[str, Any], field: str) -> RopeScaling | None:
    if rope_type == DEFAULT:
        for unknown, value in fields.items():
            raise ConfigError(f"{field}.{unknown}", value, "is not understood beside the default rope_type")
        return None
    if not isinstance(rope_type, str) or rope_type not in SCALINGS:
        known = ", ".join((DEFAULT, *SCALINGS))
        raise ConfigError(f"{field}.rope_type", rope_type, f"is not known; must be one of {known}")
    try:
        return convert(fields, SCALINGS[rope_type])
    except ConfigError as error:
        raise ConfigError(f"{field}.{error.field}", error.value, error.rule) from None


def _theta(config: FamilyConfig, inner: object) -> float:
    if inner is None:
        return config.default_rope_theta if config.rope_theta is None else config.rope_theta
    theta = convert({"rope_theta": inner}, _ThetaField).rope_theta
    if config.rope_theta not in (None, theta):
        raise ConfigError("rope_theta", config.rope_theta, f"rope_parameters.rope_theta is {theta}")
    return theta


def _agreed(field: str, fields: dict[str, Any], name: str, alias: str) -> object:
    """Remove `name` and `alias` from `fields` and return their value; both may be present if they agree."""
    value, other = fields.pop(name, None), fields.pop(alias, None)
    if None not in (value, other) and value != other:
        raise ConfigError(f"{field}.{alias}", other, f"is another name of {name}, which is {value}")
    return other if value is None else value
