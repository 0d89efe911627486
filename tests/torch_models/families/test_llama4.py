"""Llama-4: which of its layers are of which kind, what its configs may not say, and its part of a whole model."""

from typing import Any

import pytest

from tests.shrunken import LLAMA4
from torch_models.errors import ConfigError
from torch_models.fields.config import read_model, read_spec, spec_from_fields
from torch_models.parallel.checks import without_ring_attention
from torch_models.spec import GroupedQueryAttentionSpec, MixtureOfExpertsSpec, ModelSpec, TemperatureSpec

# As published files have it: nothing said of single layers.
PUBLISHED = {name: value for name, value in LLAMA4.items() if name not in ("moe_layers", "no_rope_layer_interval")}


def kinds_of(**fields: Any) -> list[str]:
    return [layer.kind for layer in spec_from_fields(PUBLISHED | fields, "x").layers]


# Fields -> the kinds of the four layers. A list of single layers counts before an interval.
KINDS: list[tuple[dict[str, Any], list[str]]] = [
    ({}, ["moe_chunk_20", "moe_chunk_20", "moe_chunk_20", "moe_no_rope"]),
    ({"no_rope_layers": []}, ["moe_chunk_20", "moe_chunk_20", "moe_chunk_20", "moe_no_rope"]),
    (
        {"interleave_moe_layer_step": 2, "no_rope_layers": [0, 1, 1, 1]},
        ["dense_no_rope", "moe_chunk_20", "dense_chunk_20", "moe_chunk_20"],
    ),
    ({"moe_layers": [0, 9]}, ["moe_chunk_20", "dense_chunk_20", "dense_chunk_20", "dense_no_rope"]),
    (
        {"layer_types": ["full_attention"] * 3 + ["chunked_attention"]},
        ["moe", "moe", "moe", "moe_chunk_20_no_rope"],
    ),
    ({"layer_types": ["full_attention"] * 4, "attention_chunk_size": None}, ["moe", "moe", "moe", "moe_no_rope"]),
]


@pytest.mark.parametrize(("fields", "kinds"), KINDS, ids=str)
def test_which_layers_rotate_attend_in_chunks_and_have_experts(fields: dict[str, Any], kinds: list[str]) -> None:
    assert kinds_of(**fields) == kinds


def test_rotated_queries_are_normalised_and_the_others_sharpened() -> None:
    spec = read_spec("llama_4_scout")
    rotated, other = (layer.attention for layer, _ in spec.layer_groups())
    assert isinstance(rotated, GroupedQueryAttentionSpec)
    assert isinstance(other, GroupedQueryAttentionSpec)
    assert (rotated.query_key_norm, rotated.temperature, rotated.rotary and rotated.rotary.interleaved) == (
        "l2",
        None,
        True,
    )
    assert (other.query_key_norm, other.temperature) == (None, TemperatureSpec(floor_scale=8192, scale=0.1))
    maverick = read_spec("llama_4_maverick").layers[0].attention
    assert isinstance(maverick, GroupedQueryAttentionSpec)
    assert maverick.query_key_norm is None
    mixture = spec.layers[0].feed_forward
    assert isinstance(mixture, MixtureOfExpertsSpec)
    assert mixture.weighs_inputs
    assert mixture.shared_experts == mixture.expert
    (plain,) = {
        layer.attention
        for layer in spec_from_fields(PUBLISHED | {"attn_temperature_tuning": False}, "x").layers
        if layer.attention.rotary is None
    }
    assert isinstance(plain, GroupedQueryAttentionSpec)
    assert plain.temperature is None


def test_neither_kind_of_layer_has_ring_attention() -> None:
    """A rank of cp has some of the positions; a chunk or a factor is that of a position of the whole sequence."""
    reasons = [without_ring_attention(layer) for layer, _ in read_spec("llama_4_scout").layer_groups()]
    assert reasons == ["chunks", "a temperature by position"]


WITHOUT_DENSE_SIZE = {name: value for name, value in LLAMA4.items() if name != "intermediate_size_mlp"}
BAD_FIELDS: list[tuple[dict[str, Any], str]] = [
    (LLAMA4 | {"no_rope_layers": [1, 0, 1]}, "no_rope_layers = 3: must name 4 layers, as many as num_hidden_layers"),
    (LLAMA4 | {"no_rope_layers": [1, 0, 1, 2]}, r"no_rope_layers.* = .*must be int <= 1"),
    (LLAMA4 | {"layer_types": ["full_attention"]}, "layer_types = 1: must name 4 layers, as many as num_hidden_layers"),
    (
        LLAMA4 | {"layer_types": ["sliding_attention"] * 4},
        "layer_types = 'sliding_attention': is not known; must be full_attention or chunked_attention",
    ),
    (
        LLAMA4 | {"attention_chunk_size": None},
        "attention_chunk_size = null: must be given, since layers have chunked_attention",
    ),
    (WITHOUT_DENSE_SIZE, "intermediate_size_mlp = null: is missing and has no default"),
    (LLAMA4 | {"interleave_moe_layer_step": 0}, "interleave_moe_layer_step = 0: must be int >= 1"),
    (LLAMA4 | {"num_experts_per_tok": 7}, r"num_experts_per_tok = 7: must be at most the number of experts \(6\)"),
    (LLAMA4 | {"mlp_bias": True}, "mlp_bias = true: "),
]


@pytest.mark.parametrize(("fields", "message"), BAD_FIELDS, ids=[message[:50] for _, message in BAD_FIELDS])
def test_a_field_that_breaks_a_rule(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        spec_from_fields(fields, "bad")


def test_what_has_no_part_in_the_model_is_listed() -> None:
    fields = PUBLISHED | {"moe_layers": [0, 1, 2, 3], "no_rope_layers": [1] * 4, "interleave_moe_layer_step": 2}
    fields |= {"layer_types": ["full_attention"] * 4, "no_rope_layer_interval": 4}
    listed = spec_from_fields(fields, "x").passed_over_fields
    assert {entry.partition(" = ")[0] for entry in listed} == {
        "architectures",
        "attention_chunk_size",
        "attn_scale",
        "floor_scale",
        "interleave_moe_layer_step",
        "intermediate_size_mlp",
        "no_rope_layer_interval",
    }


def test_the_text_part_of_a_whole_model() -> None:
    """`Llama4ForConditionalGeneration`'s file, whose text part names its own family."""
    text = {name: value for name, value in LLAMA4.items() if name != "architectures"}
    whole = {
        "model_type": "llama4",
        "architectures": ["Llama4ForConditionalGeneration"],
        "boi_token_index": 200080,
        "text_config": text,
        "vision_config": {"model_type": "llama4_vision_model", "hidden_size": 1408},
    }
    found = read_model(whole, text_only=True)
    assert isinstance(found, ModelSpec)
    assert found.layers == spec_from_fields(LLAMA4, "x").layers
    with pytest.raises(ConfigError, match=r"is made of several models .* give text_only"):
        read_model(whole)
