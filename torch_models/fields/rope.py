"""The rotary fields of a config.json, in the old form (`rope_theta`, `rope_scaling`) or the new (`rope_parameters`).

The new form may have one entry for each kind of layer. Angles change no count, so a `rope_type` that is not known here
is accepted; the modules of such a spec are measured, but say that they do not run.
"""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import msgspec

from torch_models.errors import ConfigError, show_value
from torch_models.fields.conversion import convert
from torch_models.fields.family_config import FamilyConfig
from torch_models.fields.known_fields import COUNT_FREE_FIELDS, TURNING
from torch_models.fields.unknown_fields import is_off, show_field
from torch_models.rope_scaling import (
    DynamicRopeScaling,
    LinearRopeScaling,
    Llama3RopeScaling,
    LongRopeScaling,
    ProportionalRopeScaling,
    RopeScaling,
    UnknownRopeScaling,
    YarnRopeScaling,
)
from torch_models.spec import LayerSpec, ModelSpec, RotarySpec, Share, Theta

SCALINGS: dict[str, type[RopeScaling]] = {
    "linear": LinearRopeScaling,
    "dynamic": DynamicRopeScaling,
    "llama3": Llama3RopeScaling,
    "yarn": YarnRopeScaling,
    "longrope": LongRopeScaling,
    "proportional": ProportionalRopeScaling,
}
DEFAULT = "default"
# Other names of types. With mrope a text has the same position in every section, which is the default.
OTHER_NAMES = {"su": "longrope", "mrope": DEFAULT}
TYPE_NAMES = ("rope_type", "type")
PARTIAL = "partial_rotary_factor"
LOCAL_THETA = "rope_local_base_freq"
ORIGINAL = "original_max_position_embeddings"
ZERO_IS_NONE = ("mscale", "mscale_all_dim", "beta_fast", "beta_slow")
UNKNOWN_TYPE = "is not known here: its angles change no count, and the model does not run"
# Fields that ask for no other angles with these values: a text has the same position in every section of mrope.
NEUTRAL_ANGLES: dict[str, tuple[object, ...]] = {"use_mrope": (True,), "rope_ratio": (1,), "rope_mscale": (1,)}
KEYS_OF_LAYERS = ("full_attention", "sliding_attention", "chunked_attention")


class LocalRotaryConfig(FamilyConfig, frozen=True, kw_only=True):
    """The fields of a family whose local layers have a rotary base of their own, unless `rope_parameters` has it.

    `rope_theta`, and a scaling that names no kind of layers, are those of the global layers. A family may declare
    `rope_local_base_freq` for the others.
    """

    default_local_rope_theta: ClassVar[float]


def rope_fields(config: FamilyConfig, layer_type: str = KEYS_OF_LAYERS[0]) -> tuple[str, dict[str, Any]]:
    """Return the name of the field with the rotary parameters, and the parameters of one kind of layers."""
    if config.rope_parameters and config.rope_scaling and config.rope_parameters != config.rope_scaling:
        rule = f"is another name of rope_parameters, which is {show_value(config.rope_parameters)}"
        raise ConfigError("rope_scaling", config.rope_scaling, rule)
    field = "rope_parameters" if config.rope_parameters else "rope_scaling"
    fields: dict[str, Any] = getattr(config, field) or {}
    if not by_layer(fields):
        is_local = isinstance(config, LocalRotaryConfig) and layer_type != KEYS_OF_LAYERS[0]
        return field, {} if is_local else dict(fields)
    entry = fields.get(layer_type, {} if isinstance(config, LocalRotaryConfig) else None)
    if not isinstance(entry, dict):
        raise ConfigError(f"{field}.{layer_type}", entry, "must be an object: the model has such layers")
    return f"{field}.{layer_type}", dict(entry)


def by_layer(fields: Mapping[str, Any]) -> bool:
    """Whether the rotary parameters have an entry for each kind of layer."""
    return any(key in KEYS_OF_LAYERS for key in fields)


def rotary_share(config: FamilyConfig, default: float) -> float:
    """Return the rotated share of a head's channels; the field may be nested in `rope_parameters`."""
    share = getattr(config, PARTIAL)
    inner = rope_fields(config)[1].get(PARTIAL)
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


def rotary_spec(
    config: FamilyConfig, dim: int, *, size: str = "head_dim", layer_type: str = KEYS_OF_LAYERS[0], **options: bool
) -> RotarySpec:
    """Return the spec of the rotary embedding over `dim` channels, in layers of `layer_type`.

    `size` is the name of `dim` in error messages; `options` are further fields of the spec. Raises `ConfigError`.
    """
    if dim < 2 or dim % 2:
        raise ConfigError(size, dim, "the rotated channels of a head must be even in number")
    field, fields = rope_fields(config, layer_type)
    theta = _theta(config, fields.pop("rope_theta", None), layer_type)
    rope_type = _agreed(field, fields, *TYPE_NAMES)
    if not isinstance(rope_type, str | None):
        raise ConfigError(f"{field}.rope_type", rope_type, "must be the name of a type")
    rope_type = OTHER_NAMES.get(rope_type or DEFAULT, rope_type or DEFAULT)
    share = fields.get(PARTIAL)
    if rope_type != "proportional" and PARTIAL not in config.__struct_fields__ and share not in (None, 1):
        rule = f"describes rotation of a part of each head, which is not modelled for {config.model_type}"
        raise ConfigError(f"{field}.{PARTIAL}", share, rule)  # where it is declared, `dim` already includes it
    return RotarySpec(dim=dim, theta=theta, scaling=_scaling(rope_type, fields, field, config, dim), **options)


