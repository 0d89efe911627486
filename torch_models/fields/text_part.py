"""The text decoder within a config of several models, such as a vision tower and a language model. Torch-free."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch_models.errors import ConfigError, show_value
from torch_models.fields.known_fields import irrelevance
from torch_models.fields.unknown_fields import is_comment, show_field

# Names of the part that reads and writes text; a thinker, of a model that also speaks, has a text part itself.
TEXT_PARTS = ("text_config", "llm_config", "language_config", "thinker_config")
# Fields outside the text part that belong to it: the head, and how its numbers are stored.
INHERITED = ("vocab_size", "dtype", "torch_dtype", "quantization_config")
HEAD = "tie_word_embeddings"  # of the whole model, which has the head

OUTSIDE = "outside the text part, which alone is analysed"
OF_OTHER_TOKENS = "of images, video or sound; only the text part is analysed"

_NOT_MODELS = {"quantization_config", "generation_config"}
_KINDS = "audio|image|speech|video|vision|visual"
_MODALITY = re.compile(rf"(^|_)({_KINDS}|mm|patch|pixel)(_|$)")
# Fields within a text part that are of other inputs and change nothing in a decoder: how many tokens those become, and
# a repeated config of their tower. Anything else is refused, since a decoder may have experts or layers for images.
_OF_OTHER_TOKENS = re.compile(
    rf"num_({_KINDS})_tokens|({_KINDS})_(token|seq_len|seq_length)|mm_tokens_per_(image|video)|pixel_shuffle_factor"
)
_TOWER = re.compile(rf"({_KINDS})_config")

# Whether transformers ties the head, by the class of the whole model: what the whole config says counts, else the
# class's default; some classes tie it also if the text part says so, in others the text part alone decides.
_TIED_BY_DEFAULT = """
    aya_vision cohere2_vision deepseek_vl deepseek_vl_hybrid diffusion_gemma ernie4_5_vl_moe fun_asr_nano gemma3 gemma3n
    gemma4 gemma4_unified glmasr got_ocr2 granite_docling granite_speech granite_speech_plus hyperclovax_vision_v2
    internvl janus kimi_k25 lfm2_vl lfm3_vl lighton_ocr minicpm_ocr mistral3 moss_transcribe_diarize ovis2 paligemma
    pp_chart2table qwen3_asr voxtral_realtime
"""
_SEPARATE_BY_DEFAULT = """
    aria cohere_compass cosmos3_edge cosmos3_omni deepseek_ocr2 dots3_note emu3 exaone4_5 fuyu glm46v glm5_next glmga
    granite4_vision idefics2 idefics3 llava_next minicpmv4_6 minicpmv4_7 mistral_large4 molmo2 qianfan_ocr
    qwen2_5_omni_thinker qwen3_5 qwen3_5_moe qwen3_omni_moe_thinker qwen3_vl qwen3_vl_moe qwen4_exp smolvlm
    unlimited_ocr video_llava vipllava
"""
_TIED_BY_EITHER = """
    fast_vlm glm4v glm4v_moe glm_ocr llava llava_next_video llava_onevision minimax_m3_vl qwen2_5_vl qwen2_vl
    video_llama_3
"""
_TIED_BY_DEFAULT_OR_EITHER = "hunyuan_vl paddleocr_vl"
BY_THE_TEXT_PART = frozenset(["blip-2", "instructblip", "instructblipvideo", "llama4", "vibevoice"])
NEVER_TIED = frozenset(["nemo_speechlm", "qwen2_audio", "vibevoice_asr", "voxtral"])

DEFAULT_OF_WHOLE = dict.fromkeys((_TIED_BY_DEFAULT + _TIED_BY_DEFAULT_OR_EITHER).split(), True)
DEFAULT_OF_WHOLE |= dict.fromkeys((_SEPARATE_BY_DEFAULT + _TIED_BY_EITHER).split(), False)
OR_OF_TEXT = frozenset((_TIED_BY_EITHER + _TIED_BY_DEFAULT_OR_EITHER).split())


class TextPart(NamedTuple):
    """The fields of a text decoder within the config of a whole model, and what of the whole has no part in it."""

    fields: dict[str, Any]
    left_out: tuple[str, ...] = ()  # "field = value (reason)" for each field of the whole that is not among them
    defaulted: tuple[str, ...] = ()  # "field = value" for each that the class of the whole model decides


def merged_text_part(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a config of one decoder: a nested text part is merged with the fields that it does not repeat.

    Parts of other models beside it are an error, `ConfigError`, since the text part is not the whole model.
    """
    name = _name_of_text_part(fields)
    if name is None:
        return fields
    models, others = _beside(fields, name)
    if models or others:
        rest = ", ".join((*others[:3], "…") if len(others) > 3 else others)
        parts = [name, *models] if models else [name, f"and {rest} of another part"]
        raise ConfigError("model_type", fields.get("model_type"), several_models(parts, has_text=True))
    return _merged(fields, name)


