"""The headers of a folder's weights as a witness of the parameters: what fits, also of quantised checkpoints."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import transformers

from counting.measurements.checkpoint import count_checkpoint
from tests.checkpoints import (
    EXPERTS,
    SINGLE,
    TIED,
    Stored,
    analysed,
    by_checkpoint,
    deepseek_stored,
    native_state,
    numbers_of,
    separate_experts,
    shapes_of,
    write,
    write_headers,
    written,
)
from tests.shrunken import DEEPSEEK_V3, FAMILIES, GPT_OSS, LLAMA, MIXTRAL
from torch_models import build, build_mtp, read_spec
from torch_models.checkpoints.headers import stored_tensors
from torch_models.errors import CheckpointError
from torch_models.fields.bundled import bundled_data
from torch_models.fields.config import spec_from_fields

# --- What fits -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_as_transformers_saves_it(family: str, tmp_path: Path) -> None:
    """Sharded, one by one where transformers splits experts; kimi_k2 is not in transformers, and is written here."""
    fields = FAMILIES[family]
    if family == "kimi_k2":
        write(tmp_path, fields, separate_experts(native_state(fields)))
    else:
        reference: Any = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**fields))
        reference.save_pretrained(tmp_path, max_shard_size="60KB")
        (tmp_path / "config.json").write_text(json.dumps(fields))
    parameters, in_buffers = numbers_of(build(fields, device="meta"))
    expected = {"parameters": parameters} | ({"router_correction_bias": in_buffers} if in_buffers else {})
    analysis = analysed(tmp_path)
    assert by_checkpoint(analysis) == expected
    assert analysis.name == tmp_path.name
    assert any("fit the config by names, shapes and number of parameters." in note for note in analysis.notes)


def test_multi_token_prediction_is_counted_beside(tmp_path: Path) -> None:
    parameters, in_buffers = numbers_of(build(DEEPSEEK_V3, device="meta"))
    mtp_parameters, mtp_in_buffers = numbers_of(build_mtp(DEEPSEEK_V3, device="meta"))
    written(tmp_path, DEEPSEEK_V3, deepseek_stored())
    analysis = analysed(tmp_path)
    assert by_checkpoint(analysis) == {
        "parameters": parameters,
        "router_correction_bias": in_buffers,
        "mtp_parameters": mtp_parameters,
        "mtp_router_correction_bias": mtp_in_buffers,
    }
    assert (analysis.parameters.total, analysis.parameters.mtp) == (parameters, mtp_parameters)


def test_a_checkpoint_without_its_multi_token_prediction(tmp_path: Path) -> None:
    """As transformers saves it. With a part of it, it does not fit."""
    stored = {name: tensor for name, tensor in deepseek_stored().items() if not name.startswith("model.layers.4.")}
    analysis = analysed(written(tmp_path, DEEPSEEK_V3, stored))
    assert set(by_checkpoint(analysis)) == {"parameters", "router_correction_bias"}
    assert analysis.notes[-1].endswith("It has no tensors of multi-token prediction.")
    written(tmp_path, DEEPSEEK_V3, stored | {"model.layers.4.embed_tokens.weight": ("BF16", (96, 64))})
    with pytest.raises(CheckpointError, match=r"missing: model\.layers\.4\.input_layernorm\.weight \(64,\), "):
        analysed(tmp_path)


@pytest.mark.parametrize("names", [["model.embed_tokens.weight"], ["lm_head.weight"], None], ids=str)
def test_a_tied_head_counts_once_under_whichever_name(names: list[str] | None, tmp_path: Path) -> None:
    stored = shapes_of(native_state(TIED))
    vocabulary = stored.pop("model.embed_tokens.weight")
    both = ["model.embed_tokens.weight", "lm_head.weight"]
    written(tmp_path, TIED, stored | dict.fromkeys(names or both, vocabulary))
    assert by_checkpoint(analysed(tmp_path)) == {"parameters": numbers_of(build(TIED, device="meta"))[0]}


def test_rotary_frequencies_and_the_dtype_do_not_matter(tmp_path: Path) -> None:
    stored = {name: ("F32", shape) for name, (_, shape) in shapes_of(native_state(LLAMA)).items()}
    stored["model.layers.0.self_attn.rotary_emb.inv_freq"] = ("F32", (4,))
    assert by_checkpoint(analysed(written(tmp_path, LLAMA, stored))) == {
        "parameters": numbers_of(build(LLAMA, device="meta"))[0]
    }


def test_saved_without_its_head(tmp_path: Path) -> None:
    """As embedding models are: no name has the decoder's prefix."""
    stored = {name.removeprefix("model."): entry for name, entry in shapes_of(native_state(TIED)).items()}
    written(tmp_path, TIED, stored)
    parameters = numbers_of(build(TIED, device="meta"))[0]
    assert by_checkpoint(analysed(tmp_path)) == {"parameters": parameters}
    (tmp_path / SINGLE).unlink()
    write_headers(tmp_path, TIED, stored, shards=2, there=0)
    assert by_checkpoint(analysed(tmp_path)) == {"parameters": parameters}


