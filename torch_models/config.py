"""config.json in Hugging Face's format -> ModelSpec: strict JSON, checked fields, nothing unknown passed over.

A family module has a `Config`, the fields that it understands with their rules, and `model_spec(config, name)`.
Fields that change nothing here are listed with the reason; any other field is refused, because a field that this
program does not understand may change the architecture.
"""

import difflib
import importlib
import importlib.resources
import json
import os
import pkgutil
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar, cast, get_args, get_type_hints

import msgspec

from torch_models import families
from torch_models.checkpoint_names import SEPARATE_EXPERTS, StoredName
from torch_models.errors import ConfigError, UserError, show_value
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
)

# The families: each is one module, named as its model_type.
FAMILIES = tuple(sorted(module.name for module in pkgutil.iter_modules(families.__path__)))

# Names that course and tool configs use -> Hugging Face's.
ALIASES = {
    "num_layers": "num_hidden_layers",
    "dtype": "torch_dtype",
    "experts_per_token": "num_experts_per_tok",
    "sliding_window_size": "sliding_window",
    "num_mtp_layers": "num_nextn_predict_layers",
}

# GPT-2's names, which configs made by hand take over.
GPT_2_NAMES = {
    "n_layer": "num_hidden_layers",
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_positions": "max_position_embeddings",
}

# The number of routed experts has three names; a family knows one of them, and reads the others as it.
EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")

CAUSAL_LM = "ForCausalLM"
MAX_CONFIG_BYTES = 4_000_000
_TOKENS = "names a token, not a size"
_GENERATION = "steers generation, not training"
_BOOKKEEPING = "says who wrote the file"

# Fields that change no parameter, FLOP or byte that is counted here, with the reason.
IRRELEVANT_FIELDS: dict[str, str] = {
    "generation_config": _GENERATION,
    "_source": "says where the file's numbers come from",
    "_name_or_path": _BOOKKEEPING,
    "architectures": "repeats the family",
    "auto_map": "points to remote code, which is never run",
    "transformers_version": _BOOKKEEPING,
    "torch_dtype": "counts are for 16-bit numbers, whatever the checkpoint is stored in",
    "quantization_config": "says how the checkpoint is stored; the trained model is the same",
    "initializer_range": "sets first values, not shapes",
    "use_cache": _GENERATION,
    "cache_implementation": _GENERATION,
    "transformers.js_config": "of another framework",
    "unsloth_fixed": _BOOKKEEPING,
    "_attn_implementation_autoset": "chooses a kernel; the analysis states its own",
    "bos_token_id": _TOKENS,
    "eos_token_id": _TOKENS,
    "pad_token_id": _TOKENS,
    "sep_token_id": _TOKENS,
    "decoder_start_token_id": _TOKENS,
    "forced_bos_token_id": _TOKENS,
    "forced_eos_token_id": _TOKENS,
    "begin_suppress_tokens": _TOKENS,
    "suppress_tokens": _TOKENS,
    "bad_words_ids": _GENERATION,
    "pretraining_tp": "splits products without changing their sum",
    "ep_size": "says how experts were spread over devices",
    "router_aux_loss_coef": "weighs a balance loss, which multiplies no matrices",
    "aux_loss_alpha": "weighs a balance loss, which multiplies no matrices",
    "seq_aux": "chooses the balance loss, which multiplies no matrices",
    "output_attentions": "asks for outputs",
    "output_hidden_states": "asks for outputs",
    "output_router_logits": "asks for outputs",
    "return_dict": "asks for outputs",
    "return_dict_in_generate": "asks for outputs",
    "output_scores": "asks for outputs",
    "gradient_checkpointing": "the analysis states its own",
    "id2label": "labels of a classifier",
    "label2id": "labels of a classifier",
    "problem_type": "labels of a classifier",
    "num_labels": "labels of a classifier",
    "finetuning_task": "labels of a classifier",
    "task_specific_params": _GENERATION,
    "tokenizer_class": "the tokenizer is not part of the model",
    "prefix": _GENERATION,
    "torchscript": "asks for another execution, not another model",
    "chunk_size_feed_forward": "splits products without changing their sum",
    "do_sample": _GENERATION,
    "early_stopping": _GENERATION,
    "temperature": _GENERATION,
    "top_p": _GENERATION,
    "typical_p": _GENERATION,
    "max_length": _GENERATION,
    "min_length": _GENERATION,
    "num_beams": _GENERATION,
    "num_beam_groups": _GENERATION,
    "num_return_sequences": _GENERATION,
    "diversity_penalty": _GENERATION,
    "length_penalty": _GENERATION,
    "repetition_penalty": _GENERATION,
    "encoder_no_repeat_ngram_size": _GENERATION,
    "no_repeat_ngram_size": _GENERATION,
    "exponential_decay_length_penalty": _GENERATION,
    "remove_invalid_values": _GENERATION,
    "tf_legacy_loss": "of another framework",
    "use_bfloat16": "of another framework",
}

