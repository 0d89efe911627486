"""The text decoder within a config of several models, such as a vision tower and a language model. Torch-free."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from torch_models.errors import ConfigError, show_value
from torch_models.fields.known_fields import irrelevance
from torch_models.fields.unknown_fields import is_comment

# Names of the part that reads and writes text; a thinker, of a model that also speaks, has a text part itself.
TEXT_PARTS = ("text_config", "llm_config", "language_config", "thinker_config")
# Fields outside the text part that belong to it: the head, and how its numbers are stored.
INHERITED = ("vocab_size", "dtype", "torch_dtype", "quantization_config")
HEAD = "tie_word_embeddings"  # of the outer model, which has the head: the outer value is the one that counts

_NOT_MODELS = {"quantization_config", "generation_config"}
_MODALITY = re.compile(r"(^|_)(audio|image|mm|patch|pixel|speech|video|vision|visual)(_|$)")


def text_part(fields: dict[str, Any], *, text_only: bool) -> dict[str, Any]:
    """The fields of the decoder.

    Without `text_only`, a nested text part that stands alone is merged with the fields outside that it does not repeat;
    parts beside it are an error, `ConfigError`, since the text part is not the whole model. With `text_only`, the text
    part is returned with the `INHERITED` fields. The fields are returned unchanged if they have no text part, or one
    beside others that does not name its family.
    """
    name = next((name for name in TEXT_PARTS if isinstance(fields.get(name), dict)), None)
    if name is None:
        return fields
    beside = [field for field, value in fields.items() if is_model_part(field, value) and field != name]
    beside = beside or [field for field, value in fields.items() if value is not None and is_of_other_modality(field)]
    if text_only and _names_a_family(fields[name]):
        return text_part(_inner(fields, name), text_only=True)
    if beside and text_only:
        return fields
    if beside:
        raise ConfigError("model_type", fields.get("model_type"), several_models([name, *beside], has_text=True))
    return _merged(fields, name)


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


def is_of_other_modality(field: str) -> bool:
    """Whether a field's name speaks of images, video or sound, as `image_token_id`."""
    return _MODALITY.search(field) is not None


def without_other_modalities(fields: Mapping[str, Any], kept: Collection[str] = ()) -> dict[str, Any]:
    """The fields of a text part without those of images, video and sound; those in `kept` stay, whatever their name."""
    return {field: value for field, value in fields.items() if field in kept or not is_of_other_modality(field)}


def _names_a_family(part: Mapping[str, Any]) -> bool:
    return part.get("model_type") is not None or bool(part.get("architectures"))


def _inner(fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    inner = dict(fields[name])
    for field in INHERITED:
        if inner.get(field) is None and fields.get(field) is not None:
            inner[field] = fields[field]
    if fields.get(HEAD) is not None:
        inner[HEAD] = fields[HEAD]
    return inner


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
