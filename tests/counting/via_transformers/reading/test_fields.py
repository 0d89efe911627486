"""Fields that a family's class in transformers does not declare: the same rule as for the native families."""

from typing import Any

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from counting.analysis import Analysis, analyze
from counting.setup import Setup
from counting.via_transformers.reading.config import ForeignModel, read_foreign
from counting.via_transformers.reading.fields import check_fields, declared_fields, value_of
from tests.foreign_families import FAMILIES, GPT2, SMALL, without
from tests.shrunken import GEMMA4
from torch_models.errors import ArgumentError, ConfigError
from torch_models.fields.config import ForeignConfig, read_model
from torch_models.fields.known_fields import REPEATS

GRANITE: dict[str, Any] = {"model_type": "granite", **SMALL}
QWEN2_VL: dict[str, Any] = {"model_type": "qwen2_vl_text", **SMALL}
QWEN2_VL |= {"rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}
SHORT = Setup(sequence_length=32)


def read(fields: dict[str, Any], *ignore_fields: str) -> ForeignModel:
    model = read_model(fields, ignore_fields=ignore_fields)
    assert isinstance(model, ForeignConfig)
    return read_foreign(model)


def listed(model: ForeignModel) -> dict[str, str]:
    """The fields passed over -> the reason."""
    entries = [entry.partition(" = ") for entry in model.passed_over_fields]
    return {field: rest.partition(" (")[2].removesuffix(")") for field, _, rest in entries}


def counts(analysis: Analysis) -> tuple[object, ...]:
    return analysis.parameters, analysis.layers, analysis.forward_flops


PASSED_OVER: dict[str, Any] = {
    "of_the_future": False,
    "also_of_it": [],
    "auto_map": {"AutoConfig": "own.Config"},
    "unsloth_version": "2025.1",
    "top_k": 50,
    "moe_aux_loss_coeff": 0.1,
    "resid_pdrop": 0.1,
    "attention_dropout": 0.1,
    "max_window_layers": 28,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "head_dim": 16,
    "kv_channels": 16,
    "qkv_bias": False,
    "use_qk_norm": False,
    "activation_function": "gelu",
    "rope_interleave": True,
    "layer_types": ["full_attention"] * 4,
    "attn_type_list": [1, 1, 1, 1],
    "num_nextn_predict_layers": 1,
    "use_mtp": True,
}


def test_fields_that_are_off_or_change_no_count_are_passed_over_and_listed() -> None:
    model = read(GRANITE | PASSED_OVER | {"_comment": "ours"})
    assert listed(model).keys() == PASSED_OVER.keys()
    assert listed(model)["of_the_future"] == "is off"
    assert listed(model)["head_dim"] == "repeats hidden_size / num_attention_heads"
    assert listed(model)["auto_map"] == "points to remote code, which is never run"
    assert listed(model)["resid_pdrop"] == "is a setting of training; the analysis trains without dropout"
    assert listed(model)["attention_dropout"].endswith("what is measured in training mode has it")  # Granite's own
    assert model.ignored_fields == ()
    analysis = analyze(GRANITE | PASSED_OVER, SHORT)
    assert analysis.passed_over_fields == read(GRANITE | PASSED_OVER).passed_over_fields
    assert counts(analysis) == counts(analyze(GRANITE, SHORT))
    assert "(num_nextn_predict_layers = 1, use_mtp = true) is not counted" in " ".join(analysis.notes)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            GRANITE | {"of_the_future": 1},
            "of_the_future = 1: this field is not understood; if it does not change the arc",
        ),
        (GRANITE | {"hiden_size": 9}, r"hiden_size = 9: this field is not understood; did you mean hidden_size\?$"),
        (
            GRANITE | {"hybrid_layer_pattern": [0, 1]},
            "hybrid_layer_pattern = .*: describes layers of several kinds, and tr",
        ),
        (
            GRANITE | {"sliding_window": 9},
            "sliding_window = 9: describes layers with a sliding window, and transformers' G",
        ),
        (
            GRANITE | {"head_dim": 32},
            "head_dim = 32: describes the number and the size of attention heads, and transformers",
        ),
        (GRANITE | {"is_causal": False}, "is_causal = false: must be true: nothing else is modelled"),
        (GRANITE | {"layer_types": ["sliding_attention"] * 4}, "layer_types = .*: describes layers of several kinds"),
        (GRANITE | {"use_qk_norm": True}, "use_qk_norm = true: the model is built without norms of queries and keys"),
        (
            GRANITE | {"qkv_bias": True},
            "qkv_bias = true: the model is built without biases of queries, keys and values",
        ),
        (
            {"model_type": "gpt2", **GPT2, "qkv_bias": False},
            "qkv_bias = false: the model is built with biases of queries, keys and values",
        ),
        (
            {"model_type": "exaone4", **FAMILIES["exaone4"][0], "use_qk_norm": False},
            "use_qk_norm = false: the model is built with norms of queries and keys",
        ),
        ({**GRANITE, "attn_type_list": [1, 0]}, "attn_type_list = .*: describes layers of several kinds"),
        ({"model_type": "gpt2", **GPT2, "anything": float("inf")}, "anything = inf: must be a finite number"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_a_field_that_is_on_and_not_understood_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=f"^(config: )?{said}") as caught:
        analyze(fields, SHORT)
    assert "remove" not in str(caught.value)


