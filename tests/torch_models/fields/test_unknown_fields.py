"""Fields that no family declares: passed over and listed, refused, or ignored on the caller's word."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from counting.via_transformers.reading.config import read_foreign
from tests.foreign_families import GPT2
from tests.shrunken import DEEPSEEK_V3, FAMILIES, GEMMA2, LLAMA, MISTRAL, MIXTRAL, QWEN2, QWEN3, QWEN3_MOE
from torch_models.errors import ArgumentError, ConfigError, UserError
from torch_models.fields.architecture_fields import ARCHITECTURE_FIELDS
from torch_models.fields.config import ForeignConfig, family, read_model, read_models, read_spec, spec_from_fields
from torch_models.fields.known_fields import (
    ACTIVATION_FIELDS,
    COUNT_FREE_FIELDS,
    FIXED_FIELDS,
    IRRELEVANT_FIELDS,
    changes_no_count,
    irrelevance,
)
from torch_models.fields.switches import INVERTED, NAMED_VALUES, SWITCHES
from torch_models.fields.unknown_fields import is_comment, is_off
from torch_models.spec import ModelSpec


def model(spec: ModelSpec) -> ModelSpec:
    """The spec without the lists of fields and their text."""
    notes = dict.fromkeys(("passed_over_fields", "ignored_fields", "defaulted_fields"), ())
    return msgspec.structs.replace(spec, **notes, config_json=None)


def listed(spec: ModelSpec) -> dict[str, str]:
    """The fields passed over -> the reason."""
    entries = [entry.partition(" = ") for entry in spec.passed_over_fields]
    return {field: rest.partition(" (")[2].removesuffix(")") for field, _, rest in entries}


@pytest.mark.parametrize("fields", [LLAMA, DEEPSEEK_V3], ids=["llama", "deepseek_v3"])
def test_fields_without_influence_have_none_and_are_listed(fields: dict[str, Any]) -> None:
    assert all(reason for reason in IRRELEVANT_FIELDS.values())
    noise = dict.fromkeys(IRRELEVANT_FIELDS, "anything") | FIXED_FIELDS | {"of_the_future": None}
    del noise["architectures"]
    spec = spec_from_fields(fields | noise, "x")
    assert model(spec) == model(spec_from_fields(fields, "x"))
    assert listed(spec).keys() == {"architectures", *(field for field in noise if not field.startswith("_"))}


# --- Off, on, and comments ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, False, 0, 0.0, "", [], {}])
def test_an_unknown_field_that_is_off_is_passed_over_and_listed(value: Any) -> None:
    assert is_off(value)
    spec = spec_from_fields(LLAMA | {"of_the_future": value}, "x")
    assert model(spec) == model(spec_from_fields(LLAMA, "x"))
    assert listed(spec)["of_the_future"] == "is off"


@pytest.mark.parametrize("value", [True, 1, -1, 0.5, "no", [0], {"a": None}])
def test_an_unknown_field_that_is_on_is_refused(value: Any) -> None:
    assert not is_off(value)
    rule = "of_the_future = .*: this field is not understood; if it does not change the architecture, name it in ignore"
    with pytest.raises(ConfigError, match=rule):
        spec_from_fields(LLAMA | {"of_the_future": value}, "x")


def test_a_field_that_begins_with_an_underscore_is_a_comment_at_any_depth() -> None:
    scaling = {"type": "linear", "factor": 2.0}
    noted = LLAMA | {"_anything": True, "_hidden_size": 9, "rope_scaling": scaling | {"_why": "longer texts"}}
    assert spec_from_fields(noted, "x") == spec_from_fields(LLAMA | {"rope_scaling": scaling}, "x")
    inner = {"model_type": "wrapper", "_outer": 1, "text_config": LLAMA | {"_inner": [1]}}
    assert model(spec_from_fields(inner, "x")) == model(spec_from_fields(LLAMA, "x"))


OF_TRAINING = {
    "attention_dropout": 0.1,
    "hidden_dropout": 0.1,
    "resid_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "attn_pdrop": 0.1,
    "classifier_dropout": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "summary_first_dropout": 0.1,
    "router_aux_loss_coef": 0.01,
    "aux_loss_alpha": 0.001,
    "moe_aux_loss_coeff": 0.01,
    "moe_z_loss_coeff": 1e-3,
    "router_z_loss_coef": 1e-3,
    "load_balance_coeff": 1e-3,
    "z_loss_coefficient": 1e-4,
    "initializer_factor": 1.0,
    "unsloth_version": "2025.1",
    "unsloth_fixed": True,
    "unsloth_tiled_mlp": True,
    "top_k": 50,
    "min_p": 0.1,
    "bos_token_id": 1,
    "image_token_index": 9,
    "boi_token_id": 9,
    "eod_id": 9,
    "use_flash_attn": True,
    "use_flash_attention_2": True,
    "fused_rms_norm": True,
    "attn_implementation": "flash_attention_2",
    "n_ctx": 2048,
    "model_max_length": 4096,
    "auto_map": {"AutoConfig": "own.Config"},
    "quantization": {"bits": 4},
}


@pytest.mark.parametrize("fields", FAMILIES.values(), ids=FAMILIES.keys())
def test_fields_of_training_generation_and_files_are_passed_over_in_every_family(fields: dict[str, Any]) -> None:
    spec = spec_from_fields(fields | OF_TRAINING, "x")
    assert model(spec) == model(spec_from_fields(fields, "x"))
    assert listed(spec).keys() >= OF_TRAINING.keys()
    assert listed(spec)["attention_dropout"] == "is a setting of training; the analysis trains without dropout"


# --- What repeats the model that is built ------------------------------------------------------------------------

REPEATED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (LLAMA, {"qkv_bias": False, "use_qk_norm": False, "mlp_bias": False}),
    (LLAMA, {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}),
    (LLAMA, {"sliding_window": None, "max_window_layers": 28}),
    (LLAMA, {"layer_types": ["full_attention"] * 3}),
    (LLAMA, {"num_kv_heads": 8, "kv_channels": 8, "d_model": 64, "ffn_dim": 112, "n_heads": 8}),
    (LLAMA, {"activation": "swiglu", "activation_function": "silu"}),
    (LLAMA, {"moe_layer_freq": 1, "rotary_pct": 1.0, "num_experts": 0, "num_nextn_predict_layers": 0}),
    (MISTRAL, {"layer_types": ["sliding_attention"] * 3, "use_sliding_window": True}),
    (MISTRAL | {"sliding_window": None}, {"use_sliding_window": False, "max_window_layers": 28}),
    (QWEN2, {"qkv_bias": True}),
    (QWEN3, {"use_qk_norm": True, "qkv_bias": False}),
    (QWEN3_MOE, {"use_qk_norm": True, "qkv_bias": False, "shared_expert_intermediate_size": 0}),
    (MIXTRAL, {"layer_types": ["full_attention"] * 3, "max_window_layers": 3}),
    (DEEPSEEK_V3, {"head_dim": 8, "qk_head_dim": 24}),
    (DEEPSEEK_V3, {"head_dim": 24}),
    (DEEPSEEK_V3, {"head_dim": 20}),
]


@pytest.mark.parametrize(("fields", "more"), REPEATED, ids=lambda value: "-".join(map(str, value))[:60])
def test_a_field_that_repeats_the_model_is_passed_over(fields: dict[str, Any], more: dict[str, Any]) -> None:
    spec = spec_from_fields(fields | more, "x")
    assert model(spec) == model(spec_from_fields(fields, "x"))
    assert listed(spec).keys() >= more.keys() - set(family(fields["model_type"]).Config.__struct_fields__)


CONTRADICTING: list[tuple[dict[str, Any], str]] = [
    (
        {field: value for field, value in MISTRAL.items() if field != "sliding_window"} | {"max_window_layers": 2},
        "max_window_layers = 2: describes layers with a sliding window, which is not modelled for mistral",
    ),
    (GEMMA2 | {"sliding_window_pattern": 6}, "sliding_window_pattern = 6: describes layers with a sliding window, whi"),
    (LLAMA | {"qkv_bias": True}, "qkv_bias = true: the model is built without biases of queries, keys and values"),
    (LLAMA | {"use_qk_norm": True}, "use_qk_norm = true: the model is built without norms of queries and keys"),
    (QWEN2 | {"qkv_bias": False}, "qkv_bias = false: the model is built with biases of queries, keys and values"),
    (QWEN3_MOE | {"use_qk_norm": False}, "use_qk_norm = false: the model is built with norms of queries and keys"),
    (LLAMA | {"use_sliding_window": True}, "use_sliding_window = true: the model is built without a sliding window"),
    (MISTRAL | {"use_sliding_window": False}, "use_sliding_window = false: the model is built with a sliding window"),
    (DEEPSEEK_V3 | {"use_qk_norm": True}, "use_qk_norm = true: the model is built without norms"),
    (
        LLAMA | {"layer_types": ["full_attention", "sliding_attention"] * 2},
        r"layer_types = \[.*: describes layers of se",
    ),
    (MISTRAL | {"layer_types": ["full_attention"] * 3}, r"layer_types = \['full_attention', .*: describes layers of"),
    (
        LLAMA | {"sliding_window": 9, "max_window_layers": 2},
        "sliding_window = 9: describes layers with a sliding window",
    ),
    (
        LLAMA | {"num_kv_heads": 2},
        "num_kv_heads = 2: describes the number and the size of attention heads, which is not",
    ),
    (LLAMA | {"kv_channels": 16}, "kv_channels = 16: describes the number and the size of attention heads, which is"),
    (LLAMA | {"activation": "geglu"}, "activation = 'geglu': this field is not understood"),
    (LLAMA | {"is_causal": False}, "is_causal = false: must be true: nothing else is modelled"),
    (
        LLAMA | {"hybrid_layer_pattern": [0, 1, 1]},
        "hybrid_layer_pattern = .*: describes layers of several kinds, which is",
    ),
    (LLAMA | {"linear_attn_config": {"a": 1}}, "linear_attn_config = .*: describes linear attention, which is not mod"),
    (
        LLAMA | {"num_nextn_predict_layers": 1},
        "num_nextn_predict_layers = 1: describes multi-token prediction, which is",
    ),
    (
        LLAMA | {"moe_layer_freq": 2},
        "moe_layer_freq = 2: describes a mixture of experts, which is not modelled for llama",
    ),
    (
        LLAMA | {"swiglu_alpha": 1.7},
        "swiglu_alpha = 1.7: describes another feed-forward, which is not modelled for llama",
    ),
]


@pytest.mark.parametrize(("fields", "said"), CONTRADICTING, ids=[said[:50] for _, said in CONTRADICTING])
def test_a_field_that_changes_the_architecture_is_refused_without_advice_to_remove_it(
    fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{said}") as caught:
        spec_from_fields(fields, "x")
    assert "remove" not in str(caught.value)
    if "not understood" not in said:
        assert "ignore_fields" not in str(caught.value)


def test_what_transformers_does_not_read_is_listed() -> None:
    spec = spec_from_fields(GEMMA2 | {"hidden_act": "silu"}, "x")
    assert model(spec) == model(spec_from_fields(GEMMA2, "x"))
    assert listed(spec)["hidden_act"] == "the activation is gelu_pytorch_tanh, by hidden_activation"
    windows = {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2}
    spec = spec_from_fields(QWEN3_MOE | windows, "x")
    assert [layer.window for layer in spec.layers] == [9, 9, 9]
    assert listed(spec)["max_window_layers"] == "every layer has the window"


def test_a_head_size_that_is_left_out_follows_from_the_width() -> None:
    fields = {field: value for field, value in QWEN3_MOE.items() if field != "head_dim"}
    assert model(spec_from_fields(fields, "x")) == model(spec_from_fields(fields | {"head_dim": 8}, "x"))


def test_no_field_of_the_architecture_is_irrelevant() -> None:
    assert len(ARCHITECTURE_FIELDS) > 300
    deciding = {*ARCHITECTURE_FIELDS, *FIXED_FIELDS, *SWITCHES, *INVERTED, *NAMED_VALUES, *ACTIVATION_FIELDS}
    assert not [field for field in deciding if irrelevance(field) or changes_no_count(field, True)]
    assert not [field for field in {**IRRELEVANT_FIELDS, **COUNT_FREE_FIELDS} if is_comment(field)]


COUNT_FREE: dict[str, Any] = {
    "norm_topk_prob": True,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "rope_interleave": True,
    "router_jitter_noise": 0.1,
    "initial_context_length": 4096,
    "embedding_multiplier": 12.0,
    "layer_norm_eps": 1e-5,
    "use_mrope": True,
    "rope_interleaved": True,
}


@pytest.mark.parametrize("field", COUNT_FREE)
def test_a_field_of_another_family_that_changes_no_count_is_passed_over(field: str) -> None:
    spec = spec_from_fields(LLAMA | {field: COUNT_FREE[field]}, "x")
    assert listed(spec)[field]
    with pytest.raises(ArgumentError, match=f"'{field}': is understood, and what is understood is not ignored"):
        spec_from_fields(LLAMA | {field: COUNT_FREE[field]}, "x", [field])


OPEN_ENDED: dict[str, Any] = {
    "fused_mlp_experts": 8,
    "flash_attention_sparse": True,
    "fused_rope_dim": 3,
    "use_flash_attn": 8,
    "router_loss_layers": 4,
    "init_range_layers": 3,
    "initializer_layers": 3,
    "summary_layers": 8,
    "residual_dropout_layers": 3,
    "mode": "moe",
    "prefix": 4,
    "moe_group": 4,
    "mtp_extra_layers_in_trunk": 4,
    "unsloth_layers": 4,
    "load_balancing_layers": 3,
    "compression_ratio": 4,
}


@pytest.mark.parametrize("field", OPEN_ENDED)
def test_a_name_that_only_begins_as_a_known_one_is_not_understood(field: str) -> None:
    for fields in (LLAMA, {"model_type": "gpt_bigcode", **GPT2}):
        with pytest.raises(ConfigError, match=f"{field} = .*: (this field is not understood|describes )"):
            read_foreign_or_native(fields | {field: OPEN_ENDED[field]})


def read_foreign_or_native(fields: dict[str, Any]) -> None:
    read = read_model(fields)
    if isinstance(read, ForeignConfig):
        read_foreign(read)


# --- ignore_fields ---------------------------------------------------------------------------------------------


def test_a_named_field_is_ignored_and_listed(tmp_path: Path) -> None:
    fields = LLAMA | {"of_the_future": {"deep": [1]}, "kv_foo": 3}
    names = ("of_the_future", "kv_foo")
    spec = read_spec(fields, ignore_fields=names)
    assert model(spec) == model(read_spec(LLAMA))
    assert spec.ignored_fields == ("of_the_future = an object of 1", "kv_foo = 3")
    assert not spec.passed_over_fields or not set(names) & listed(spec).keys()
    path = tmp_path / "own_config.json"
    path.write_text(json.dumps(fields))
    assert read_model(path, ignore_fields=list(names)) == msgspec.structs.replace(spec, name="own")
    nested = {"model_type": "wrapper", "text_config": fields}
    assert read_spec(nested, ignore_fields=names).ignored_fields == spec.ignored_fields
    with pytest.raises(ConfigError, match="kv_foo = 3: this field is not understood"):
        read_spec(fields, ignore_fields=["of_the_future"])


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("absent", None, "'absent': the config has no such field"),
        ("hidden_size", 64, "'hidden_size': is understood, and what is understood is not ignored"),
        ("model_type", "llama", "'model_type': is understood"),
        ("n_embd", 64, "'n_embd': is understood"),
        ("top_k", 50, "'top_k': is understood"),
        ("attention_dropout", 0.1, "'attention_dropout': is understood"),
        ("moe_layer_freq", 1, "'moe_layer_freq': describes a mixture of experts: it decides the architecture"),
        ("_comment", 1, "'_comment': is a comment, as every field that begins with an underscore"),
        ("hybrid_layer_pattern", [1, 0], "'hybrid_layer_pattern': describes layers of several kinds: it decides the"),
        ("layer_types", ["x"], "'layer_types': describes layers of several kinds: it decides the architecture"),
        ("kv_lora_rank", 512, "'kv_lora_rank': describes multi-head latent attention: it decides the architecture"),
        ("num_experts", 8, "'num_experts': describes a mixture of experts: it decides"),
        ("sliding_window", 9, "'sliding_window': describes layers with a sliding window: it decides"),
        ("topk_method", "greedy", "'topk_method': is understood"),
        ("is_encoder_decoder", True, "'is_encoder_decoder': describes another architecture: it decides"),
        ("qkv_bias", True, "'qkv_bias': describes biases of projections: it decides the architecture"),
        ("use_rope", "own", "'use_rope': describes rotary positions: it decides the architecture"),
        ("vision_config", {"a": 1}, "'vision_config': describes another model beside the decoder: it decides"),
    ],
)
def test_a_field_that_cannot_be_ignored(field: str, value: Any, said: str) -> None:
    fields = LLAMA if field == "absent" else LLAMA | {field: value}
    for read in (read_spec, read_model):
        with pytest.raises(ArgumentError, match=f"^ignore_fields = {said}") as caught:
            read(fields, ignore_fields=[field])
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("names", ["of_the_future", 3, [3], [""], None])
def test_names_that_are_no_names(names: Any) -> None:
    with pytest.raises(ArgumentError, match=r"^ignore_fields = .*: must be "):
        read_spec(LLAMA | {"of_the_future": 1}, ignore_fields=names)


def test_of_several_configs_one_must_have_the_field() -> None:
    with_field = LLAMA | {"of_the_future": 1}
    first, second, third = read_models(
        [LLAMA, with_field, {"model_type": "gpt_bigcode", **GPT2}], ignore_fields=["of_the_future"]
    )
    assert isinstance(first, ModelSpec)
    assert isinstance(second, ModelSpec)
    assert isinstance(third, ForeignConfig)
    assert (first.ignored_fields, second.ignored_fields) == ((), ("of_the_future = 1",))
    assert third.ignore_fields == ()
    with pytest.raises(ArgumentError, match="'of_the_past': none of the configs has such field"):
        read_models([LLAMA, with_field], ignore_fields=["of_the_past"])


# --- Numbers that are not finite -------------------------------------------------------------------------------


@pytest.mark.parametrize("number", ["Infinity", "-Infinity", '{"__float__": "Infinity"}'])
def test_an_infinity_is_read_where_the_field_may_be_infinite(number: str, tmp_path: Path) -> None:
    path = tmp_path / "own_config.json"
    path.write_text(f'{{"model_type": "mamba2", "time_step_limit": [0.0, {number}]}}')
    read = read_model(path)
    assert isinstance(read, ForeignConfig)
    assert read.fields["time_step_limit"] == [0.0, float("-inf" if number[0] == "-" else "inf")]
    path.write_text(f'{{"model_type": "of_two", "part": {{"time_step_limit": [0.0, {number}]}}}}')
    assert isinstance(read_model(path), ForeignConfig)


@pytest.mark.parametrize("number", ["Infinity", "-Infinity", "NaN", '{"__float__": "NaN"}', "1e999"])
def test_elsewhere_the_error_names_the_field(number: str, tmp_path: Path) -> None:
    path = tmp_path / "own_config.json"
    for model_type in ("llama", "gpt2"):
        path.write_text(f'{{"model_type": "{model_type}", "own": {{"deep": [1, {number}]}}}}')
        with pytest.raises(ConfigError, match=r"own_config\.json: own\.deep = -?(inf|nan): must be a finite number$"):
            read_model(path)


def test_a_mapping_that_is_nested_too_deeply() -> None:
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"a": deep}
    with pytest.raises(UserError, match="nested too deeply"):
        read_spec(LLAMA | {"own": deep})