def test_mixtral_as_published(tmp_path: Path) -> None:
    names = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}

    def published(name: str) -> str:
        if ".mlp." not in name:
            return name
        *_, projection, _ = name.split(".")
        return name.replace("mlp", "block_sparse_moe").replace(projection, names.get(projection, projection))

    stored = shapes_of(separate_experts(native_state(MIXTRAL)))
    written(tmp_path, MIXTRAL, {published(name): entry for name, entry in stored.items()})
    assert "model.layers.0.block_sparse_moe.experts.5.w3.weight" in stored_tensors(tmp_path)
    assert by_checkpoint(analysed(tmp_path)) == {"parameters": numbers_of(build(MIXTRAL, device="meta"))[0]}


# --- Quantised checkpoints -------------------------------------------------------------------------------------


def in_fp8(stored: Stored) -> Stored:
    """As DeepSeek-V3 is published: matrices of attention and feed-forward in fp8, a scale for 128 x 128 numbers."""
    quantised: Stored = {}
    for name, (dtype, shape) in stored.items():
        inner = re.search(r"\.(self_attn|mlp)\.", name) and len(shape) == 2 and not name.endswith("gate.weight")
        quantised[name] = ("F8_E4M3" if inner else dtype, shape)
        if inner:
            quantised[f"{name}_scale_inv"] = ("F32", tuple(math.ceil(size / 128) for size in shape))
    return quantised


def test_fp8_has_a_scale_beside_each_weight(tmp_path: Path) -> None:
    fields = DEEPSEEK_V3 | {"quantization_config": {"quant_method": "fp8"}}
    stored = in_fp8(deepseek_stored())
    assert f"{EXPERTS}.7.up_proj.weight_scale_inv" in stored
    plain = written(tmp_path, DEEPSEEK_V3, deepseek_stored())
    expected = by_checkpoint(analysed(plain))
    assert by_checkpoint(analysed(written(tmp_path, fields, stored))) == expected
    stored["model.layers.0.self_attn.weight_scale_inv"] = ("F32", (1, 1))
    with pytest.raises(CheckpointError, match=r"1 surplus: model\.layers\.0\.self_attn\.weight_scale_inv in "):
        analysed(written(tmp_path, fields, stored))


def test_published_deepseek_v3(tmp_path: Path) -> None:
    """91,991 tensors in 163 files: main model, multi-token prediction, copies of its vocabulary, and scales."""
    fields = json.loads((bundled_data() / "deepseek_v3_config.json").read_bytes())
    spec = spec_from_fields(dict(fields), "x")
    shapes: Stored = {}
    for name, tensor in build(spec, device="meta").state_dict().items():
        shapes |= published(name, tuple(tensor.shape))
    for name, tensor in build_mtp(spec, device="meta").state_dict().items():
        shapes |= published(f"model.layers.61.{name.removeprefix('0.')}", tuple(tensor.shape))
    copies = ("embed_tokens.weight", "shared_head.head.weight")
    shapes |= {f"model.layers.61.{name}": ("BF16", (129280, 7168)) for name in copies}
    write_headers(tmp_path, fields, in_fp8(shapes), shards=163)
    tensors = stored_tensors(tmp_path)
    assert len(tensors) == 91_991
    # The total that the model card prints as 685B: 671,026,404,352 + 14,848 + 11,610,067,968 + 256, two copies of
    # 129,280 x 7,168, and 41,540,496 scales.
    assert sum(tensor.numel for tensor in tensors.values()) == 684_531_386_000
    stored = count_checkpoint(read_spec(tmp_path))
    assert stored is not None
    assert stored.totals is not None
    assert stored.totals.parameters == 671_026_404_352
    assert stored.totals.router_correction_bias == 14_848
    assert stored.totals.mtp_parameters == 11_610_067_968
    assert stored.totals.mtp_router_correction_bias == 256


