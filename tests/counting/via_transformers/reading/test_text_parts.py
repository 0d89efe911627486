"""Text parts of models of several: given alone, or taken from the whole config; and what names they go by."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as TEXT_OF_IMAGES
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES as TEXT_OF_SOUND

from counting.analysis import Analysis, analyze
from counting.setup import Setup
from model_training_cost_analysis import main
from tests.foreign_families import FAMILIES, SMALL, TEXT_PART, without
from tests.shrunken import LLAMA, QWEN3_MOE
from torch_models.errors import ConfigError, UserError
from torch_models.fields.config import ForeignConfig, read_model
from torch_models.fields.text_part import BY_THE_TEXT_PART, DEFAULT_OF_WHOLE, HEAD, NEVER_TIED, OR_OF_TEXT, TEXT_PARTS

AT_2048 = Setup(sequence_length=2048)
SHORT = Setup(sequence_length=32)

# The text part of Qwen3-VL-30B-A3B: the decoder of Qwen3-30B-A3B.
QWEN3_VL_30B = {
    "model_type": "qwen3_vl_moe_text",
    "decoder_sparse_step": 1,
    "head_dim": 128,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "max_position_embeddings": 262144,
    "mlp_only_layers": [],
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "rope_theta": 5000000,
    "vocab_size": 151936,
}
TOWER = {"hidden_size": 64, "num_hidden_layers": 2}
MROPE = {"rope_type": "default", "mrope_section": [2, 3, 3]}
# Classes of text models that transformers' table does not have.
TEXT_MODELS = {"paddleocr_vl_text": "PaddleOCRTextModel", "qwen2_5_omni_text": "Qwen2_5OmniThinkerTextModel"}


def text(whole: dict[str, Any], setup: Setup = SHORT) -> Analysis:
    return analyze(whole, setup, text_only=True, step=False)


def test_a_text_config_given_alone_is_the_decoder_that_it_is() -> None:
    analysis = analyze(QWEN3_VL_30B, AT_2048)
    assert analysis.parameters.total == 30_532_122_624
    assert analysis.parameters.active == 3_353_032_704
    assert analysis.forward_flops == 15_757_161_267_200
    assert analysis.notes[-1].startswith("Built as the text part of Qwen3VLMoeForConditionalGeneration of transformers")
    assert "tie_word_embeddings = false" in analysis.defaulted_fields  # the whole model's default, which has the head


@pytest.mark.parametrize("tied", [True, False])
def test_the_head_is_tied_as_the_whole_config_says(tied: bool) -> None:
    fields = TEXT_PART
    whole = {
        "model_type": "qwen3_vl_moe",
        "architectures": ["Qwen3VLMoeForConditionalGeneration"],
        "image_token_id": 5,
        "tie_word_embeddings": tied,
        "text_config": fields | {"tie_word_embeddings": not tied},
        "vision_config": TOWER,
    }
    head = text(whole).parameters.by_component["lm_head"]
    assert head == (0 if tied else fields["vocab_size"] * fields["hidden_size"])


@pytest.mark.parametrize(
    ("whole_type", "text_type", "more"),
    [
        ("qwen2_vl", "qwen2_vl_text", {"rope_scaling": MROPE}),
        ("qwen2_5_vl", "qwen2_5_vl_text", {"rope_scaling": MROPE}),
        ("qwen3_vl", "qwen3_vl_text", {"head_dim": 16}),
        (
            "glm4v",
            "glm4v_text",
            {"rope_parameters": {"partial_rotary_factor": 0.5} | MROPE | {"mrope_section": [1, 1, 2]}},
        ),
        ("glm_ocr", "glm_ocr_text", {"rope_scaling": MROPE}),
        ("paddleocr_vl", "paddleocr_vl_text", {"head_dim": 16, "rope_scaling": MROPE, "tie_word_embeddings": False}),
        ("gemma3", "gemma3_text", {"head_dim": 16, "sliding_window": 8}),
        ("llava", "granite", {}),
        ("qwen2_5_omni_thinker", "qwen2_5_omni_text", {"rope_scaling": MROPE}),
    ],
)
def test_the_text_part_of_a_whole_config_is_what_transformers_builds(
    whole_type: str, text_type: str, more: dict[str, Any]
) -> None:
    inner = {"model_type": text_type, **SMALL, **more}
    whole = {"model_type": whole_type, "text_config": inner, "vision_config": TOWER, "image_token_id": 7}
    whole["tie_word_embeddings"] = False
    config = transformers.AutoConfig.for_model(text_type, **without(inner, "model_type"))
    name = TEXT_MODELS.get(text_type)
    package = sys.modules[type(config).__module__.rpartition(".")[0]]
    with torch.device("meta"):
        model = getattr(package, name)(config) if name else transformers.AutoModel.from_config(config)
    expected = sum(weight.numel() for weight in model.parameters()) + SMALL["vocab_size"] * SMALL["hidden_size"]
    assert text(whole).parameters.total == expected
    assert analyze(inner | {"tie_word_embeddings": False}, SHORT).forward_flops == text(whole).forward_flops
    with pytest.raises(ConfigError, match=r"is made of several models \(text_config, vision_config\).*give text_only"):
        analyze(whole, SHORT)


def test_fields_of_the_text_part_beside_those_of_the_tower() -> None:
    flat = {
        "model_type": "qwen2_5_vl",
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        **SMALL,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "tie_word_embeddings": False,
        "vision_config": TOWER,
        "vision_start_token_id": 5,
    }
    inner = {"model_type": "qwen2_5_vl_text", **SMALL, "rope_scaling": MROPE, "tie_word_embeddings": False}
    flat["vision_token_id"] = 6  # which no class declares
    assert text(flat).parameters == analyze(inner, SHORT).parameters
    with pytest.raises(ConfigError, match=r"^config: model_type = 'qwen2_5_vl': is made of several models"):
        analyze(flat, SHORT)


def test_a_text_part_of_a_family_with_modules_here_is_measured_by_them() -> None:
    for inner in (LLAMA | {"num_key_value_heads": 2}, QWEN3_MOE):
        whole = {"model_type": "llava", "text_config": without(inner, "tie_word_embeddings"), "vision_config": TOWER}
        whole |= {"tie_word_embeddings": True, "image_token_index": 5}
        whole["text_config"]["num_image_tokens"] = 4
        analysis = text(whole)
        assert analysis.proof == "measured = formula"
        assert analysis.parameters == analyze(inner | {"tie_word_embeddings": True}, SHORT, step=False).parameters


def test_a_part_saved_without_its_defaults_has_those_of_transformers() -> None:
    """As LLaVA 1.5 is published: Vicuna 7B, of which the file has what differs from the defaults."""
    vicuna = {"model_type": "llama", "max_position_embeddings": 4096, "rms_norm_eps": 1e-05, "vocab_size": 32064}
    whole = {"model_type": "llava", "text_config": vicuna, "vision_config": TOWER, "image_token_index": 32000}
    analysis = text(whole)
    assert analysis.parameters.total == 6_738_939_904
    assert "hidden_size = 4096" in analysis.defaulted_fields
    with pytest.raises(ConfigError, match="is missing and has no default"):
        analyze(vicuna)


def test_the_text_part_in_a_part_and_a_part_that_does_not_name_its_family() -> None:
    inner = {"model_type": "qwen2_5_omni_text", **SMALL, "rope_scaling": MROPE}
    thinker = {"model_type": "qwen2_5_omni_thinker", "text_config": inner, "audio_config": TOWER}
    whole = {"model_type": "qwen2_5_omni", "thinker_config": thinker, "talker_config": TOWER}
    expected = analyze(inner, SHORT).parameters
    assert text(thinker).parameters == text(whole).parameters == expected
    unnamed = {"model_type": "llava", "text_config": without(LLAMA, "model_type"), "vision_config": TOWER}
    assert text(unnamed).parameters.total == analyze(LLAMA, SHORT, step=False).parameters.total


# Models of several whose text part is of a family with a class of its own, with the text part.
OWN_CLASS: dict[str, dict[str, Any]] = {
    "llava": LLAMA | {"num_key_value_heads": 2},
    "llava_next": LLAMA | {"num_key_value_heads": 2},
    "mistral3": SMALL | {"model_type": "mistral", "head_dim": 16},
    "got_ocr2": SMALL | {"model_type": "qwen2"},
    "gemma3": SMALL | {"model_type": "gemma3_text", "head_dim": 16, "sliding_window": 8},
    "voxtral": LLAMA | {"num_key_value_heads": 2, "head_dim": 16},
}


@pytest.mark.parametrize("in_text", [None, True, False])
@pytest.mark.parametrize("in_whole", [None, True, False])
@pytest.mark.parametrize("whole_type", OWN_CLASS)
def test_the_head_is_tied_as_in_the_whole_model_of_transformers(
    whole_type: str, in_whole: bool | None, in_text: bool | None
) -> None:
    """The text part has a class of its own, whose default may be another than the whole model's."""
    said = {
        name: {} if tied is None else {"tie_word_embeddings": tied}
        for name, tied in (("whole", in_whole), ("text", in_text))
    }
    inner = without(OWN_CLASS[whole_type], "tie_word_embeddings", "architectures", "max_sequence_length")
    whole = {"model_type": whole_type, **said["whole"], "text_config": inner | said["text"]}
    config = transformers.AutoConfig.for_model(**whole)
    name = TEXT_OF_IMAGES.get(whole_type) or TEXT_OF_SOUND[whole_type]
    with torch.device("meta"):
        model = getattr(transformers, name)._from_config(config)
    weights = {*model.get_decoder().parameters(), model.get_output_embeddings().weight}
    tower = {"audio_config" if whole_type == "voxtral" else "vision_config": {"num_hidden_layers": 2}}
    assert text(whole | tower).parameters.total == sum(weight.numel() for weight in weights)


