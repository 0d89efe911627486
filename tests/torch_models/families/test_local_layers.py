"""Families with layers of several kinds: which layers have a window, which rotate, and by which base."""

from typing import Any

import pytest

from counting.formulas.parameters import parameters
from tests.shrunken import GEMMA3, OLMO3, SMOLLM3
from torch_models.errors import ConfigError
from torch_models.fields.config import read_model, spec_from_fields
from torch_models.rope_scaling import LinearRopeScaling
from torch_models.spec import GroupedQueryAttentionSpec, ModelSpec, RotarySpec


def attentions(fields: dict[str, Any]) -> list[GroupedQueryAttentionSpec]:
    found = [layer.attention for layer in spec_from_fields(fields, "x").layers]
    assert all(isinstance(each, GroupedQueryAttentionSpec) for each in found)
    return found  # type: ignore[return-value]


def windows(fields: dict[str, Any]) -> list[int | None]:
    return [each.window for each in attentions(fields)]


def without(fields: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in names}


def test_every_so_many_layers_of_gemma_3_and_olmo_3_are_global() -> None:
    six = without(GEMMA3, "sliding_window_pattern") | {"num_hidden_layers": 7}
    assert windows(six) == [12] * 5 + [None, 12]
    assert windows(six | {"sliding_window_pattern": 2}) == [12, None] * 3 + [12]
    assert windows(OLMO3 | {"num_hidden_layers": 5}) == [12, 12, 12, None, 12]


def test_local_layers_have_a_base_of_their_own_and_no_scaling() -> None:
    local, *_, of_all = (each.rotary for each in attentions(GEMMA3))
    assert local == RotarySpec(dim=16, theta=300.0)
    assert of_all == RotarySpec(dim=16, theta=50000.0, scaling=LinearRopeScaling(factor=8.0))
    bare = without(GEMMA3, "rope_theta", "rope_local_base_freq", "rope_scaling")
    assert [each.rotary and each.rotary.theta for each in attentions(bare)] == [1e4, 1e4, 1e6]
    one_kind = bare | {"rope_parameters": {"full_attention": {"rope_theta": 7.0, "rope_type": "default"}}}
    assert [each.rotary and each.rotary.theta for each in attentions(one_kind)] == [1e4, 1e4, 7.0]
    # transformers reads rope_theta for the global layers of OLMo-3 alone.
    assert [each.rotary and each.rotary.theta for each in attentions(OLMO3)] == [5e5, 5e5, 5e5, 3e3]


def test_a_base_of_local_layers_that_two_fields_give() -> None:
    by_layer = {"full_attention": {"rope_theta": 5e4}, "sliding_attention": {"rope_theta": 400.0}}
    fields = without(GEMMA3, "rope_scaling") | {"rope_parameters": by_layer}
    with pytest.raises(ConfigError, match=r"^rope_local_base_freq = 300\.0: rope_parameters\.rope_theta is 400\.0"):
        spec_from_fields(fields, "x")
    assert attentions(fields | {"rope_local_base_freq": 400.0})[0].rotary == RotarySpec(dim=16, theta=400.0)


def test_layers_of_smollm3_without_positions() -> None:
    def rotate(**more: Any) -> list[bool]:
        return [each.rotary is not None for each in attentions(without(SMOLLM3, "no_rope_layer_interval") | more)]

    assert rotate(num_hidden_layers=5) == [True, True, True, False, True]
    assert rotate(no_rope_layer_interval=2) == [True, False, True]
    assert rotate(no_rope_layers=[0, 1, 1, 0, 0]) == [False, True, True]  # as in transformers, more than needed
    kinds = [layer.kind for layer in spec_from_fields(SMOLLM3, "x").layers]
    assert kinds == ["dense", "dense_no_rope", "dense"]
    none = spec_from_fields(SMOLLM3 | {"no_rope_layers": [0, 0, 0]}, "x")  # the mark would tell no layers apart
    assert [layer.kind for layer in none.layers] == ["dense"] * 3
    for given, said in (
        ([1, 1], r"^no_rope_layers = 2: must describe 3 layers, as many as num_hidden_layers"),
        ([1, 2, 0], r"^no_rope_layers\[1\] = 2: must be int <= 1"),
    ):
        with pytest.raises(ConfigError, match=said):
            rotate(no_rope_layers=given)


def test_a_window_of_smollm3_is_that_of_layers_without_positions() -> None:
    fields = SMOLLM3 | {"sliding_window": 9}
    assert windows(fields) == [None] * 3
    assert windows(fields | {"use_sliding_window": True}) == [None, 9, None]
    published = fields | {"use_sliding_window": True, "max_window_layers": 28}
    assert windows(published) == [None, 9, None]
    assert "max_window_layers = 28 (no code of SmolLM3 reads it)" in spec_from_fields(published, "x").passed_over_fields
    kinds = ["sliding_attention", "full_attention", "full_attention"]
    assert windows(fields | {"use_sliding_window": True, "layer_types": kinds}) == [9, None, None]


def test_a_field_that_speaks_of_rotation_in_some_layers_only() -> None:
    with pytest.raises(ConfigError, match=r"^use_rope = true: speaks of rotary positions, which the model .* in some"):
        spec_from_fields(SMOLLM3 | {"use_rope": True}, "x")
    assert spec_from_fields(OLMO3 | {"use_rope": True}, "x")


# The text parts of google/gemma-3-4b-pt and -12b-pt, which leave out what transformers' class has by default. The
# totals are those of the checkpoints, 4,300,079,472 and 12,187,325,040, less 416,866,032 of the vision tower and less
# the projection to the text's width, 1152 x (width + 1).
TEXT_PARTS: dict[str, tuple[dict[str, Any], int]] = {
    "4b": (
        {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34},
        4_300_079_472 - 416_866_032 - 1152 * 2561,
    ),
    "12b": (
        {"hidden_size": 3840, "intermediate_size": 15360, "num_hidden_layers": 48}
        | {"num_attention_heads": 16, "num_key_value_heads": 8},
        12_187_325_040 - 416_866_032 - 1152 * 3841,
    ),
}


@pytest.mark.parametrize(("sizes", "total"), TEXT_PARTS.values(), ids=TEXT_PARTS)
def test_the_text_part_of_a_model_with_images(sizes: dict[str, Any], total: int) -> None:
    text = sizes | {"model_type": "gemma3_text", "sliding_window": 1024}
    text |= {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}}
    whole = {"model_type": "gemma3", "text_config": text, "vision_config": {"hidden_size": 1152}}
    whole |= {"architectures": ["Gemma3ForConditionalGeneration"], "mm_tokens_per_image": 256}
    spec = read_model(whole, text_only=True)
    assert isinstance(spec, ModelSpec)
    assert parameters(spec).total == total
    assert "vocab_size = 262208" in spec.defaulted_fields


def test_the_class_of_a_text_part_names_its_family() -> None:
    spec = read_model(without(GEMMA3, "model_type"))
    assert isinstance(spec, ModelSpec)
    assert spec.model_type == "gemma3_text"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"attn_logit_softcapping": 50.0}, r"^attn_logit_softcapping = 50\.0: must be null"),
        ({"use_bidirectional_attention": True}, "^use_bidirectional_attention = true: must be false"),
        ({"sliding_window_pattern": 0}, "^sliding_window_pattern = 0: must be int >= 1"),
        ({"layer_types": ["chunked_attention"] * 3}, "^layer_types = 'chunked_attention': is not known"),
    ],
    ids=str,
)
def test_what_gemma_3_does_not_have(more: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        spec_from_fields(GEMMA3 | more, "x")
