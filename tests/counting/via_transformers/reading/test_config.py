"""Configs of families without modules here: files that transformers saves, other names, families by architecture."""

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import transformers

from counting.analysis import analyze
from counting.setup import Setup
from counting.via_transformers.reading.config import ForeignModel, read_foreign
from counting.via_transformers.reading.fields import FIXED_FOREIGN_FIELDS
from tests.foreign_families import FAMILIES, GPT2, SMALL, without
from torch_models.errors import ConfigError, UserError
from torch_models.fields.config import ForeignConfig, model_from_fields, read_model

PAGE = (Path(__file__).resolve().parents[4] / "docs" / "families.md").read_text(encoding="utf-8")
TABLE = PAGE.partition("## Other families")[2].partition("\n## ")[0]
MEASURED = re.findall(r"^\| (\w+) \| ([\d,]+) \| ([\d,]+) \| (yes|no) \|", TABLE, flags=re.MULTILINE)
REFUSED = {name: row for row in TABLE.splitlines() if "refused:" in row for name in row.split("|")[1].split(", ")}
REFUSED = {name.strip(): row.partition("refused: ")[2] for name, row in REFUSED.items()}


def model_of(**fields: Any) -> ForeignModel:
    """The fields as `read_model` hands them on, read by transformers."""
    model = model_from_fields(fields, "small")
    assert isinstance(model, ForeignConfig)
    return read_foreign(model)


def saved(model_type: str, folder: Path, *, whole: bool = False) -> Path:
    """The file that transformers writes of its default config: what differs from the defaults, or everything."""
    path = folder / "saved_config.json"
    transformers.AutoConfig.for_model(model_type).to_json_file(path, use_diff=not whole)
    return path


# --- What transformers saves -----------------------------------------------------------------------------------


def test_readme_has_every_family_that_is_tested() -> None:
    assert [name for name, *_ in MEASURED] == list(FAMILIES)
    assert REFUSED.keys() == SAID.keys()


@pytest.mark.parametrize(("model_type", "parameters", "flops", "memory"), MEASURED, ids=FAMILIES)
def test_saved_default_config_gives_what_readme_says(
    model_type: str, parameters: str, flops: str, memory: str, tmp_path: Path
) -> None:
    analysis = analyze(saved(model_type, tmp_path), Setup(sequence_length=1024))
    assert f"{analysis.parameters.total:,}" == parameters
    assert f"{analysis.forward_flops:,}" == flops
    assert (analysis.main_layer.peak_memory_bytes is not None) is (memory == "yes")


@pytest.mark.parametrize("model_type", FAMILIES)
def test_both_forms_of_a_saved_config_are_one_config(model_type: str, tmp_path: Path) -> None:
    configs = []
    for whole in (False, True):
        foreign = read_model(saved(model_type, tmp_path, whole=whole))
        assert isinstance(foreign, ForeignConfig)
        configs.append(read_foreign(foreign).config.to_dict())
    assert configs[0] == configs[1]


SAID = {
    "longcat_flash": "allocates 768 experts in gate_up_proj of LongcatFlashExperts, where the model has 512",
    "zaya": "a Conv1d of it multiplies several channels with each other",
    "dbrx": "transformers cannot build it: 'DbrxAttentionConfig' object has no attribute 'rope_theta'",
    "t5": "has an encoder beside its decoder",
    "bart": "has an encoder beside its decoder",
    "bert": "is an encoder unless is_decoder is true",
    "bert-generation": "its attention .* sees later tokens: it is an encoder unless is_decoder is true",
    "xlm": "is an encoder unless causal is true",
    "trocr": r"a pass over tokens leaves out .*encoder_attn.*, which attends to another model's states",
    "mllama_text_model": r"a pass over tokens leaves out .*CrossAttention.*, which attends to another model's states",
    "llava": r"is made of several models \(text_config, vision_config\), .*; for its text part alone give text_only",
    "gemma3": r"is made of several models \(text_config, vision_config\), .*; for its text part alone give text_only",
    "git": r"is made of several models \(vision_config\), and only text decoders are measured; none of them is one",
    "blt": r"is made of several models \(patcher_config, encoder_config, .*; none of them is one",
    "fuyu": r"is made of several models \(text_config, and image_size, .* of another part\), .* give text_only$",
}