def test_defaults_of_whole_models_are_those_of_transformers() -> None:
    for whole_type, tied in DEFAULT_OF_WHOLE.items():
        config_class = CONFIG_MAPPING[whole_type]
        assert config_class.from_dict({}).tie_word_embeddings is tied, whole_type
        (part,) = config_class.sub_configs.keys() & {*TEXT_PARTS}
        for of_text in (True, False):
            fields = config_class().to_dict()
            fields[part] |= {HEAD: of_text}
            whole = config_class.from_dict(fields | {HEAD: False})
            assert whole.tie_word_embeddings is (of_text and whole_type in OR_OF_TEXT), whole_type
    for whole_type in sorted(NEVER_TIED | BY_THE_TEXT_PART):
        config_class = CONFIG_MAPPING[whole_type]
        assert getattr(config_class.from_dict({}), HEAD, False) in (False, None), whole_type


def test_what_is_left_out_of_the_whole_is_listed() -> None:
    for inner in (LLAMA | {"num_key_value_heads": 2}, {"model_type": "granite", **SMALL}):
        whole = {"model_type": "llava", "text_config": inner | {"num_image_tokens": 4}, "vision_config": TOWER}
        listed = text(whole | {"image_token_index": 5, "projector_hidden_act": "gelu"}).passed_over_fields
        for field in ("vision_config = an object of 2", "image_token_index = 5", "projector_hidden_act = 'gelu'"):
            assert f"{field} (outside the text part, which alone is analysed)" in listed
        assert "num_image_tokens = 4 (of images, video or sound; only the text part is analysed)" in listed


