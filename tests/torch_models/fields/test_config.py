"""What a config may say, and the one line that names file, field, value and rule where it may not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.shrunken import DEEPSEEK_V3, FAMILIES, LLAMA
from torch_models.errors import ConfigError, UserError
from torch_models.fields.config import read_spec, spec_from_fields
from torch_models.fields.known_fields import EXPERT_COUNTS
from torch_models.rope_scaling import LinearRopeScaling, Llama3RopeScaling, YarnRopeScaling
from torch_models.spec import ModelSpec, RotarySpec

WriteConfig = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> WriteConfig:
    def write_config(text: str) -> Path:
        path = tmp_path / "bad_config.json"
        path.write_text(text, encoding="utf-8")
        return path

    return write_config


def without(fields: dict[str, Any], field: str) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name != field}


# --- Files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("{'hidden_size': 1}", "not valid JSON"),
        ("[1, 2]", r"must be a JSON object of config fields, but is \[1, 2\]"),
        ("null", "must be a JSON object of config fields, but is null"),
        ('{"vocab_size": 1, "vocab_size": 2}', "vocab_size = 2: the field occurs twice; its first value is 1"),
        ('{"rope_scaling": {"factor": 1, "factor": 2}}', "factor = 2: the field occurs twice"),
        ('{"rms_norm_eps": NaN}', "rms_norm_eps = nan: must be a finite number"),
        ('{"rms_norm_eps": Infinity}', "rms_norm_eps = inf: must be a finite number"),
        ('{"rms_norm_eps": 1e400}', "rms_norm_eps = inf: must be a finite number"),
        ('{"rms_norm_eps": {"__float__": "-Infinity"}}', "rms_norm_eps = -inf: must be a finite number"),
        ('{"rope_scaling": {"factor": NaN}}', r"rope_scaling\.factor = nan: must be a finite number"),
        ('{"time_step_limit": [0, NaN]}', "time_step_limit = nan: must be a finite number"),
        ("[" * 100_000, "nested too deeply"),
        ('{"vocab_size": ' + "9" * 5000 + "}", "not valid JSON: a number has too many digits$"),
    ],
    ids=lambda text: text[:24],
)
def test_a_file_that_is_no_config(text: str, rule: str, write: WriteConfig) -> None:
    path = write(text)
    with pytest.raises(UserError, match=rule) as caught:
        read_spec(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "bad_config.json"
    path.write_bytes(b"\xff\xfe\x00{}")
    with pytest.raises(UserError, match="not valid JSON"):
        read_spec(path)


def test_a_missing_file_lists_the_configs_there_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no_such\.json: no such file, and configs/ has only .*llama_7b_config\.json"):
        read_spec(tmp_path / "no_such.json")


@pytest.mark.parametrize("path", ["/dev/null", "/dev/zero"])
def test_a_device(path: str) -> None:
    with pytest.raises(UserError, match="must be a file of JSON, but is no regular file"):
        read_spec(path)


def test_a_path_that_cannot_be() -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_spec("a\0b")
    with pytest.raises(UserError, match="cannot be read"):
        read_spec("x" * 5000 + ".json")


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge_config.json"
    with path.open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(UserError, match="1000000000000 bytes; a config has at most"):
        read_spec(path)


def test_a_name_in_configs_needs_no_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_spec("llama_7b_config.json") == read_spec("llama_7b") == read_spec("llama_7b_config")
    assert read_spec("llama_7b").name == "llama_7b"


def test_a_file_of_that_name_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "llama_7b_config.json").write_text(json.dumps(LLAMA))
    assert read_spec("llama_7b_config.json").hidden_size == 64


def test_the_gpu_catalogue_is_no_config() -> None:
    with pytest.raises(UserError, match="no such file"):
        read_spec("gpus.json")


# --- Fields ----------------------------------------------------------------------------------------------------

BAD_FIELDS: list[tuple[dict[str, Any], str]] = [
    (without(LLAMA, "hidden_size"), "hidden_size = null: is missing and has no default"),
    (without(DEEPSEEK_V3, "q_lora_rank"), "q_lora_rank = null: is missing and has no default"),
    (LLAMA | {"hidden_size": "64"}, "hidden_size = '64': must be int, is str"),
    (LLAMA | {"hidden_size": 64.5}, r"hidden_size = 64\.5: must be int"),
    (LLAMA | {"hidden_size": True}, "hidden_size = true: must be int, is bool"),
    (LLAMA | {"hidden_size": None}, "hidden_size = null: must be int, is null"),
    (LLAMA | {"hidden_size": 0}, "hidden_size = 0: must be int >= 1"),
    (LLAMA | {"hidden_size": -64}, "hidden_size = -64: must be int >= 1"),
    (LLAMA | {"hidden_size": 10**30}, "hidden_size = 1000000000000000000000000000000: must be int <= 1048576"),
    (LLAMA | {"hidden_size": 10**400}, "hidden_size = an integer of 1329 bits: must be int <= 1048576"),
    (LLAMA | {"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000: must be int <= 100000"),
    (LLAMA | {"rms_norm_eps": -1e-6}, "rms_norm_eps = -1e-06: must be float > 0"),
    (LLAMA | {"rms_norm_eps": float("inf")}, "rms_norm_eps = inf: must be a finite number"),
    (LLAMA | {"tie_word_embeddings": 1}, "tie_word_embeddings = 1: must be bool, is int"),
    (LLAMA | {"hidden_act": "swish9"}, "hidden_act = 'swish9'"),
    (LLAMA | {"num_attention_heads": 7}, r"hidden_size \(64\) must be divisible by num_attention_heads \(7\)"),
    (
        LLAMA | {"num_key_value_heads": 3},
        r"num_attention_heads \(8\) must be divisible by num_key_value_heads \(3\)",
    ),
    (LLAMA | {"num_key_value_heads": 16}, r"must be divisible by num_key_value_heads \(16\)"),
    (LLAMA | {"head_dim": 7}, "head_dim = 7: the rotated channels of a head must be even in number"),
    (LLAMA | {"num_attention_heads": 4096, "head_dim": 512}, r"num_attention_heads \* head_dim = 2097152: must be at"),
    (
        LLAMA | {"hidden_size": 72, "num_attention_heads": 24},
        "hidden_size / num_attention_heads = 3: the rotated channels of a head must be even",
    ),
    (LLAMA | {"hidden_act": "\ud800"}, r"hidden_act = '\\ud800': is not valid text"),
    (LLAMA | {"hidden_act": "relu"}, "hidden_act = 'relu': must be 'silu' or 'gelu' or 'gelu_pytorch_tanh'"),
    (
        LLAMA | {"architectures": ["MistralForCausalLM"]},
        "architectures = 'MistralForCausalLM': is not a language model of",
    ),
    (LLAMA | {"architectures": ["LlamaForSequenceClassification"]}, "is not a language model of model_type llama"),
    (LLAMA | {"x\r\x1b[2J\u2028": 1}, r"x\\r\\x1b\[2J\\u2028 = 1: this field is not understood"),
    (LLAMA | {"y" * 10**6: 1}, "y… = 1: this field is not understood"),
    (
        LLAMA | {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_theta": 1e4}},
        r"rope_scaling = .*: is another name of rope_parameters, which is \{'rope_theta': 10000\.0\}",
    ),
    (
        LLAMA
        | {"rope_scaling": {"type": "yarn", "factor": 2, "original_max_position_embeddings": 8, "beta_fast": 0.5}},
        r"rope_scaling\.beta_fast = 0\.5: must be at least beta_slow",
    ),
    (
        without(FAMILIES["qwen3_moe"], "num_key_value_heads"),
        "num_key_value_heads = null: is missing and has no default",
    ),
    (FAMILIES["gpt_oss"] | {"experts_per_token": 5}, "experts_per_token = 5: is another name of num_experts_per_tok"),
    (FAMILIES["gpt_oss"] | {"initial_context_length": 5}, "initial_context_length = 5: rope_scaling"),
    (without(FAMILIES["gpt_oss"], "rope_scaling"), "rope_scaling = null: is missing and has no default"),
    (FAMILIES["mistral"] | {"attention_bias": True}, "attention_bias = true: must be false"),
    (FAMILIES["deepseek_v2"] | {"rope_interleave": False}, "rope_interleave = false"),
    (FAMILIES["deepseek_v32"] | {"q_lora_rank": None}, "q_lora_rank = null: must be a number: the indexer"),
    (FAMILIES["deepseek_v32"] | {"index_head_dim": 6}, "index_head_dim = 6: must be at least qk_rope_head_dim \\(8\\)"),
    (FAMILIES["deepseek_v32"] | {"layer_types": ["full_attention"] * 4}, "layer_types = 'full_attention': must be in"),
    (FAMILIES["deepseek_v32"] | {"mlp_layer_types": ["dense"] * 3}, "mlp_layer_types = 3: must name 4 layers"),
    (FAMILIES["deepseek_v32"] | {"mlp_layer_types": ["dense", "moe"] * 2}, "mlp_layer_types = 'moe': is not known"),
    (without(FAMILIES["deepseek_v32"], "index_topk"), "index_topk"),
    (
        FAMILIES["glm_moe_dsa"] | {"indexer_types": ["full", "shared"] * 2},
        "indexer_types = 'shared': layers that share",
    ),
    (FAMILIES["glm_moe_dsa"] | {"index_topk_freq": 2}, "index_topk_freq = 2: layers that share the indexer"),
    (FAMILIES["glm_moe_dsa"] | {"index_topk_pattern": "FSFS"}, "index_topk_pattern = 'FSFS': layers that share"),
    (
        LLAMA | {"model_type": "lama"},
        "model_type = 'lama': is not known; must be one of .*llama",
    ),
    (LLAMA | {"model_type": 7}, "model_type = 7: is not known"),
    (
        without(without(LLAMA, "model_type"), "architectures"),
        "model_type = null: is missing: it names the family",
    ),
    (LLAMA | {"num_layers": 4}, "num_layers = 4: is another name of num_hidden_layers, which is 3"),
    (LLAMA | {"hidden_sizes": 64}, r"hidden_sizes = 64: this field is not understood; did you mean hidden_size\?"),
    (LLAMA | {"sliding_window": 4096}, "sliding_window = 4096: describes layers with a sliding window, which is not"),
    (LLAMA | {"num_experts": 8}, "num_experts = 8: describes a mixture of experts, which is not modelled for llama"),
    (LLAMA | {"is_encoder_decoder": True}, "is_encoder_decoder = true: must be false: nothing else is modelled"),
    (LLAMA | {"rope_scaling": {"type": "longrope"}}, r"rope_scaling\.short_factor = null: is missing"),
    (LLAMA | {"rope_scaling": {"type": 7}}, r"rope_scaling\.rope_type = 7: must be the name of a type"),
    (LLAMA | {"rope_scaling": {"type": "linear"}}, r"rope_scaling\.factor = null: is missing"),
    (LLAMA | {"rope_scaling": {"type": "linear", "factor": "2"}}, r"rope_scaling\.factor = '2': must be float"),
    (
        LLAMA | {"rope_scaling": {"type": "yarn", "rope_type": "linear"}},
        r"rope_scaling\.type = 'yarn': is another name",
    ),
    (LLAMA | {"rope_scaling": "linear"}, "rope_scaling = 'linear': must be object"),
    (LLAMA | {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 2e4}}, r"rope_theta = 10000\.0: rope_parameters"),
    (
        LLAMA
        | {
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 4.0,
                "high_freq_factor": 1.0,
                "original_max_position_embeddings": 16,
            }
        },
        r"rope_scaling\.high_freq_factor = 1\.0: must be at least low_freq_factor \(4\.0\)",
    ),
    (
        DEEPSEEK_V3 | {"num_experts_per_tok": 17},
        r"num_experts_per_tok = 17: must be at most the number of experts \(16\)",
    ),
    (
        DEEPSEEK_V3 | {"num_experts_per_tok": 9},
        r"num_experts_per_tok = 9: must be at most the 8 experts of topk_group \(2\) groups",
    ),
    (DEEPSEEK_V3 | {"n_group": 5}, r"n_group = 5: must divide the number of experts \(16\)"),
    (DEEPSEEK_V3 | {"n_group": 16}, "n_group = 16: a group ranks by its two best experts"),
    (DEEPSEEK_V3 | {"topk_group": 5}, r"topk_group = 5: must be at most n_group \(4\)"),
    (
        DEEPSEEK_V3 | {"first_k_dense_replace": 5},
        r"first_k_dense_replace = 5: must be at most num_hidden_layers \(4\)",
    ),
    (DEEPSEEK_V3 | {"num_key_value_heads": 2}, "num_key_value_heads = 2: must be 4, num_attention_heads"),
    (DEEPSEEK_V3 | {"head_dim": 12}, "head_dim = 12: must be 8, qk_rope_head_dim, or the channels of a query or a"),
    (DEEPSEEK_V3 | {"qk_rope_head_dim": 7}, "qk_rope_head_dim = 7: the rotated channels of a head must be even"),
    (DEEPSEEK_V3 | {"moe_intermediate_size": 25}, "intermediate_size of an expert = 25: must be a multiple of 8"),
    (DEEPSEEK_V3 | {"scoring_func": "softmax"}, "scoring_func = 'softmax': must be 'sigmoid'"),
    (DEEPSEEK_V3 | {"topk_method": "greedy"}, "topk_method = 'greedy': must be 'noaux_tc'"),
    (
        DEEPSEEK_V3 | {"num_nextn_predict_layers": 1, "num_mtp_layers": 2},
        "num_mtp_layers = 2: is another name of num_nextn_predict_layers, which is 1",
    ),
]


@pytest.mark.parametrize(("fields", "message"), BAD_FIELDS, ids=[message[:50] for _, message in BAD_FIELDS])
def test_a_field_that_breaks_a_rule(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        spec_from_fields(fields, "bad")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_the_error_names_the_file(write: WriteConfig) -> None:
    path = write(json.dumps(LLAMA | {"hidden_size": 0}))
    with pytest.raises(ConfigError) as caught:
        read_spec(path)
    assert str(caught.value) == f"{path}: hidden_size = 0: must be int >= 1"


def test_transformers_own_config_file_is_read(tmp_path: Path) -> None:
    import transformers

    for fields in (LLAMA | {"num_key_value_heads": 2}, DEEPSEEK_V3):
        transformers.AutoConfig.for_model(**fields).save_pretrained(tmp_path)
        spec, direct = read_spec(tmp_path / "config.json"), spec_from_fields(fields, "config")
        assert (spec.layers, spec.mtp_layers, spec.vocab_size) == (direct.layers, direct.mtp_layers, direct.vocab_size)
        assert spec.sequence_length == direct.sequence_length


def test_names_of_course_configs() -> None:
    renamed = without(LLAMA, "num_hidden_layers") | {"num_layers": 3, "dtype": "float16"}
    assert spec_from_fields(renamed, "x").layers == spec_from_fields(LLAMA, "x").layers
    assert spec_from_fields(LLAMA | {"num_layers": 3}, "x").layers == spec_from_fields(LLAMA, "x").layers


def test_a_config_nested_in_text_config() -> None:
    inner = without(LLAMA, "tie_word_embeddings")
    nested = {"model_type": "wrapper", "architectures": ["Wrapper"], "tie_word_embeddings": True, "text_config": inner}
    assert spec_from_fields(nested, "x").layers == spec_from_fields(LLAMA, "x").layers
    assert spec_from_fields(nested, "x").tie_word_embeddings
    unnamed = {
        "architectures": ["LlamaForCausalLM"],
        "text_config": without(without(LLAMA, "model_type"), "architectures"),
    }
    assert spec_from_fields(unnamed, "x").layers == spec_from_fields(LLAMA, "x").layers
    with pytest.raises(ConfigError, match=r"text_config\.hidden_size = 64: differs from the value outside text_config"):
        spec_from_fields(nested | {"hidden_size": 32}, "x")
    with pytest.raises(
        ConfigError, match=r"model_type = 'wrapper': is made of several models \(text_config, vision_config\)"
    ):
        spec_from_fields(nested | {"vision_config": {"hidden_size": 4}}, "x")


@pytest.mark.parametrize("alias", ["num_experts", "num_local_experts", "n_routed_experts"])
@pytest.mark.parametrize(
    "family", ["mixtral", "qwen3_moe", "minimax_m2", "gpt_oss", "glm4_moe", "deepseek_v2", "deepseek_v3"]
)
def test_the_number_of_experts_has_three_names(family: str, alias: str) -> None:
    fields = FAMILIES[family]
    name = next(field for field in EXPERT_COUNTS if field in fields)
    renamed = without(fields, name) | {alias: fields[name]}
    assert spec_from_fields(renamed, "x").layers == spec_from_fields(fields, "x").layers
    if alias != name:
        with pytest.raises(ConfigError, match=f"{alias} = 999: is another name of {name}"):
            spec_from_fields(fields | {alias: 999}, "x")


def test_other_tools_names() -> None:
    renamed = {
        {"num_hidden_layers": "n_layer", "hidden_size": "n_embd", "num_attention_heads": "n_head"}.get(
            field, field
        ): value
        for field, value in LLAMA.items()
    }
    assert spec_from_fields(renamed, "x").layers == spec_from_fields(LLAMA, "x").layers


def test_the_family_is_read_from_architectures() -> None:
    assert spec_from_fields(without(LLAMA, "model_type"), "x") == spec_from_fields(LLAMA, "x")


def test_sequence_length_and_its_source() -> None:
    def length(**fields: int) -> tuple[int | None, str | None]:
        spec = spec_from_fields(without(LLAMA, "max_position_embeddings") | fields, "x")
        return spec.sequence_length, spec.sequence_length_source

    assert length(max_sequence_length=7, max_position_embeddings=9) == (7, "max_sequence_length")
    assert length(max_position_embeddings=9) == (9, "max_position_embeddings")
    assert length() == (None, None)


def test_defaults_are_listed() -> None:
    spec = spec_from_fields(LLAMA, "x")
    assert "rms_norm_eps = 1e-06" in spec.defaulted_fields
    assert "tie_word_embeddings = false" in spec.defaulted_fields
    assert not any(field.startswith("hidden_size") for field in spec.defaulted_fields)


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        (None, None),
        ({"rope_type": "default"}, None),
        ({"type": "linear", "factor": 2}, LinearRopeScaling(factor=2.0)),
        (
            {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "mscale": 1.0},
            YarnRopeScaling(factor=40.0, original_max_position_embeddings=4096, mscale=1.0),
        ),
        (
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
            Llama3RopeScaling(
                factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
            ),
        ),
    ],
)
def test_rope_scaling_in_old_and_new_form(scaling: dict[str, Any] | None, expected: object) -> None:
    def rotary(**fields: Any) -> RotarySpec:
        return spec_from_fields(LLAMA | fields, "x").layers[0].attention.rotary

    assert rotary(rope_theta=5e5, rope_scaling=scaling) == RotarySpec(dim=8, theta=5e5, scaling=expected)  # type: ignore[arg-type]
    new_form = (scaling or {}) | {"rope_theta": 5e5}
    assert rotary(rope_parameters=new_form) == RotarySpec(dim=8, theta=5e5, scaling=expected)  # type: ignore[arg-type]
    assert rotary(rope_parameters=new_form, rope_scaling=new_form) == rotary(rope_parameters=new_form)


def test_which_layers_are_mixtures_of_experts() -> None:
    def kinds(**fields: int) -> list[str]:
        return [layer.kind for layer in spec_from_fields(DEEPSEEK_V3 | {"num_hidden_layers": 6} | fields, "x").layers]

    assert kinds(first_k_dense_replace=3) == ["dense"] * 3 + ["moe"] * 3
    assert kinds(first_k_dense_replace=0) == ["moe"] * 6
    assert kinds(first_k_dense_replace=1, moe_layer_freq=2) == ["dense", "dense", "moe", "dense", "moe", "dense"]


def test_layer_groups_count_every_layer() -> None:
    spec: ModelSpec = spec_from_fields(DEEPSEEK_V3 | {"moe_layer_freq": 2, "num_hidden_layers": 9}, "x")
    groups = spec.layer_groups()
    assert [(layer.kind, count) for layer, count in groups] == [("dense", 5), ("moe", 4)]
    assert sum(count for _, count in groups) == len(spec.layers)