@pytest.mark.parametrize("more", [{"hidden_size_per_layer_input": 8}, {"num_kv_shared_layers": 1}])
def test_attention_among_the_tokens_of_images_is_passed_over(more: dict[str, Any]) -> None:
    """Gemma-4's text models with a part that has no module here."""
    fields = GEMMA4 | {"vocab_size_per_layer_input": 96} | more
    of_images = "of the tokens of images; those of text see the ones before them"
    assert listed(read(fields | {"use_bidirectional_attention": "vision"}))["use_bidirectional_attention"] == of_images
    with pytest.raises(ConfigError, match="use_bidirectional_attention = 'all': "):
        read(fields | {"use_bidirectional_attention": "all"})


# The declared sizes that a field may repeat -> a value that is none of them.
MPT: dict[str, Any] = {"model_type": "mpt", "d_model": 64, "n_heads": 4, "n_layers": 2, "vocab_size": 96}
BARE: dict[str, Any] = {"model_type": "gpt_neox", **without(SMALL, "num_key_value_heads")}


@pytest.mark.parametrize("field", REPEATS)
def test_a_field_that_no_class_declares_is_no_witness_of_itself(field: str) -> None:
    """transformers keeps what it does not declare: the value read back is the file's own."""
    first = BARE if field not in declared_fields(CONFIG_MAPPING["gpt_neox"]) else MPT
    rule = "describes .*, and transformers' .* has no such field|is another name of|derives"
    with pytest.raises(ConfigError, match=f"{field} = 1: ({rule})|(hidden|vocab)_size = .*another name of"):
        read(first | {field: 1})


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("model_type", ["gpt_neox", "mpt", "bloom", "opt", "codegen"])
def test_shared_key_value_heads_are_refused_where_every_head_has_its_own(model_type: str, heads: int) -> None:
    fields = MPT if model_type == "mpt" else BARE if model_type == "gpt_neox" else None
    fields = fields or {"model_type": model_type, **FAMILIES.get(model_type, FAMILIES["gpt_bigcode"])[0]}
    own = value_of("num_attention_heads", read(fields).config)
    assert listed(read(fields | {"num_key_value_heads": own}))["num_key_value_heads"] == "repeats num_attention_heads"
    for names in (("num_key_value_heads",), ("num_kv_heads", "num_key_value_heads"), ("num_query_groups",)):
        with pytest.raises(ConfigError, match=f"^config: {names[0]} = {heads}: describes the number and the size of"):
            read(fields | dict.fromkeys(names, heads))


def test_one_key_and_value_head_is_repeated_as_one() -> None:
    falcon = {"model_type": "falcon", **FAMILIES["falcon"][0]}
    assert listed(read(falcon | {"num_key_value_heads": 1}))["num_key_value_heads"] == "repeats num_key_value_heads"
    for heads in (2, 4):
        with pytest.raises(ConfigError, match=f"num_key_value_heads = {heads}: describes the number and the size of"):
            read(falcon | {"num_key_value_heads": heads})