@pytest.mark.parametrize("field", ["vision_expert_layers", "vision_experts", "visual_expert_intermediate_size"])
def test_what_may_change_the_text_part_is_not_left_out(field: str) -> None:
    qwen3_vl = {"model_type": "qwen3_vl_text", **SMALL, "head_dim": 16, field: 8}
    beside = {"model_type": "qwen2_5_vl", **SMALL, "rope_scaling": MROPE, field: 8, "vision_config": TOWER}
    for fields in (
        {"model_type": "phi", **without(SMALL, "num_key_value_heads"), field: 8},
        LLAMA | {field: 8},
        {"model_type": "qwen3_vl", "text_config": qwen3_vl, "vision_config": TOWER},
        {"model_type": "llava", "text_config": LLAMA | {field: 8}, "vision_config": TOWER},
        {"model_type": "wrapper", "text_config": {"model_type": "granite", **SMALL, field: 8}},
        beside,
    ):
        with pytest.raises(ConfigError, match=f"{field} = 8: "):
            text(fields)


def test_text_only_of_a_text_decoder_is_the_whole() -> None:
    assert read_model(LLAMA, text_only=True) == read_model(LLAMA)
    bigcode = {"model_type": "gpt_bigcode", **FAMILIES["gpt_bigcode"][0]}
    assert text(bigcode) == analyze(bigcode, SHORT, step=False)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model_type": "blt"}, r"is made of several models \(patcher_config, .*none of them is one$"),
        ({"model_type": "clip"}, "model_type = 'clip_text_model': transformers has no causal language model"),
        ({"model_type": "t5"}, "has an encoder beside its decoder"),
        ({"model_type": "mllama"}, r"leaves out .*CrossAttention.* attends to another model's states"),
        (
            {"model_type": ["llava"], "text_config": {"model_type": ["llama"]}, "vision_config": {}},
            "is not known; must",
        ),
        ({"model_type": "mine", "text_config": {"model_type": "mine_too"}, "vision_config": {}}, "'mine_too': is not"),
    ],
)
def test_what_has_no_text_decoder(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        text(fields)
    assert "\n" not in str(caught.value)


def test_the_text_part_of_llama_3_2_vision_attends_to_images() -> None:
    fields = {"model_type": "mllama_text_model", "architectures": None, "add_cross_attention": False}
    fields |= SMALL | {"num_hidden_layers": 8, "cross_attention_layers": [3], "tie_word_embeddings": False}
    with pytest.raises(
        UserError, match=r"leaves out model\.layers\.3 \(MllamaCrossAtt.* attends to another model's states$"
    ):
        analyze(fields, SHORT)


def test_the_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "seeing.json"
    whole = {"model_type": "llava", "text_config": LLAMA, "vision_config": TOWER, "image_token_index": 5}
    path.write_text(json.dumps(whole))
    assert main(["--model_config", str(path), "--seq_len", "16"]) == 2
    assert capsys.readouterr().err.endswith("for its text part alone give --text_only\n")
    assert main(["--model_config", str(path), "--seq_len", "16", "--text_only"]) == 0
    assert main(["--text_only", "--published"]) == 2
    assert "--text_only needs --model_config" in capsys.readouterr().err


# --- Names of architectures ------------------------------------------------------------------------------------

MPT = {"model_type": "mpt", "d_model": 64, "n_layers": 2, "n_heads": 4, "vocab_size": 96, "max_seq_len": 64}


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        (MPT, "MPTForCausalLM"),
        ({"model_type": "granite", **SMALL}, "graniteforcausallm"),
        ({"model_type": "internlm3", **SMALL}, "InternLM3ForCausalLM"),
        ({"model_type": "gpt_bigcode", **FAMILIES["gpt_bigcode"][0]}, "GPTBigCodeLMHeadModel"),
        (TEXT_PART, "Qwen3VLMoeForConditionalGeneration"),
        (QWEN3_MOE, "Qwen3MOEForCausalLM"),
        (LLAMA, "LLaMAForCausalLM"),
        (LLAMA, "LLaMA_ForCausalLM"),
    ],
)
def test_names_that_differ_in_case_and_of_older_kinds_are_recognised(fields: dict[str, Any], name: str) -> None:
    named = analyze(fields | {"architectures": [name]}, SHORT, step=False)
    assert named.parameters == analyze(without(fields, "architectures"), SHORT, step=False).parameters