@pytest.mark.parametrize("model_type", REFUSED)
def test_saved_default_config_is_refused_as_readme_says(model_type: str, tmp_path: Path) -> None:
    path = saved(model_type, tmp_path)
    with pytest.raises(UserError, match=SAID[model_type]) as caught:
        analyze(path, Setup(sequence_length=64))
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_every_form_of_a_refused_config_is_refused_alike(tmp_path: Path) -> None:
    said = []
    for whole in (False, True):
        with pytest.raises(UserError) as caught:
            analyze(saved("longcat_flash", tmp_path, whole=whole), Setup(sequence_length=64))
        said.append(str(caught.value))
    fields = json.loads(saved("longcat_flash", tmp_path, whole=True).read_text())
    with pytest.raises(UserError, match=SAID["longcat_flash"]):
        analyze(fields | {"attention_method": "MLA", "router_bias": False}, Setup(sequence_length=64))
    assert said[0] == said[1]


def test_a_family_whose_published_files_have_other_fields_is_named() -> None:
    """The default layers of transformers' class are others than those of `attn_type_list`."""
    with pytest.raises(ConfigError, match=r"model_type = 'minimax_text_01': .* as minimax, with layer_types in place"):
        model_of(model_type="minimax_text_01", **SMALL, attn_type_list=[0, 0, 0, 1])


@pytest.mark.parametrize("model_type", ["zamba", "rwkv"])
def test_no_scan_runs_token_by_token(model_type: str, tmp_path: Path) -> None:
    """The reference code of the whole sequence takes half a minute."""
    path = saved(model_type, tmp_path)
    began = time.process_time()
    assert analyze(path).elementwise_operations > 0
    assert time.process_time() - began < 5


# --- Fields that a class derives, keeps or passes over ---------------------------------------------------------

COHERE2, MOE_LITE = (FAMILIES[name][0] for name in ("cohere2", "glm4_moe_lite"))


@pytest.mark.parametrize(
    ("model_type", "fields", "derived"),
    [
        ("cohere2", COHERE2, {"head_dim": 16}),
        ("glm4_moe_lite", MOE_LITE, {"qk_head_dim": 24, "head_dim": 8}),
        ("cohere2", COHERE2, {"_sliding_window_pattern": 4, "sliding_window_pattern": 4}),
    ],
)
def test_a_derived_field_changes_nothing(model_type: str, fields: dict[str, Any], derived: dict[str, int]) -> None:
    config = model_of(model_type=model_type, **fields).config
    assert model_of(model_type=model_type, **fields, **derived).config.to_dict().items() >= config.to_dict().items()


