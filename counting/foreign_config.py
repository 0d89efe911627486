"""A config of a family without a module here, read by transformers: checked, completed, or refused in one line.

Nothing is downloaded and no remote code is run: the configuration class is one that the installed transformers has.
"""

import contextlib
import dataclasses
import difflib
import io
import logging
import os
import warnings
from collections.abc import Iterator
from typing import Any

import msgspec

from torch_models.config import ALIASES, FAMILIES, FIXED_FIELDS, IRRELEVANT_FIELDS, ForeignConfig
from torch_models.errors import ConfigError, UserError, show_value

EXTRA = "transformers"

_ROTARY = "turns keys and queries, which multiplies no matrices"
_REPEATED = "repeats another field"
_KERNEL = "chooses a kernel, not a product"
_OLD_CODE = "only the family's first code read it"

# Fields of published configs that no class of transformers declares and that change no count; with the reason.
IRRELEVANT_FOREIGN_FIELDS = {
    "n_ctx": _REPEATED,
    "seq_length": _REPEATED,
    "max_sequence_length": "is the sequence length that is analysed",
    "rope_theta": _ROTARY,
    "rope_scaling": _ROTARY,
    "rope_local_base_freq": _ROTARY,
    "rotary_emb_base": _ROTARY,
    "rotary_pct": _ROTARY,
    "partial_rotary_factor": _ROTARY,
    "attention_softmax_in_fp32": _KERNEL,
    "bias_dropout_fusion": _KERNEL,
    "masked_softmax_fusion": _KERNEL,
    "skip_bias_add": _KERNEL,
    "skip_bias_add_qkv": _KERNEL,
    "offset_alibi": _OLD_CODE,
    "activation_function": "multiplies no matrices",
    "unk_token_id": "names a token, not a size",
}

# Undeclared switches of published configs, with the one value that says what transformers builds anyway.
FIXED_FOREIGN_FIELDS: dict[str, object] = {
    "_remove_final_layer_norm": False,
    "activation_dropout": 0.0,
    "apply_residual_connection_post_layernorm": False,
    "attention_bias": False,
    "mlp_type": "default",
    "norm_type": "layer_norm",
}

# What a layer may do with its tokens; any other kind (state spaces, linear attention) is refused by name.
ATTENTION_KINDS = {
    "attention",
    "full_attention",
    "sliding_attention",
    "chunked_attention",
    "indexed_attention",
    "global",
    "local",
}


class ForeignModel(msgspec.Struct, frozen=True, kw_only=True):
    """What the measurement needs to know of a config that transformers has read."""

    name: str
    source: str  # what errors name
    model_type: str
    config: Any  # of transformers' class
    sequence_length: int | None
    sequence_length_source: str | None
    defaulted_fields: tuple[str, ...]  # "field = value" for what the config left to transformers


def read_foreign(foreign: ForeignConfig) -> ForeignModel:
    """The config as transformers understands it.

    Raises `UserError` where transformers is missing, does not know the family or rejects a value; where a field is
    not understood; and where the model is no text decoder.
    """
    try:
        return _read(foreign)
    except ConfigError as error:
        raise error.in_file(foreign.source) from None


def _read(foreign: ForeignConfig) -> ForeignModel:
    native = ", ".join(FAMILIES)
    model_type = foreign.model_type
    with quiet():
        try:
            from transformers.models.auto import modeling_auto as known
            from transformers.models.auto.configuration_auto import CONFIG_MAPPING
        except ImportError:
            raise ConfigError(
                "model_type",
                model_type,
                f"is not known here; must be one of {native}, or a family of transformers, which is not "
                f"installed: pip install 'model-training-cost-analysis[{EXTRA}]'",
            ) from None
        if model_type not in CONFIG_MAPPING:
            raise ConfigError(
                "model_type", model_type, f"is not known; must be one of {native}, and transformers has no such family"
            )
        config_class = CONFIG_MAPPING[model_type]
    _refuse_contradictions(
        foreign.fields, ALIASES | {own: standard for standard, own in config_class.attribute_map.items()}
    )
    fields = {ALIASES.get(field, field): value for field, value in foreign.fields.items()}
    _refuse_contradictions(fields, config_class.attribute_map)
    _refuse_other_models(model_type, config_class, fields, known)
    passed_on = {f: v for f, v in fields.items() if f not in ("torch_dtype", "quantization_config")}
    with quiet():
        try:
            config = config_class.from_dict(passed_on)
        except Exception as error:  # transformers' own checks raise whatever they like
            raise UserError(f"{foreign.source}: transformers rejects the config: {one_line(error)}") from None
    declared = _check_fields(fields, config)
    _refuse_other_mixers(model_type, config)
    length, source = _sequence_length(fields, config)
    return ForeignModel(
        name=foreign.name,
        source=foreign.source,
        model_type=model_type,
        config=config,
        sequence_length=length,
        sequence_length_source=source,
        defaulted_fields=tuple(
            f"{field} = {show_value(getattr(config, field, None))}"
            for field in sorted(declared - fields.keys() - IRRELEVANT_FIELDS.keys() - FIXED_FIELDS.keys())
            if getattr(config, field, None) is not None
            and not {alias for alias, standard in config_class.attribute_map.items() if standard == field} & set(fields)
        ),
    )