def test_mpt_as_it_is_published_under_an_older_name() -> None:
    analysis = analyze({"model_type": "mpt", "architectures": ["MPTForCausalLM"], "max_seq_len": 2048}, AT_2048)
    assert analysis.parameters.total == analysis.parameters.active == 1_311_213_568
    assert analysis.forward_flops == 6_194_953_453_568


def test_a_name_alone_that_differs_in_case_names_the_family() -> None:
    foreign = read_model(without(MPT, "model_type") | {"architectures": ["MPTForCausalLM"]})
    assert isinstance(foreign, ForeignConfig)
    assert analyze(foreign, SHORT).model_type == "mpt"
    native = without(without(LLAMA, "model_type"), "architectures") | {"architectures": ["LLaMAForCausalLM"]}
    assert analyze(native, SHORT, step=False).model_type == "llama"


PHI3 = {"model_type": "phi3", **SMALL}


def test_the_name_in_remote_code_is_recognised() -> None:
    """The name is not transformers' own, and `auto_map` says that it is the family's."""
    remote = {"architectures": ["Phi3Remote_ForCausalLM"]}
    named = {"AutoModelForCausalLM": "modeling_phi3.OtherForCausalLM", "AutoConfig": "c.Phi3Config"}
    accepted = analyze(PHI3 | {"architectures": ["OtherForCausalLM"], "auto_map": named}, SHORT)
    assert accepted.parameters == analyze(PHI3, SHORT).parameters
    assert any(
        each.startswith("auto_map = an object of 2 (points to remote code") for each in accepted.passed_over_fields
    )
    for unlike in (remote | {"auto_map": named}, {"architectures": ["OtherForCausalLM"]}):
        with pytest.raises(ConfigError, match="is not what model_type phi3 is measured as"):
            analyze(PHI3 | unlike, SHORT)


def test_another_model_of_the_family_in_remote_code_is_refused() -> None:
    """Phi-3-small is another architecture under the family's name."""
    named = {"AutoModelForCausalLM": "modeling_phi3_small.Phi3SmallForCausalLM"}
    fields = PHI3 | {"architectures": ["Phi3SmallForCausalLM"], "auto_map": named}
    with pytest.raises(ConfigError, match="architectures = 'Phi3SmallForCausalLM': is not what model_type phi3"):
        analyze(fields, SHORT)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Phi3SmallForCausalLM", "is not what model_type phi3 is measured as, which is Phi3ForCausalLM"),
        ("Phi3ForConditionalGeneration", "is not what model_type phi3"),
        ("Phi3ForSequenceClassification", "has another head than a language model's, which is Phi3ForCausalLM"),
        ("Phi3Model", "has no head; only language models are measured"),
    ],
)
def test_names_of_other_models_are_refused(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"architectures = '{name}': {said}"):
        analyze(PHI3 | {"architectures": [name]}, SHORT)