def test_a_window_that_is_switched_off_is_passed_over() -> None:
    windows = {"use_sliding_window": False, "sliding_window": 16, "max_window_layers": 2}
    assert listed(read(QWEN2_VL | windows))["sliding_window"] == "no layer has a window"
    assert counts(analyze(QWEN2_VL | windows, SHORT)) == counts(analyze(QWEN2_VL, SHORT))


def test_an_activation_that_the_class_replaces_is_passed_over() -> None:
    (said,) = checked({"model_type": "gemma", **SMALL, "head_dim": 16, "hidden_act": "gelu"}).values()
    assert said == "hidden_act = 'gelu' (transformers' GemmaConfig makes it 'gelu_pytorch_tanh' whatever is given)"


def test_switches_that_say_what_is_built_are_accepted() -> None:
    exaone = {"model_type": "exaone4", **FAMILIES["exaone4"][0]}
    plain = analyze(exaone, SHORT)
    assert counts(analyze(exaone | {"use_qk_norm": True, "qkv_bias": False}, SHORT)) == counts(plain)
    gpt2 = {"model_type": "gpt2", **GPT2}
    assert counts(analyze(gpt2 | {"qkv_bias": True, "mlp_bias": True}, SHORT)) == counts(analyze(gpt2, SHORT))


LITE: dict[str, Any] = {"model_type": "glm4_moe_lite", **SMALL, "num_key_value_heads": 4, "n_routed_experts": 8}
LITE |= {"q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16}
LITE |= {"num_experts_per_tok": 2, "moe_intermediate_size": 24, "n_shared_experts": 1}


@pytest.mark.parametrize(
    ("fields", "more", "contradicting"),
    [
        (LITE, {"first_k_dense_replace": 1}, {"first_k_dense_replace": 2}),
        (LITE, {"moe_layer_freq": [0, 1, 1, 1]}, {"moe_layer_freq": [1, 1, 1, 1]}),
        (GRANITE, {"norm_type": "rms"}, {"norm_type": "batch_norm"}),
        (GRANITE, {"use_cla": False, "cla_share_factor": 2}, {"cla_share_factor": 2}),
        (
            {"model_type": "mimo_v2_flash", **SMALL, "head_dim": 16, "v_head_dim": 16},
            {"hybrid_layer_pattern": [0, 1, 1, 1]},
            {"hybrid_layer_pattern": [1, 0, 1, 1]},
        ),
    ],
    ids=["first dense", "sparse", "norms", "shared", "windows"],
)
def test_a_field_that_says_in_other_words_what_is_built(
    fields: dict[str, Any], more: dict[str, Any], contradicting: dict[str, Any]
) -> None:
    assert listed(read(fields | more)).keys() >= more.keys()
    with pytest.raises(ConfigError, match=r" = .*: describes .*, and transformers' \w+ has no such field$"):
        read(fields | contradicting)


def test_a_named_field_is_ignored_and_listed() -> None:
    fields = GRANITE | {"of_the_future": 3}
    analysis = analyze(fields, SHORT, ignore_fields=["of_the_future"])
    assert analysis.ignored_fields == ("of_the_future = 3",)
    assert not any(entry.startswith("of_the_future") for entry in analysis.passed_over_fields)
    assert counts(analysis) == counts(analyze(GRANITE, SHORT))


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("absent", "'absent': the config has no such field"),
        ("hidden_size", "'hidden_size': is understood, and what is understood is not ignored"),
        ("n_positions", "'max_position_embeddings': is understood"),
        ("embedding_multiplier", "'embedding_multiplier': is understood"),
        ("top_p", "'top_p': is understood"),
        ("mamba_d_state", "'mamba_d_state': describes a state space or a recurrence: it decides the architecture"),
        ("qk_norm", "'qk_norm': describes norms of queries and keys, or norms in other places: it decides the arch"),
        ("add_cross_attention", "'add_cross_attention': describes cross attention: it decides the architecture"),
    ],
)
def test_a_field_that_cannot_be_ignored(field: str, said: str) -> None:
    values = {"n_positions": 64, "embedding_multiplier": 2.0, "top_p": 0.5, "mamba_d_state": 16, "qk_norm": True}
    given = {field: values.get(field, False)} if field not in ("absent", "hidden_size") else {}
    with pytest.raises(ArgumentError, match=f"^ignore_fields = {said}"):
        read(GRANITE | given, field)