def passed_over_in_rope(fields: Mapping[str, Any]) -> Iterator[str]:
    """Yield "field = value (reason)" for each rotary key that nothing here reads, and for each unknown type."""
    read = {"rope_theta", PARTIAL, *TYPE_NAMES}.union(*(kind.__struct_fields__ for kind in SCALINGS.values()))
    for field in ("rope_scaling", "rope_parameters"):
        given = fields.get(field)
        if isinstance(given, Mapping):
            entries = given if by_layer(given) else {"": given}
            for layer_type, entry in entries.items():
                path = f"{field}.{layer_type}" if layer_type else field
                for key, value in entry.items() if isinstance(entry, Mapping) else ():
                    if key not in read:
                        yield f"{show_field(f'{path}.{key}', value)} (changes no count)"
                    elif (
                        key in TYPE_NAMES and isinstance(value, str) and value not in (DEFAULT, *SCALINGS, *OTHER_NAMES)
                    ):
                        yield f"{show_field(f'{path}.{key}', value)} ({UNKNOWN_TYPE})"


def with_other_angles(spec: ModelSpec, undeclared: Mapping[str, Any], theta: float | None) -> ModelSpec:
    """Return the spec, or one that does not run if fields that the family does not declare ask for other angles.

    `theta` is the base that the family reads. The counts are the same.
    """
    name = next((field for field, value in undeclared.items() if _asks_for_other_angles(field, value, theta)), None)
    if name is None:
        return spec
    unknown = UnknownRopeScaling(name=name)

    def changed(layer: LayerSpec) -> LayerSpec:
        if layer.attention.rotary is None:
            return layer
        rotary = msgspec.structs.replace(layer.attention.rotary, scaling=unknown)
        return msgspec.structs.replace(layer, attention=msgspec.structs.replace(layer.attention, rotary=rotary))

    runs = tuple(msgspec.structs.replace(run, layer=changed(run.layer)) for run in spec.layer_runs)
    return msgspec.structs.replace(spec, layer_runs=runs, mtp_layers=tuple(map(changed, spec.mtp_layers)))


def _asks_for_other_angles(field: str, value: Any, theta: float | None) -> bool:
    if COUNT_FREE_FIELDS.get(field) != TURNING or is_off(value):
        return False
    return value not in (*NEUTRAL_ANGLES.get(field, ()), theta, DEFAULT)


def _scaling(rope_type: str, fields: dict[str, Any], field: str, config: FamilyConfig, dim: int) -> RopeScaling | None:
    if rope_type == DEFAULT:
        return None
    if rope_type not in SCALINGS:
        return UnknownRopeScaling(name=rope_type)
    struct = SCALINGS[rope_type]
    given = {
        key: value
        for key, value in fields.items()
        if key in struct.__struct_fields__ and value is not None and not (key in ZERO_IS_NONE and value == 0)
    }
    given |= {key: value for key, value in _lengths(struct, given, config).items() if key not in given}
    try:
        scaling = convert(given, struct)
    except ConfigError as error:
        raise ConfigError(f"{field}.{error.field}", error.value, error.rule) from None
    if isinstance(scaling, LongRopeScaling):
        for key in ("short_factor", "long_factor"):
            if len(getattr(scaling, key)) != dim // 2:
                rule = f"must have {dim // 2} numbers, one for each pair of rotated channels"
                raise ConfigError(f"{field}.{key}", len(getattr(scaling, key)), rule)
    return scaling


def _lengths(struct: type[RopeScaling], given: Mapping[str, Any], config: FamilyConfig) -> dict[str, Any]:
    """Return the lengths that a scaling takes from other fields of the config, where it does not have its own."""
    longest = config.max_position_embeddings
    if struct is DynamicRopeScaling:
        if longest is None:
            raise ConfigError("max_position_embeddings", None, "is missing: dynamic scaling begins beyond it")
        return {"max_position_embeddings": longest}
    if ORIGINAL not in struct.__struct_fields__:
        return {}
    original = given.get(ORIGINAL, config.original_max_position_embeddings or longest)
    found = {} if original is None else {ORIGINAL: original}
    if struct in (YarnRopeScaling, LongRopeScaling) and longest is not None and isinstance(original, int) and original:
        found["factor"] = longest / original
    return found


def _theta(config: FamilyConfig, inner: object, layer_type: str) -> float:
    field, default = "rope_theta", config.default_rope_theta
    if isinstance(config, LocalRotaryConfig) and layer_type != KEYS_OF_LAYERS[0]:
        field, default = LOCAL_THETA, config.default_local_rope_theta
    given: float | None = getattr(config, field, None)
    if inner is None:
        return default if given is None else given
    theta = convert({"rope_theta": inner}, _ThetaField).rope_theta
    if given not in (None, theta):
        raise ConfigError(field, given, f"rope_parameters.rope_theta is {theta}")
    return theta


def _agreed(field: str, fields: dict[str, Any], name: str, alias: str) -> object:
    """Remove `name` and `alias` from `fields` and return their value; both may be present if they agree."""
    value, other = fields.pop(name, None), fields.pop(alias, None)
    if None not in (value, other) and value != other:
        if OTHER_NAMES.get(str(value), value) == OTHER_NAMES.get(str(other), other):
            return value
        raise ConfigError(f"{field}.{alias}", other, f"is another name of {name}, which is {value}")
    return other if value is None else value
