"""Rules of fields that one family has alone: what breaks them, and what has no effect."""

from typing import Any

import pytest

from tests.shrunken import LLAMA4, MINIMAX_M2, MIXTRAL, QWEN2_MOE
from torch_models.errors import ConfigError
from torch_models.fields.config import spec_from_fields

BAD_FIELDS: list[tuple[dict[str, Any], str]] = [
    (QWEN2_MOE | {"attention_bias": False}, "attention_bias = false: qkv_bias says whether queries, keys"),
    (
        QWEN2_MOE | {"use_sliding_window": True, "sliding_window": 0},
        "sliding_window = 0: must be at least 1 with use_sliding_window",
    ),
    (
        QWEN2_MOE | {"shared_expert_intermediate_size": 0},
        "shared_expert_intermediate_size = 0: must be int >= 1",
    ),
    (
        MINIMAX_M2 | {"partial_rotary_factor": 0.25},
        r"rotary_dim = 8: partial_rotary_factor \(0\.25\) of head_dim \(16\) is 4",
    ),
    (MINIMAX_M2 | {"rotary_dim": 32}, "rotary_dim = 32: must be at most head_dim"),
    (
        MINIMAX_M2 | {"attn_type_list": [1, 1, 1], "sliding_window": 8},
        "^sliding_window = 8: describes layers with a sliding window",
    ),
    (MINIMAX_M2 | {"attn_type_list": [1, 1]}, "attn_type_list = 2: must name 3 layers, as many as num_hidden_layers"),
    (MINIMAX_M2 | {"use_routing_bias": False}, "use_routing_bias = false: the model is built with the router's corr"),
    (
        QWEN2_MOE | {"layer_types": ["sliding_attention"] * 3, "sliding_window": 8},
        "use_sliding_window = false: must be true, since layer_types has sliding_attention",
    ),
]


@pytest.mark.parametrize(("fields", "message"), BAD_FIELDS, ids=[message[:50] for _, message in BAD_FIELDS])
def test_a_field_that_breaks_a_rule(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        spec_from_fields(fields, "bad")
    assert "\n" not in str(caught.value)


def test_fields_of_minimax_m2_that_no_model_of_it_has() -> None:
    beside = {"use_mtp": True, "num_mtp_modules": 3, "mtp_transformer_layers": 1, "layernorm_mlp_beta": 1.0}
    beside |= {
        "use_routing_bias": True,
        "mlp_intermediate_size": 8192,
        "shared_moe_mode": "sigmoid",
        "attn_type_list": [1, 1, 1],
    }
    spec = spec_from_fields(MINIMAX_M2 | beside, "x")
    assert spec.layers == spec_from_fields(MINIMAX_M2, "x").layers
    assert {entry.partition(" = ")[0] for entry in spec.passed_over_fields} >= beside.keys()
    no_modules = "neither the published weights nor transformers have these modules"
    assert f"num_mtp_modules = 3 ({no_modules})" in spec.passed_over_fields


def test_windows_of_qwen2_moe_that_no_layer_has_are_listed() -> None:
    windows = {"sliding_window": 9, "max_window_layers": 2}
    off = spec_from_fields(QWEN2_MOE | windows, "x")
    assert {"sliding_window = 9 (no layer has a window)"} < set(off.passed_over_fields)
    on = spec_from_fields(QWEN2_MOE | windows | {"use_sliding_window": True}, "x")
    assert [layer.window for layer in on.layers] == [9, None, None]
    named = {"layer_types": ["full_attention", "sliding_attention", "full_attention"]}
    by_name = spec_from_fields(QWEN2_MOE | windows | {"use_sliding_window": True} | named, "x")
    assert [layer.window for layer in by_name.layers] == [None, 9, None]


@pytest.mark.parametrize("fields", [MIXTRAL, MINIMAX_M2, LLAMA4], ids=lambda fields: str(fields["model_type"]))
def test_noise_of_training_has_no_part_in_the_model(fields: dict[str, Any]) -> None:
    spec = spec_from_fields(fields | {"router_jitter_noise": 0.1}, "x")
    reason = "is noise on a router's input in training; the analysis trains without it"
    assert f"router_jitter_noise = 0.1 ({reason})" in spec.passed_over_fields
    assert spec.layers == spec_from_fields(fields, "x").layers