def extracted_text_part(fields: dict[str, Any]) -> TextPart:
    """The text part of a config of several models, without the parts beside it.

    Of a config of one model it is the whole, as in `merged_text_part`. The fields are returned unchanged if the text
    part does not name its family, which the class of the whole model then tells.
    """
    name = _name_of_text_part(fields)
    if name is None or not (any(_beside(fields, name)) or str(fields.get("model_type")) in DEFAULT_OF_WHOLE):
        return TextPart(merged_text_part(fields))
    if not _names_a_family(fields[name]):
        return TextPart(fields)
    part = _within(fields, name)
    if _name_of_text_part(part.fields) is None:
        inner = without_other_tokens(part.fields)
        return TextPart(inner.fields, (*part.left_out, *inner.left_out), part.defaulted)
    innermost = extracted_text_part(part.fields)
    return TextPart(innermost.fields, (*part.left_out, *innermost.left_out), (*part.defaulted, *innermost.defaulted))


def all_fields(fields: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of the fields of a config and of its text parts, at any depth."""
    yield from (field for field in fields if isinstance(field, str))
    for part in TEXT_PARTS:
        if isinstance(fields.get(part), Mapping):
            yield from all_fields(fields[part])


def several_models(parts: Sequence[str], *, has_text: bool) -> str:
    """The rule that a config of several models breaks; `parts` are its fields that describe them."""
    rest = "for its text part alone give text_only" if has_text else "none of them is one"
    return f"is made of several models ({', '.join(parts)}), and only text decoders are measured; {rest}"


def is_model_part(field: str, value: Any) -> bool:
    """Whether a field holds the config of a part of the model, such as `vision_config`."""
    return field.endswith("_config") and isinstance(value, Mapping) and field not in _NOT_MODELS and "." not in field


def without_other_tokens(fields: Mapping[str, Any]) -> TextPart:
    """The fields of a text part without those that are known to concern only images, video or sound."""
    others = {
        field: value
        for field, value in fields.items()
        if _OF_OTHER_TOKENS.fullmatch(field) or (_TOWER.fullmatch(field) and isinstance(value, Mapping))
    }
    kept = {field: value for field, value in fields.items() if field not in others}
    return TextPart(kept, left_out(others, OF_OTHER_TOKENS))


def left_out(fields: Mapping[str, Any], reason: str) -> tuple[str, ...]:
    """The fields as "field = value (reason)", without comments."""
    return tuple(f"{show_field(name, value)} ({reason})" for name, value in fields.items() if not is_comment(name))


def with_head(text: Mapping[str, Any], whole: Mapping[str, Any]) -> TextPart:
    """The fields of a text part with `HEAD` as transformers' class of the whole model has it, which has the head."""
    model_type, given, of_text = str(whole.get("model_type")), whole.get(HEAD), text.get(HEAD)
    tied = DEFAULT_OF_WHOLE.get(model_type) if given is None else given
    if model_type in OR_OF_TEXT:
        tied = tied or of_text
    elif model_type in NEVER_TIED:
        tied = False
    elif model_type in BY_THE_TEXT_PART or tied is None:
        tied = of_text
    fields = {field: value for field, value in text.items() if field != HEAD} | ({} if tied is None else {HEAD: tied})
    because = "not what decides in this class of the whole model"
    overruled = left_out({HEAD: given}, because) if given not in (None, tied) else ()
    overruled += (
        left_out({HEAD: of_text}, "of the text part; the whole has the head") if of_text not in (None, tied) else ()
    )
    is_default = tied is not None and given is of_text is None
    return TextPart(fields, overruled, (f"{HEAD} = {show_value(tied)}",) if is_default else ())


def _name_of_text_part(fields: Mapping[str, Any]) -> str | None:
    return next((name for name in TEXT_PARTS if isinstance(fields.get(name), dict)), None)


def _beside(fields: Mapping[str, Any], name: str) -> tuple[list[str], list[str]]:
    """The fields beside a text part that hold other models, and the further ones that speak of such models."""
    models = [field for field, value in fields.items() if is_model_part(field, value) and field != name]
    others = [field for field, value in fields.items() if value is not None and _MODALITY.search(field)]
    return models, [field for field in others if field not in (name, *models)]


def _names_a_family(part: Mapping[str, Any]) -> bool:
    return part.get("model_type") is not None or bool(part.get("architectures"))


def _within(fields: Mapping[str, Any], name: str) -> TextPart:
    """A nested text part, with the fields that it inherits and the head as the whole has it."""
    inner = dict(fields[name])
    for field in INHERITED:
        if inner.get(field) is None and fields.get(field) is not None:
            inner[field] = fields[field]
    headed = with_head(inner, fields)
    outside = {
        field: value
        for field, value in fields.items()
        if field not in (name, HEAD, "model_type") and not (field in INHERITED and inner.get(field) == value)
    }
    return TextPart(headed.fields, (*left_out(outside, OUTSIDE), *headed.left_out), headed.defaulted)


def _merged(fields: dict[str, Any], name: str) -> dict[str, Any]:
    inner: dict[str, Any] = fields[name]
    for field in (fields.keys() & inner.keys()) - {"model_type"}:
        if irrelevance(field) or is_comment(field):
            continue
        if None not in (fields[field], inner[field]) and fields[field] != inner[field]:
            rule = f"differs from the value outside {name}, {show_value(fields[field])}; make them agree"
            raise ConfigError(f"{name}.{field}", inner[field], rule)
    left = {name, "model_type", "architectures"} if _names_a_family(inner) else {name}
    return {field: value for field, value in fields.items() if field not in left} | inner