def published(name: str, shape: tuple[int, ...]) -> Stored:
    """The tensors that stand for one of ours: 256 x 3 for stacked experts."""
    prefix, _, projection = name.rpartition(".")
    dtype = "F32" if projection == "e_score_correction_bias" else "BF16"
    if not prefix.endswith("mlp.experts"):
        return {name: (dtype, shape)}
    experts, rows, columns = shape
    parts = {"gate": rows // 2, "up": rows // 2} if projection == "gate_up_proj" else {"down": rows}
    return {
        f"{prefix}.{expert}.{part}_proj.weight": (dtype, (size, columns))
        for expert in range(experts)
        for part, size in parts.items()
    }


WIDE_GPT_OSS = GPT_OSS | {"hidden_size": 64, "intermediate_size": 96}


def in_mxfp4(stored: Stored) -> Stored:
    """As gpt-oss is published: 32 numbers along the input in 16 bytes, and a scale for them."""
    quantised: Stored = {}
    for name, (dtype, shape) in stored.items():
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, inner, out = shape
            quantised[f"{name}_blocks"] = ("U8", (experts, out, inner // 32, 16))
            quantised[f"{name}_scales"] = ("U8", (experts, out, inner // 32))
        else:
            quantised[name] = (dtype, shape)
    return quantised


def test_mxfp4_is_unpacked(tmp_path: Path) -> None:
    fields = WIDE_GPT_OSS | {"quantization_config": {"quant_method": "mxfp4"}}
    stored = in_mxfp4(shapes_of(native_state(WIDE_GPT_OSS)))
    blocks = "model.layers.0.mlp.experts.down_proj_blocks"
    assert stored[blocks] == ("U8", (6, 64, 3, 16))
    expected = {"parameters": numbers_of(build(WIDE_GPT_OSS, device="meta"))[0]}
    assert by_checkpoint(analysed(written(tmp_path, fields, stored))) == expected
    changed: Stored = {blocks: ("U8", (6, 64, 4, 16)), blocks.replace("blocks", "scales"): ("U8", (6, 64, 4))}
    with pytest.raises(CheckpointError, match=r"1 misshapen: \S+\.0\S+down_proj in \S+ has shape \(6, 128, 64\), must"):
        analysed(written(tmp_path, fields, stored | changed))
    del stored[blocks.replace("blocks", "scales")]
    with pytest.raises(CheckpointError, match=r"1 missing: \S+down_proj .*1 surplus: \S+down_proj_blocks in "):
        analysed(written(tmp_path, fields, stored))


@pytest.mark.parametrize(
    ("changed", "example"),
    [
        ({"model.layers.0.mlp.up_proj.qweight": ("I32", (8, 112))}, "up_proj.qweight"),
        ({"model.layers.0.mlp.up_proj.weight": ("U8", (3584, 1))}, "up_proj.weight"),
        ({"model.layers.0.mlp.up_proj.weight_packed": ("I32", (112, 8))}, "up_proj.weight_packed"),
    ],
    ids=["GPTQ", "bitsandbytes", "compressed-tensors"],
)
def test_packed_weights_are_not_compared(changed: Stored, example: str, tmp_path: Path) -> None:
    written(tmp_path, LLAMA, shapes_of(native_state(LLAMA)) | changed)
    analysis = analysed(tmp_path)
    assert by_checkpoint(analysis) == {}
    reason = f"tensors are packed by quantisation (1, as model.layers.0.mlp.{example})"
    assert analysis.notes[-1] == f"Checkpoint: not compared, because {reason}."