SCALINGS: dict[str, dict[str, Any]] = {
    "dynamic": {"type": "dynamic", "factor": 2.0},
    "mrope": {"type": "mrope", "mrope_section": [2, 3, 3]},
    "su": {"type": "su", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8},
    "unknown": {"rope_type": "of_the_future", "factor": 2.0},
    "yarn": {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32},
    "longrope": {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8},
}


@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS.keys())
@pytest.mark.parametrize("model_type", ["granite", "stablelm"])
def test_the_type_of_rotary_embedding_changes_no_count(model_type: str, scaling: dict[str, Any]) -> None:
    fields = {"model_type": model_type, **SMALL, "partial_rotary_factor": 1.0}
    scaled = analyze(fields | {"rope_scaling": scaling}, SHORT)
    plain = analyze(fields, SHORT)
    assert (scaled.parameters, scaled.forward_flops) == (plain.parameters, plain.forward_flops)
    replaced = [entry for entry in scaled.passed_over_fields if entry.startswith("rope_scaling.rope_type = ")]
    assert len(replaced) == (scaling.get("type", scaling.get("rope_type")) not in ("yarn", "longrope"))


def test_an_entry_of_unknown_type_for_one_kind_of_layers() -> None:
    fields = {"model_type": "mellum", **SMALL, "num_local_experts": 8, "moe_intermediate_size": 48, "head_dim": 16}
    fields |= {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 8}
    by_layer = {
        "full_attention": {"rope_type": "dynamic", "rope_theta": 1e6, "factor": 8.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    model = read(fields | {"rope_parameters": by_layer})
    (entry,) = [entry for entry in model.passed_over_fields if entry.startswith("rope_parameters")]
    assert entry.startswith("rope_parameters.full_attention.rope_type = 'dynamic' (")
    assert counts(analyze(fields | {"rope_parameters": by_layer}, SHORT)) == counts(analyze(fields, SHORT))


KIMI: dict[str, Any] = {"model_type": "kimi_linear", **SMALL, "layer_types": ["full_attention"] * 4}
MINISTRAL: dict[str, Any] = {"model_type": "ministral3", **SMALL, "head_dim": 16}


def checked(fields: dict[str, Any]) -> dict[str, str]:
    """What `check_fields` passes over, of families that may not be measured."""
    config_class = CONFIG_MAPPING[fields["model_type"]]
    entries = check_fields(fields, config_class(**fields)).passed_over
    return {entry.partition(" = ")[0]: entry for entry in entries}


@pytest.mark.parametrize(
    ("fields", "field", "value"),
    [
        (KIMI, "num_heads", 2),
        (KIMI, "short_conv_kernel_size", 9),
        (MINISTRAL, "layer_types", ["sliding_attention"] * 4),
        (MINISTRAL | {"sliding_window": 8}, "layer_types", ["full_attention"] * 4),
        ({"model_type": "glm4_moe_lite", **FAMILIES["glm4_moe_lite"][0]}, "dense", 3),
        ({"model_type": "gpt_neo", "max_position_embeddings": 64}, "layer_types", ["full_attention"] * 24),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_name_in_the_code_of_a_class_is_no_field_that_it_reads(
    fields: dict[str, Any], field: str, value: Any
) -> None:
    with pytest.raises(ConfigError, match=f"^{field} = .*: (describes|this field is not understood)"):
        checked(fields | {field: value})


def test_a_field_that_a_class_reads_without_declaring_it_is_understood() -> None:
    gemma3 = {"model_type": "gemma3_text", **SMALL, "num_hidden_layers": 6}
    for pattern in (6, 2):  # the default, too
        assert "sliding_window_pattern" not in checked(gemma3 | {"sliding_window_pattern": pattern})
    assert "layer_types" in checked(MINISTRAL | {"layer_types": ["full_attention"] * 4})
    assert "num_heads" in checked(KIMI | {"num_heads": 4})
    written = CONFIG_MAPPING["gemma4_text"]().to_dict()
    assert "per_layer_config" in written.keys() - declared_fields(CONFIG_MAPPING["gemma4_text"])
    assert "per_layer_config" not in checked(written)
