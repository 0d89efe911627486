"""Which class of transformers a family's text decoder is built from, or why the family has none.

Most decoders have a class of their own. The text part of a model of several, such as a vision-language model, may have
none: then it is taken from the whole model, which has the head.
"""

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from counting.via_transformers.reading.fields import declared_fields
from torch_models.errors import ConfigError
from torch_models.fields.config import CAUSAL_LM, architectures_in, plain_name
from torch_models.fields.text_part import (
    HEAD,
    INHERITED,
    OUTSIDE,
    TEXT_PARTS,
    TextPart,
    extracted_text_part,
    is_model_part,
    left_out,
    several_models,
    with_head,
    without_other_tokens,
)

CONDITIONAL = "ForConditionalGeneration"
# Heads of a language model in transformers' older names, as GPT2LMHeadModel.
LANGUAGE_HEADS = (CAUSAL_LM, "LMHeadModel", "WithLMHeadModel", "ModelWithLMHead")
OTHER_HEADS = ("Classification", "QuestionAnswering", "MaskedLM", "MultipleChoice", "RewardModel")

# Families with a causal language model in transformers' table whose configuration does not say that they are none.
NOT_DECODERS = {
    "xlnet": "is trained on permuted orders of the tokens, with two streams of attention; only decoders are measured",
}


class DecoderClass(NamedTuple):
    """The class that a decoder is built from."""

    module: str  # of transformers, with the class
    name: str
    whole: Any = None  # the configuration class of the model of several whose text part is taken; else None

    def load(self) -> Any:
        """The class itself; importing it imports the family's code, and torch."""
        return getattr(importlib.import_module(self.module), self.name)


class Decoder(NamedTuple):
    """A decoder that can be built: its class and its config."""

    built_from: DecoderClass
    config: Any  # of the decoder
    whole: Any = None  # config of the model of several whose text part it is; None if it has a class of its own

    def __str__(self) -> str:
        return f"the text part of {self.built_from.name}" if self.whole else self.built_from.name


def decoder_class(model_type: str, config_class: Any, fields: Mapping[str, Any], known: Any) -> DecoderClass:
    """The class that the decoder of a config is built from; `known` is transformers' module of tables.

    Raises `ConfigError` with the reason if the model is not a text decoder.
    """
    if fields.get("is_encoder_decoder", getattr(config_class, "is_encoder_decoder", False)):
        raise ConfigError("model_type", model_type, "has an encoder beside its decoder; only decoders are measured")
    parts = parts_of(config_class, known)
    if parts:
        has_text = any(_may_be_a_decoder(config_class.sub_configs[name], known) for name in parts if name in TEXT_PARTS)
        raise ConfigError("model_type", model_type, several_models(parts, has_text=has_text))
    found = _found(model_type, config_class, known)
    if found is None:
        raise ConfigError("model_type", model_type, "transformers has no causal language model of this family")
    _refuse_encoders(model_type, config_class, fields, known)
    _refuse_other_architectures(model_type, config_class, found, fields)
    return found


def parts_of(config_class: Any, known: Any) -> list[str]:
    """The fields of a configuration class that hold configs of models; those of a layer's parts are left out."""
    return [
        name
        for name, part in config_class.sub_configs.items()
        if getattr(part, "model_type", None) in (None, *known.CONFIG_MAPPING_NAMES)  # None: a model of any family
    ]


def _may_be_a_decoder(part: Any, known: Any) -> bool:
    """Whether a part's configuration class is of a text decoder, or of several models with one, or of any family."""
    text_type = getattr(part, "model_type", None)
    inner = [part.sub_configs[name] for name in TEXT_PARTS if name in getattr(part, "sub_configs", {})]
    if inner or text_type is None:
        return all(_may_be_a_decoder(each, known) for each in inner)
    return _found(text_type, part, known) is not None


def take_text_part(fields: dict[str, Any], model_type: str, config_classes: Any) -> TextPart:
    """The text part of a family that is made of several models, with its `model_type`; of any other family, the whole.

    The part's family is that of transformers' class where the config does not name it. Older configs have the text
    part's fields beside those of the other parts: then the fields that only the whole model has are left out.
    """
    config_class = config_classes[model_type]
    name = next((name for name in TEXT_PARTS if name in config_class.sub_configs), None)
    if name is None:
        return TextPart(fields)
    text_type = getattr(config_class.from_dict(fields), name).model_type
    if isinstance(fields.get(name), dict):
        part = extracted_text_part(fields | {"model_type": model_type, name: fields[name] | {"model_type": text_type}})
    else:
        part = _text_beside_others(fields | {"model_type": model_type}, text_type, config_classes)
    inner = take_text_part(part.fields, text_type, config_classes)
    return TextPart(inner.fields, (*part.left_out, *inner.left_out), (*part.defaulted, *inner.defaulted))