# Architecture switches of the common base class and of published files: only the value that changes nothing.
FIXED_FIELDS: dict[str, object] = {
    "is_decoder": False,
    "is_encoder_decoder": False,
    "add_cross_attention": False,
    "cross_attention_hidden_size": None,
    "tie_encoder_decoder": False,
    "pruned_heads": {},
    "is_llama_config": True,
    "rope_interleaved": False,
    "use_mrope": False,
    "use_bidirectional_attention": False,
}


class FamilyConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Fields that every family has; a subclass adds its own. Rules are in the types, defaults are the family's."""

    default_rope_theta: ClassVar[float] = 10_000.0
    stored_names: ClassVar[tuple[StoredName, ...]] = SEPARATE_EXPERTS  # what its checkpoints name otherwise than we do

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
        """The model of these layers, with all that families have in common; `options` are further fields."""
        length, source = self.max_sequence_length, "max_sequence_length"
        if length is None:
            length, source = self.max_position_embeddings, "max_position_embeddings"
        return ModelSpec(
            name=name,
            model_type=self.model_type,
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            layers=tuple(layers),
            norm_eps=self.rms_norm_eps,
            tie_word_embeddings=self.tie_word_embeddings,
            sequence_length=length,
            sequence_length_source=None if length is None else source,
            mtp_layers=tuple(mtp_layers),
            **options,
        )


class ForeignConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A config whose family has no module here: its fields as they stand in the file, unchecked."""

    name: str
    source: str  # the file, or whatever else errors shall name
    model_type: str
    fields: dict[str, Any]


class Family(Protocol):
    """What a family module offers."""

    Config: type[FamilyConfig]

    def model_spec(self, config: Any, name: str) -> ModelSpec:
        """The spec of a checked config."""


def read_spec(path_or_name: str | os.PathLike[str]) -> ModelSpec:
    """The model that a config describes; `path_or_name` is a path, or a file's name in `configs/`.

    Raises `UserError` (a `ValueError`) naming file, field, value and rule.
    """
    return _read(path_or_name, spec_from_fields)


def read_model(path_or_name: str | os.PathLike[str]) -> ModelSpec | ForeignConfig:
    """As `read_spec`, but a family that is not native is handed on instead of refused."""
    model = _read(path_or_name, model_from_fields)
    if isinstance(model, ForeignConfig):
        return msgspec.structs.replace(model, source=os.fspath(path_or_name))
    return model


R = TypeVar("R")


def _read(path_or_name: str | os.PathLike[str], parse: Callable[[dict[str, Any], str], R]) -> R:
    file, fields = read_config(path_or_name)
    try:
        return parse(fields, Path(file).stem.removesuffix("_config"))
    except ConfigError as error:
        raise error.in_file(file) from None


def model_from_fields(fields: dict[str, Any], name: str) -> ModelSpec | ForeignConfig:
    """The model of these fields: a spec where `model_type` is native, else the fields as they are."""
    fields = _text_part(fields)
    model_type = fields.get("model_type")
    if isinstance(model_type, str) and model_type not in FAMILIES:
        return ForeignConfig(name=name, source=name, model_type=model_type, fields=fields)
    return spec_from_fields(fields, name)


def spec_from_fields(fields: dict[str, Any], name: str) -> ModelSpec:
    """The model that the fields of a config.json describe."""
    fields = _renamed(_text_part(fields), ALIASES | GPT_2_NAMES)
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


def _text_part(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a config nested in `text_config`, with those around it that it does not repeat.

    Beside another model's config (`vision_config`) it is left where it is, to be refused: a part is not the whole.
    """
    inner = fields.get("text_config")
    others = [field for field, value in fields.items() if field.endswith("_config") and isinstance(value, dict)]
    if not isinstance(inner, dict) or set(others) - {"text_config", "quantization_config", "generation_config"}:
        return fields
    around = {field: value for field, value in fields.items() if field not in ("text_config", "architectures")}
    if "model_type" in inner or "architectures" in inner:
        around.pop("model_type", None)
    return around | inner


def _defaulted(config: FamilyConfig, fields: Mapping[str, Any]) -> Iterator[str]:
    """What the config leaves to the family, as "field = value"."""
    for field in config.__struct_fields__:
        value = getattr(config, field)
        if field not in fields and value is not None:
            yield f"{field} = {show_value(value)}"
    if config.num_key_value_heads is None:
        yield "num_key_value_heads = num_attention_heads"
    if config.rope_theta is None and "rope_theta" not in (config.rope_parameters or {}):
        yield f"rope_theta = {config.default_rope_theta}"


def family(model_type: str) -> Family:
    """The module that reads configs of this type, which must be one of `FAMILIES`."""
    return cast(Family, importlib.import_module(f"{families.__name__}.{model_type}"))


S = TypeVar("S", bound=msgspec.Struct)