@pytest.mark.parametrize(
    ("model_type", "fields", "said"),
    [
        (
            "cohere2",
            COHERE2 | {"head_dim": 32},
            "^small: head_dim = 32: transformers' Cohere2Config derives 16 from the other fields; make them agree",
        ),
        (
            "glm4_moe_lite",
            MOE_LITE | {"qk_head_dim": 25},
            "qk_head_dim = 25: transformers' Glm4MoeLiteConfig derives 24",
        ),
        ("minicpm3", MOE_LITE | {"head_dim": 16}, "head_dim = 16: .*Config makes it 8 whatever is given"),
    ],
)
def test_a_derived_field_that_differs_is_refused_with_both_values(
    model_type: str, fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        model_of(model_type=model_type, **fields)


def test_an_older_name_that_a_class_reads_has_its_effect() -> None:
    types = model_of(model_type="cohere2", **COHERE2, sliding_window_pattern=2).config.layer_types
    assert types == ["sliding_attention", "full_attention"] * 2


# What published configs hold beside what the class declares.
OF_PUBLISHED: dict[str, dict[str, Any]] = {
    "cohere2": {
        "cache_implementation": "hybrid",
        "layer_switch": 4,
        "order_of_interleaved_layers": "local_attn_first",
        "position_embedding_type": "rope_gptj",
        "rotary_pct": 1.0,
        "sliding_window_pattern": 4,
        "use_embedding_sharing": True,
        "use_gated_activation": True,
        "use_parallel_block": True,
        "use_parallel_embedding": True,
    },
    "glm4_moe_lite": {
        "ep_size": 1,
        "moe_layer_freq": 1,
        "num_nextn_predict_layers": 1,
        "quantization_config": {"quant_method": "fp8"},
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
    },
    "starcoder2": {
        "activation_function": "gelu",
        "attention_softmax_in_fp32": True,
        "layer_norm_epsilon": 1e-05,
        "mlp_type": "default",
        "norm_type": "layer_norm",
        "scale_attention_softmax_in_fp32": True,
        "scale_attn_weights": True,
    },
}


@pytest.mark.parametrize("model_type", OF_PUBLISHED)
def test_fields_of_published_configs_are_known(model_type: str) -> None:
    fields = FAMILIES[model_type][0]
    config = model_of(model_type=model_type, **fields).config
    published = model_of(model_type=model_type, **fields, **OF_PUBLISHED[model_type]).config
    assert published.to_dict().items() >= config.to_dict().items()
    for switch in OF_PUBLISHED[model_type].keys() & FIXED_FOREIGN_FIELDS.keys():
        with pytest.raises(
            ConfigError,
            match=f"{switch} = 'another': must be .*: transformers builds nothing else",
        ):
            model_of(model_type=model_type, **fields, **OF_PUBLISHED[model_type] | {switch: "another"})


def test_multi_token_prediction_that_is_left_out_is_said() -> None:
    (note,) = model_of(model_type="glm4_moe_lite", **MOE_LITE, num_nextn_predict_layers=2).notes
    assert note.startswith("Multi-token prediction (num_nextn_predict_layers = 2) is not counted")
    assert model_of(model_type="glm4_moe_lite", **MOE_LITE, num_nextn_predict_layers=0).notes == ()


def test_keys_that_are_counted_though_they_are_not_chosen_are_noted() -> None:
    (note,) = model_of(model_type="deepseek_v4", index_topk=64).notes
    assert note.startswith("Compressed sparse attention counts the keys of all compressed tokens")
    assert "(index_topk = 64)" in note
    assert model_of(model_type="deepseek_v4", layer_types=["heavily_compressed_attention"] * 43).notes == ()


def test_head_counts_left_out_are_those_of_the_queries_and_are_listed() -> None:
    for fields in (without(SMALL, "num_key_value_heads"), SMALL | {"num_key_value_heads": None}):
        model = model_of(model_type="nemotron", **fields)
        assert model.config.num_key_value_heads == 4
        assert "num_key_value_heads = 4" in model.defaulted_fields


# --- Other names -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model_type", "fields", "renamed"),
    [
        ("phi3", SMALL, {"num_hidden_layers": "num_layers"}),
        ("phi3", SMALL, {"num_hidden_layers": "n_layer", "hidden_size": "n_embd", "num_attention_heads": "n_head"}),
        ("phi3", SMALL, {"max_position_embeddings": "n_positions"}),
        (
            "gpt_bigcode",
            GPT2,
            {"n_layer": "num_layers", "n_embd": "hidden_size", "n_positions": "max_position_embeddings"},
        ),
        ("olmoe", FAMILIES["olmoe"][0], {"num_experts": "num_local_experts"}),
        ("olmoe", FAMILIES["olmoe"][0], {"num_experts": "n_routed_experts"}),
        ("glm4_moe_lite", MOE_LITE, {"n_routed_experts": "num_experts"}),
        ("glm4_moe_lite", MOE_LITE, {"n_routed_experts": "num_local_experts"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value.values()) if len(value) < 4 else "fields",
)
def test_other_names_are_understood(model_type: str, fields: dict[str, Any], renamed: dict[str, str]) -> None:
    others = {renamed.get(field, field): value for field, value in fields.items()}
    one, other = model_of(model_type=model_type, **fields), model_of(model_type=model_type, **others)
    assert other.config.to_dict() == one.config.to_dict()
    assert (other.sequence_length, other.defaulted_fields) == (one.sequence_length, one.defaulted_fields)
    assert model_of(model_type=model_type, **fields | others).config.to_dict() == one.config.to_dict()
    for standard, alias in renamed.items():
        with pytest.raises(ConfigError, match=f"{alias} = 999: is another name of {standard}, which is "):
            model_of(model_type=model_type, **fields, **{alias: 999})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"dtype": "float16", "torch_dtype": "bfloat16"}, "torch_dtype = 'bfloat16': is another name of dtype, which"),
        (
            {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
            "rope_scaling = .*: is another name of rope_parameters, which is {'rope_type': 'default'}",
        ),
    ],
)
def test_names_of_what_changes_no_count_must_agree_too(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        model_of(model_type="granite", **SMALL, **fields)
    same = dict.fromkeys(fields, next(iter(fields.values())))
    assert model_of(model_type="granite", **SMALL, **same).config.num_hidden_layers == 4


def test_sequence_length_of_course_configs_comes_first() -> None:
    model = model_of(model_type="phi3", **SMALL, max_sequence_length=48)
    assert (model.sequence_length, model.sequence_length_source) == (48, "max_sequence_length")


def test_a_config_nested_in_text_config() -> None:
    inner = {"model_type": "granite", **SMALL}
    nested = {"model_type": "wrapper", "architectures": ["Wrapper"], "text_config": inner}
    assert model_of(**nested).config.to_dict() == model_of(**inner).config.to_dict()
    by_architecture = {"architectures": ["GraniteForCausalLM"], **SMALL}
    for fields in (
        {"text_config": by_architecture, "model_type": "wrapper"},
        nested | {"text_config": by_architecture},
    ):
        assert model_of(**fields).model_type == "granite"


# --- Families by architecture ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "model_type"),
    [
        ("GPTBigCodeForCausalLM", "gpt_bigcode"),
        ("Starcoder2ForCausalLM", "starcoder2"),
        ("Exaone4ForCausalLM", "exaone4"),
    ],
)
def test_the_family_is_read_from_architectures(architecture: str, model_type: str) -> None:
    fields = FAMILIES[model_type][0]
    model = model_of(architectures=[architecture], **fields)
    assert model.model_type == model_type
    assert (
        model.config.to_dict()
        == model_of(model_type=model_type, architectures=[architecture], **fields).config.to_dict()
    )


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"architectures": ["BertForMaskedLM"]}, "are no causal language model of transformers; give model_type"),
        ({"architectures": ["NoSuchForCausalLM"]}, "are no causal language model of transformers"),
        ({"architectures": ["Qwen3_5ForCausalLM"]}, "may be qwen3_5 or qwen3_5_text; give model_type"),
        ({"architectures": ["GPTBigCodeForCausalLM", "OPTForCausalLM"]}, "may be gpt_bigcode or opt"),
        (
            {"model_type": "gpt_bigcode", "architectures": ["GPTBigCodeForSequenceClassification"]},
            "architectures = 'GPTBigCodeForSequenceClassification': has another head than a language model's, which is",
        ),
        (
            {"model_type": "gpt_bigcode", "architectures": ["OPTForCausalLM"]},
            "architectures = 'OPTForCausalLM': is not what",
        ),
        (
            {"model_type": "gpt_bigcode", "architectures": ["GPTBigCodeModel"]},
            "architectures = 'GPTBigCodeModel': has no head; only",
        ),
    ],
    ids=str,
)
def test_architectures_that_name_no_family(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=f"^small: architectures = .*{said.partition(': ')[2] or said}"):
        model_of(**GPT2, **fields)


@pytest.mark.parametrize(
    "fields", [{"architectures": ["LlamaModel"]}, {"architectures": []}, {"architectures": "x"}, {}]
)
def test_neither_model_type_nor_an_architecture_of_use(fields: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "small_config.json"
    path.write_text(json.dumps(SMALL | fields))
    with pytest.raises(
        ConfigError, match=r"architectures = .*are no causal|model_type = null: is missing: it names the family"
    ):
        analyze(path)


def test_without_transformers_an_architecture_asks_for_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        ConfigError, match=r"^small: architectures = \['GPTBigCodeForCausalLM'\]: is not known here; .*pip install"
    ):
        model_of(architectures=["GPTBigCodeForCausalLM"], **GPT2)