def _text_beside_others(fields: dict[str, Any], text_type: str, config_classes: Any) -> TextPart:
    """The fields of a text part of family `text_type` that stand beside those of the other parts."""
    own, others = (declared_fields(config_classes[each]) for each in (text_type, fields["model_type"]))
    kept = own | {HEAD, *INHERITED}
    text = {
        field: value
        for field, value in fields.items()
        if field in kept or not (field in others or is_model_part(field, value))
    }
    outside = {field: value for field, value in fields.items() if field not in text and field != "model_type"}
    headed = with_head({field: value for field, value in text.items() if field != HEAD}, fields)
    part = without_other_tokens(headed.fields | {"model_type": text_type})
    dropped = (*left_out(outside, OUTSIDE), *headed.left_out, *part.left_out)
    return TextPart(part.fields, dropped, headed.defaulted)


def _found(model_type: str, config_class: Any, known: Any) -> DecoderClass | None:
    package = config_class.__module__.rpartition(".")[0]
    own = known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type)
    if own is not None:
        return DecoderClass("transformers", own)
    names = dir(importlib.import_module(package))
    for name in sorted(name for name in names if name.endswith(CAUSAL_LM)):
        candidate = DecoderClass(package, name)
        if candidate.load().config_class is config_class:
            return candidate
    for whole_type, whole in _whole_models(package, config_class, known):
        name = known.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(whole_type)
        name = name or known.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES.get(whole_type)
        if name is not None and name.endswith(CONDITIONAL) and not getattr(whole, "is_encoder_decoder", False):
            return DecoderClass("transformers", name, whole)
    return None


def _whole_models(package: str, config_class: Any, known: Any) -> list[tuple[str, Any]]:
    """The families in a package of transformers whose text part has this configuration class."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING, model_type_to_module_name

    folder = package.rpartition(".")[2]
    families = [name for name in known.CONFIG_MAPPING_NAMES if model_type_to_module_name(name) == folder]
    return [
        (name, CONFIG_MAPPING[name])
        for name in families
        if any(CONFIG_MAPPING[name].sub_configs.get(part) is config_class for part in TEXT_PARTS)
    ]


def decoder_of(found: DecoderClass, config: Any, fields: Mapping[str, Any]) -> Decoder:
    """The decoder with `config`; the other parts of a model of several have the defaults of its class.

    There the head is tied as `fields` say, else as the whole model's class does by default.
    """
    if found.whole is None:
        return Decoder(found, config)
    tied = {HEAD: fields[HEAD]} if fields.get(HEAD) is not None else {}
    return Decoder(found, config, found.whole(text_config=config.to_dict(), **tied))


def _refuse_encoders(model_type: str, config_class: Any, fields: Mapping[str, Any], known: Any) -> None:
    if model_type in NOT_DECODERS:
        raise ConfigError("model_type", model_type, NOT_DECODERS[model_type])
    fills_gaps = model_type in known.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    for switch in ("is_decoder", "causal"):
        if fills_gaps and not fields.get(switch, getattr(config_class, switch, True)):
            rule = f"is an encoder unless {switch} is true; only decoders are measured"
            raise ConfigError("model_type", model_type, rule)


def _refuse_other_architectures(
    model_type: str, config_class: Any, found: DecoderClass, fields: Mapping[str, Any]
) -> None:
    """Refuse a name in `architectures` that is not the family's language model, under any of its names."""
    whole_type = found.whole.model_type if found.whole else ""
    own = {plain_name(name) for name in (found.name, *(f"{model_type}{head}" for head in LANGUAGE_HEADS))}
    own |= {plain_name(f"{whole_type}{ending}") for ending in (CAUSAL_LM, CONDITIONAL)} if whole_type else set()
    family = plain_name(found.name)
    for ending in (*LANGUAGE_HEADS, CONDITIONAL):
        family = family.removesuffix(plain_name(ending))
    own |= {f"{family}{plain_name(head)}" for head in LANGUAGE_HEADS}
    for architecture in architectures_in(dict(fields)):
        if plain_name(architecture) in own or _is_remote(architecture, family, fields):
            continue
        if any(head in architecture for head in OTHER_HEADS):
            rule = "has another head than a language model's"
        elif architecture.endswith("Model"):
            rule = "has no head; only language models are measured"
        else:
            rule = f"is not what model_type {model_type} is measured as"
        raise ConfigError("architectures", architecture, f"{rule}, which is {found.name}")


def _is_remote(architecture: str, family: str, fields: Mapping[str, Any]) -> bool:
    """Whether a name is that of the family's language model in the code that `auto_map` names.

    A name that begins as the family's, but goes on, is that of another model.
    """
    remote = fields.get("auto_map")
    named = str(remote.get(f"AutoModel{CAUSAL_LM}", "")) if isinstance(remote, Mapping) else ""
    variant = plain_name(architecture).startswith(family)
    return architecture == named.rpartition(".")[2] and architecture.endswith(CAUSAL_LM) and not variant


# --- Texts of refusals -----------------------------------------------------------------------------------------


def no_count_of(mixer: str) -> str:
    """The reason why layers that keep a state are refused; `mixer` names the layers."""
    return (
        f"{mixer} carry a state from token to token by a function that is not known here: a count of matrix products "
        "would leave out its elementwise part, so none is given"
    )


def one_line(error: BaseException, longest: int = 300) -> str:
    """An error's message on one line, with at most `longest` characters; its type if the message is empty."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= longest else text[: longest - 1] + "…"
