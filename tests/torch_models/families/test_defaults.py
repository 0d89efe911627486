"""What a config leaves out: the defaults here are those of transformers' class."""

from typing import Any

import msgspec
import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.shrunken import FAMILIES
from torch_models.fields.config import family, spec_from_fields
from torch_models.spec import ModelSpec

LAYERS = 13  # more than two rounds of any kind of layers
# Fields that such a config needs: transformers' default does not go with small sizes, or has no module here.
FURTHER: dict[str, tuple[str, ...]] = {
    "gemma4_text": ("hidden_size_per_layer_input",),
    "gpt_oss": ("rope_scaling",),
    "deepseek_v2": ("n_group", "topk_group"),
    **dict.fromkeys(("deepseek_v3", "deepseek_v32", "glm_moe_dsa"), ("num_key_value_heads",)),
}


def sizes_alone(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields without a default here, and more layers."""
    config = family(fields["model_type"]).Config
    required = {field.name: fields[field.name] for field in msgspec.structs.fields(config) if field.required}
    further = {field: fields[field] for field in FURTHER.get(fields["model_type"], ())}
    return required | further | {"num_hidden_layers": LAYERS}


def compared(spec: ModelSpec) -> ModelSpec:
    """The spec without its length, which only a file has, and without the lists of fields and their text."""
    notes = dict.fromkeys(("passed_over_fields", "ignored_fields", "defaulted_fields"), ())
    return msgspec.structs.replace(spec, **notes, config_json=None, sequence_length=None, sequence_length_source=None)


@pytest.mark.parametrize("family_name", sorted(FAMILIES.keys() - {"kimi_k2"}))  # it is deepseek_v3 in transformers
def test_defaults_are_those_of_transformers(family_name: str) -> None:
    fields = sizes_alone(FAMILIES[family_name])
    written_out = CONFIG_MAPPING[fields["model_type"]](**fields).to_dict()
    assert compared(spec_from_fields(fields, "x")) == compared(spec_from_fields(written_out, "x"))