def convert(fields: dict[str, Any], struct: type[S]) -> S:
    """`fields` as a `struct`, or a `ConfigError` that names field and rule."""
    try:
        return msgspec.convert(fields, struct)
    except UnicodeEncodeError as error:  # half a surrogate pair, which JSON can spell and no text holds
        field = next(f for f, value in fields.items() if isinstance(value, str) and value == error.object)
        raise ConfigError(field, fields[field], "is no valid text") from None
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, ConfigError):  # raised by a struct's own check
            raise error.__cause__ from None
        raise _as_config_error(str(error), fields, struct) from None


def read_config(path_or_name: str | os.PathLike[str]) -> tuple[str, dict[str, Any]]:
    """The path as the user knows it, and the fields of the JSON object in it."""
    shown = os.fspath(path_or_name)
    content = _read_bytes(shown)
    try:
        fields = json.loads(
            content.decode("utf-8-sig"), object_pairs_hook=_refuse_duplicates, parse_constant=_refuse_nan
        )
    except UserError as error:
        raise UserError(f"{shown}: {error}") from None
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise UserError(f"{shown}: not valid JSON: {reason}") from None
    if not isinstance(fields, dict):
        raise UserError(f"{shown}: must be a JSON object of config fields, but is {show_value(fields)}")
    return shown, fields


def _read_bytes(shown: str) -> bytes:
    try:
        info = os.stat(shown)
    except (OSError, ValueError) as error:
        bundled = {
            entry.name: entry
            for entry in importlib.resources.files("configs").iterdir()
            if entry.name.endswith("_config.json")
        }
        for name in (shown, f"{shown}.json", f"{shown}_config.json"):
            if name in bundled:
                return bundled[name].read_bytes()
        if isinstance(error, FileNotFoundError):
            raise UserError(f"{shown}: no such file, and configs/ has only {', '.join(sorted(bundled))}") from None
        raise UserError(f"{shown[:200]}: cannot be read: {_reason(error)}") from None
    if not stat.S_ISREG(info.st_mode):
        raise UserError(f"{shown}: must be a file of JSON, but is {_kind(info.st_mode)}")
    if info.st_size > MAX_CONFIG_BYTES:
        raise UserError(f"{shown}: {info.st_size} bytes; a config has at most {MAX_CONFIG_BYTES}")
    try:
        return Path(shown).read_bytes()
    except OSError as error:
        raise UserError(f"{shown}: cannot be read: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _kind(mode: int) -> str:
    return "a folder" if stat.S_ISDIR(mode) else "no regular file"


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for field, value in pairs:
        if field in fields:
            raise ConfigError(field, value, f"the field stands twice; its first value is {show_value(fields[field])}")
        fields[field] = value
    return fields


def _refuse_nan(constant: str) -> float:
    raise UserError(f"{constant} is no JSON number; every number must be finite")


def _renamed(fields: dict[str, Any], aliases: Mapping[str, str]) -> dict[str, Any]:
    """The fields under their standard names; an alias and its original may both stand there if they agree."""
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
    """The family's name, set in `fields` from `architectures` where the field is missing; the two must agree."""
    model_type, architectures = fields.get("model_type"), fields.get("architectures")
    named = [name for name in architectures if isinstance(name, str)] if isinstance(architectures, list) else []
    of_names = {_family_of(name) for name in named}
    if model_type is None:
        if len(of_names) != 1 or None in of_names:
            raise ConfigError("model_type", model_type, f"is missing; must be one of {', '.join(FAMILIES)}")
        (model_type,) = of_names
        fields["model_type"] = model_type
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ConfigError("model_type", model_type, f"is not known; must be one of {', '.join(FAMILIES)}")
    for name in named:
        of_name = _family_of(name)
        alike = of_name in (None, model_type) or issubclass(family(model_type).Config, family(of_name).Config)
        if not (name.endswith(CAUSAL_LM) and alike):
            raise ConfigError("architectures", name, f"is no language model of model_type {model_type}")
    return model_type


def _family_of(architecture: str) -> str | None:
    """The family of an architecture: Qwen3MoeForCausalLM is of qwen3_moe; None where there is no such family."""
    name = re.sub("(?<!^)(?=[A-Z])", "_", architecture.removesuffix(CAUSAL_LM)).lower()
    return name if name in FAMILIES and architecture.endswith(CAUSAL_LM) else None


def _unknown_field_rule(field: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(field, known, n=1, cutoff=0.8)
    hint = f"; did you mean {close[0]}?" if close else "; if it does not change the architecture, remove it"
    return f"this field is not understood{hint}"


def _as_config_error(message: str, fields: dict[str, Any], struct: type[msgspec.Struct]) -> ConfigError:
    """msgspec's "<rule> - at `$.<path>`" as field, value and rule."""
    rule, _, path = message.partition(" - at `$.")
    if rule.startswith("Object missing required field"):
        return ConfigError(rule.split("`")[1], None, "is missing and has no default")
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