def _refuse_contradictions(fields: dict[str, Any], aliases: dict[str, str]) -> None:
    """A field under two names must have one value."""
    for alias, standard in aliases.items():
        if alias in fields and standard in fields and fields[alias] != fields[standard]:
            raise ConfigError(alias, fields[alias], f"is another name of {standard}, which is {fields[standard]}")


def _refuse_other_models(model_type: str, config_class: Any, fields: dict[str, Any], known: Any) -> None:
    """Refuse what is no text decoder, by what its class declares."""
    if fields.get("auto_map"):
        rule = "points to remote code, which is never run; without the field, transformers' own class is measured"
        raise ConfigError("auto_map", fields["auto_map"], rule)
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


def _check_fields(fields: dict[str, Any], config: Any) -> set[str]:
    """The fields of the family's own that change a model; refuses one that transformers passed over.

    What a class takes without declaring it, such as an older name, it uses up; what it does not know, it keeps.
    """
    config_class = type(config)
    base = {field.name for field in dataclasses.fields(config_class.__mro__[1])}
    declared = {field.name for field in dataclasses.fields(config_class)}
    known = (
        {"model_type"}
        | declared
        | set(config_class.attribute_map)
        | IRRELEVANT_FIELDS.keys()
        | IRRELEVANT_FOREIGN_FIELDS.keys()
    )
    for field, value in fields.items():
        if field in FIXED_FIELDS and field != "is_decoder" and value != FIXED_FIELDS[field]:
            raise ConfigError(field, value, f"must be {show_value(FIXED_FIELDS[field])}: only decoders are measured")
        fixed = FIXED_FIELDS | FIXED_FOREIGN_FIELDS
        harmless = value is None or field in known or (field in fixed and value == fixed[field])
        if not harmless and hasattr(config, field):
            close = difflib.get_close_matches(field, declared, n=1, cutoff=0.8)
            hint = f"did you mean {close[0]}?" if close else "if it does not change the architecture, remove it"
            rule = f"transformers' {config_class.__name__} has no such field; {hint}"
            raise ConfigError(field, value, rule)
    return declared - base


def _refuse_other_mixers(model_type: str, config: Any) -> None:
    kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None) or ()
    other = sorted({str(kind) for kind in kinds} - ATTENTION_KINDS)
    if other:
        and_so_on = ", ".join(other)
        from counting.foreign_share import share_of_elementwise_steps

        with quiet():
            share = share_of_elementwise_steps(config)
        raise ConfigError("model_type", model_type, f"{no_count_of(f'its {and_so_on} layers')}; {share}")


def no_count_of(mixer: str) -> str:
    """Why layers that keep a state are refused."""
    return (
        f"{mixer} carry a state from token to token, which transformers' reference code computes in part by "
        "elementwise steps: a count of matrix products would leave that out, so none is given"
    )


def _sequence_length(fields: dict[str, Any], config: Any) -> tuple[int | None, str | None]:
    """The length to analyse and where it stands; checked like the one a user gives."""
    standard = "max_position_embeddings"
    own_name = config.attribute_map.get(standard, standard)
    for field in ("max_sequence_length", own_name, standard, "seq_length"):
        if fields.get(field) is not None:
            return fields[field], field
    default = getattr(config, standard, None)
    return default, None if default is None else f"{own_name}, transformers' default"


def one_line(error: BaseException, longest: int = 300) -> str:
    """An error of transformers on one line that fits."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= longest else text[: longest - 1] + "…"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing that transformers says reaches the user's terminal, and it asks no server anything."""
    logger = logging.getLogger("transformers")
    before, disabled = os.environ.get("HF_HUB_OFFLINE"), logger.disabled
    level = logging.root.manager.disable
    os.environ["HF_HUB_OFFLINE"] = "1"
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        logger.disabled = disabled
        if before is None:
            os.environ.pop("HF_HUB_OFFLINE", None)
        else:
            os.environ["HF_HUB_OFFLINE"] = before
