"""Families without modules here: what transformers builds, measured; and everything that is refused instead."""

import socket
import sys
from typing import Any

import msgspec
import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from counting.analysis import Analysis, analyze
from counting.counts import AttentionCore
from counting.reconcile import DisagreementError
from counting.setup import Setup
from counting.via_transformers import count, ops
from tests.foreign_families import FAMILIES, GPT2, SMALL, without
from tests.shrunken import DEEPSEEK_V3, LLAMA
from torch_models.fields.config import ForeignConfig, spec_from_fields

LENGTH = 32

WITHOUT_MEMORY = {"bloom", "falcon"}


def foreign(model_type: str, fields: dict[str, Any]) -> ForeignConfig:
    return ForeignConfig(
        name="small", source="small", model_type=model_type, fields={"model_type": model_type, **fields}
    )


def measured(model_type: str, fields: dict[str, Any]) -> Analysis:
    return analyze(foreign(model_type, fields), Setup(sequence_length=LENGTH), step=False)


def whole_model(model_type: str, fields: dict[str, Any]) -> Any:
    """transformers' own model, all of its layers, on the meta device."""
    config = transformers.AutoConfig.for_model(model_type, **fields)
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


@pytest.mark.parametrize("model_type", FAMILIES)
def test_family(model_type: str) -> None:
    fields, kinds = FAMILIES[model_type]
    analysis = measured(model_type, fields)
    model = whole_model(model_type, fields)
    numel = sum(parameter.numel() for parameter in model.parameters())
    assert analysis.parameters.total == sum(analysis.parameters.by_component.values()) == numel
    assert {layer.kind: layer.count for layer in analysis.layers} == kinds
    assert analysis.proof == "measured, no formula"
    assert analysis.agreement.witnesses == ("numel", "trace", "dispatch")
    checks = analysis.agreement.checks
    flops = [check for check in checks if check.quantity == "forward_flops"]
    assert len(flops) >= 4
    assert all(check.values.keys() == {"trace", "dispatch"} for check in flops)
    parameters = [check for check in checks if check.quantity == "parameters"]
    assert {tuple(check.values) for check in parameters} == {("numel",)}
    in_layers = sum(layer.count * layer.forward_flops for layer in analysis.layers)
    (outside,) = (
        check.values["trace"] for check in flops if (check.scope, check.component) == ("outside the layers", "total")
    )
    assert analysis.forward_flops == in_layers + outside == sum(analysis.forward_flops_by_component.values())
    assert analysis.forward_flops_by_component["lm_head"] > 0
    assert analysis.forward_flops_causal < analysis.forward_flops
    for layer in analysis.layers:
        assert layer.forward_flops_by_component.get("other", 0) == 0
        assert layer.parameters_by_component.get("other", 0) == 0
        assert (layer.peak_memory_bytes is None) is (model_type in WITHOUT_MEMORY)
        if layer.peak_memory_parts is not None:
            correction_bias = 4 * 16 if (model_type, layer.kind) == ("glm4_moe_lite", "moe") else 0  # in fp32
            assert layer.peak_memory_parts.weights == 2 * layer.parameters + correction_bias
            assert layer.peak_memory_parts.boundary == 2 * LENGTH * 64
    assert msgspec.json.decode(msgspec.json.encode(analysis), type=Analysis) == analysis


@pytest.mark.parametrize("model_type", ["gpt_bigcode", "falcon", "cohere2", "exaone4", "olmoe", "glm4_moe_lite"])
def test_all_layers_run_cost_what_the_distinct_ones_say(model_type: str) -> None:
    """The whole model, none of its layers left out, in transformers' own attention; rotary tables apart."""
    fields, _ = FAMILIES[model_type]
    model = whole_model(model_type, fields)
    if model._can_set_experts_implementation():
        model.set_experts_implementation("grouped_mm")
    counter = FlopCounterMode(display=False)
    mask = torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool, device="meta")
    with torch.no_grad(), counter:
        ids = torch.zeros(1, LENGTH, dtype=torch.long, device="meta")
        model(input_ids=ids, attention_mask=mask, use_cache=False)
    counts = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    rotary = sum(count for name, count in counts.items() if name.rpartition(".")[2].startswith("rotary_emb"))
    assert measured(model_type, fields).forward_flops_full_attention == counts["Global"] - rotary


WINDOW = 8
# Families with windows: in layers of one type, or in all of them, passed to the kernel or in the mask alone.
WINDOWED = {
    "cohere2": SMALL | {"sliding_window": WINDOW},
    "exaone4": SMALL | {"sliding_window": WINDOW, "sliding_window_pattern": 4, "head_dim": 16},
    "phi3": SMALL | {"sliding_window": WINDOW},
    "phimoe": SMALL | {"sliding_window": WINDOW, "num_local_experts": 4},
}


@pytest.mark.parametrize("model_type", WINDOWED)
def test_a_window_counts_as_a_band_beside_the_full_square(model_type: str) -> None:
    """Four heads of 16 channels over 32 tokens: scores and values of all 32 x 32 pairs, of 32 x 8, or of their past."""
    analysis = measured(model_type, WINDOWED[model_type])
    square = AttentionCore(as_run=4 * 32 * 32 * 64, causal=4 * (32 * 32 // 2) * 64, full_square=4 * 32 * 32 * 64)
    band = AttentionCore(as_run=4 * 32 * 8 * 64, causal=4 * (32 * 8 - 8 * 8 // 2) * 64, full_square=4 * 32 * 32 * 64)
    cores = {layer.kind: layer.attention_core_flops for layer in analysis.layers}
    sliding = {kind for kind in cores if "sliding" in kind} or set(cores)
    assert cores == {kind: band if kind in sliding else square for kind in cores}
    assert len(cores) == (1 if model_type in ("phi3", "phimoe") else 2)
    in_band = sum(layer.count for layer in analysis.layers if layer.kind in sliding)
    saved = in_band * (square.as_run - band.as_run)
    assert saved == analysis.forward_flops_full_attention - analysis.forward_flops > 0
    longer = analyze(foreign(model_type, WINDOWED[model_type] | {"sliding_window": 32}), Setup(sequence_length=LENGTH))
    assert longer.forward_flops == longer.forward_flops_full_attention == analysis.forward_flops_full_attention


def test_falcon_40b_by_hand() -> None:
    """Published sizes: 60 layers, 8192 wide, 128 heads of 64 with 8 heads of keys and values, 65,024 words, tied."""
    fields = {"hidden_size": 8192, "num_hidden_layers": 60, "num_attention_heads": 128, "num_kv_heads": 8}
    fields |= {"new_decoder_architecture": True, "vocab_size": 65024, "bias": False, "alibi": False}
    analysis = analyze(foreign("falcon", fields | {"parallel_attn": True}), Setup(sequence_length=2048))
    # Queries, keys and values of (128 + 2 x 8) x 64; the output; a feed-forward of 4 x 8192; two norms; then all.
    layer = 8192 * 144 * 64 + 8192**2 + 2 * 4 * 8192**2 + 4 * 8192
    assert analysis.parameters.total == 65024 * 8192 + 60 * layer + 2 * 8192 == 41_303_293_952
    products = 2 * 2048 * (60 * (layer - 4 * 8192) + 65024 * 8192) + 60 * 4 * 2048**2 * 8192
    assert analysis.forward_flops == products == 177_416_509_063_168


@pytest.mark.parametrize("model_type", ["gpt_bigcode", "olmoe", "bloom", "falcon"])
def test_sequences_that_run_together_cost_what_they_cost_alone(model_type: str) -> None:
    config = foreign(model_type, FAMILIES[model_type][0])
    one, three = (analyze(config, Setup(sequence_length=LENGTH, micro_batch_size=size)) for size in (1, 3))
    assert three.forward_flops == 3 * one.forward_flops
    assert three.parameters == one.parameters
    for alone, together in zip(one.layers, three.layers, strict=True):
        assert together.attention_core_flops == alone.attention_core_flops * 3
        if alone.peak_memory_parts is not None:
            assert together.peak_memory_parts is not None
            assert together.peak_memory_parts.boundary == 3 * alone.peak_memory_parts.boundary


def test_gpt2_by_hand() -> None:
    analysis = measured("gpt2", GPT2)
    # S = 32 rows; query, key, value and output of 64 x 64; 32 x 32 scores and values of 4 heads of 16 channels.
    attention = 2 * 32 * (3 + 1) * 64 * 64 + 2 * (2 * 32 * 32 * 64)
    mlp = 2 * (2 * 32 * 64 * 256)
    (layer,) = analysis.layers
    assert layer.forward_flops_by_component["attention"] == attention == 1_310_720
    assert layer.forward_flops_by_component["mlp"] == mlp == 2_097_152
    assert layer.attention_core_flops.as_run == 262_144
    assert analysis.forward_flops == 3 * (attention + mlp) + 2 * 32 * 64 * 96
    components = analysis.parameters.by_component
    assert components["word_embedding"] == 96 * 64
    assert components["positional_embedding"] == 64 * 64
    assert components["lm_head"] == 0  # tied
    assert components["attention"] == 3 * (64 * 192 + 192 + 64 * 64 + 64)
    assert components["mlp"] == 3 * (64 * 256 + 256 + 256 * 64 + 64)
    assert components["norm"] == (2 * 3 + 1) * 2 * 64


@pytest.mark.parametrize(
    ("optimizer", "of_matrices", "of_vectors", "of_tables"),
    [
        ("adamw", 8 * 3 * 49_152, 8 * (3 * 832 + 128), 8 * 10_240),
        ("muon", 4 * 3 * 49_152, 8 * (3 * 832 + 128), 8 * 10_240),
        ("adafactor", 4 * 3 * (256 + 128 + 320 + 320), 4 * (3 * 832 + 128), 4 * (160 + 128)),
    ],
)
def test_moments_of_gpt2_by_hand(optimizer: str, of_matrices: int, of_vectors: int, of_tables: int) -> None:
    """Three layers: matrices of 64 x 192, 64 x 64, 64 x 256 and back; biases of 192, 64, 256, 64; norms of 4 x 64.

    The tables have 96 and 64 rows of 64. The last norm has 2 x 64 numbers.
    """
    assert 64 * (192 + 64 + 256 + 256) == 49_152
    assert 192 + 64 + 256 + 64 + 4 * 64 == 832
    setup = Setup(sequence_length=LENGTH, optimizer=optimizer, precision="fp32")
    parameters = analyze(foreign("gpt2", GPT2), setup).parameters
    assert parameters.moment_bytes == of_matrices + of_vectors + of_tables
    assert parameters.mtp_moment_bytes == 0


def test_moments_of_experts_are_those_of_the_native_family() -> None:
    for optimizer in ("muon", "adafactor", "adamw-8bit"):
        setup = Setup(sequence_length=LENGTH, optimizer=optimizer)
        native = analyze(spec_from_fields(DEEPSEEK_V3, "small"), setup, step=False).parameters
        other = analyze(foreign("deepseek_v3", without(DEEPSEEK_V3, "model_type")), setup).parameters
        assert native.moment_bytes == other.moment_bytes


@pytest.mark.parametrize(
    "fields",
    [LLAMA, LLAMA | {"tie_word_embeddings": True, "num_key_value_heads": 2, "attention_bias": True}, DEEPSEEK_V3],
    ids=["llama", "llama-variant", "deepseek_v3"],
)
def test_a_native_family_through_transformers_is_the_native_analysis(fields: dict[str, Any]) -> None:
    native = analyze(spec_from_fields(fields, "small"), Setup(sequence_length=LENGTH), step=False)
    other = measured(fields["model_type"], without(fields, "model_type"))
    # transformers has no mtp; buffers
    left_out = ("mtp", "mtp_linear_weights", "mtp_moment_bytes", "router_correction_bias", "mtp_router_correction_bias")
    mine, theirs = (msgspec.to_builtins(analysis.parameters) for analysis in (native, other))
    assert without(mine, *left_out) == without(theirs, *left_out)
    assert other.forward_flops_by_component == native.forward_flops_by_component
    assert other.forward_flops_causal == native.forward_flops_causal
    assert [(layer.kind, layer.count) for layer in other.layers] == [(x.kind, x.count) for x in native.layers]
    for one, two in zip(native.layers, other.layers, strict=True):
        assert one.parameters_by_component == two.parameters_by_component
        assert one.forward_flops_by_component == two.forward_flops_by_component
        assert one.attention_core_flops == two.attention_core_flops
        assert two.peak_memory_parts is not None
        assert one.peak_memory_parts is not None
        assert two.peak_memory_parts.boundary == one.peak_memory_parts.boundary
        assert two.peak_memory_bytes > one.peak_memory_bytes  # type: ignore[operator]  # norms step by step


def test_a_product_that_only_makes_a_mask_is_counted() -> None:
    """Doge multiplies values by a matrix to mask keys; the kernel takes the mask by its name."""
    fields = {"hidden_size": 1024, "intermediate_size": 2048, "num_attention_heads": 8, "num_hidden_layers": 32}
    fields |= {"num_key_value_heads": 8, "vocab_size": 32768, "tie_word_embeddings": False, "keep_window_size": 2048}
    analysis = analyze(foreign("doge", fields), Setup(sequence_length=2048))
    assert analysis.parameters.total == 403_055_872
    (layer,) = analysis.layers
    # Projections, and both products of 2,048 x 2,048 scores; then the 8 numbers of each token that make the mask.
    products = 2 * 2048 * 4 * 1024**2 + 2 * (2 * 2048**2 * 1024)
    assert layer.forward_flops_by_component["attention"] == products + 2 * 2048 * 1024 * 8 == 34_393_292_800
    assert layer.peak_memory_bytes is None  # a fused kernel with a mask keeps other tensors


def test_sequence_length_and_what_was_defaulted() -> None:
    analysis = analyze(foreign("gpt2", GPT2))
    assert (analysis.setup.sequence_length, analysis.setup.sequence_length_source) == (64, "n_positions")
    assert "tie_word_embeddings = true" in analysis.defaulted_fields
    assert not any(field.startswith("n_layer") for field in analysis.defaulted_fields)
    source = analyze(foreign("phi3", without(SMALL, "max_position_embeddings"))).setup.sequence_length_source
    assert source == "max_position_embeddings, transformers' default"


def test_fields_of_published_configs() -> None:
    fields, _ = FAMILIES["falcon"]
    published = {"apply_residual_connection_post_layernorm": False, "n_ctx": 64, "torch_dtype": "bfloat16"}
    published |= {"quantization_config": {"quant_method": "fp8"}, "rope_theta": 10000.0}
    assert measured("falcon", fields | published).parameters == measured("falcon", fields).parameters


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "encoder-decoder": ("t5", {}, "has an encoder beside its decoder; only decoders are measured"),
    "encoder-decoder with a causal class": ("bart", {}, "has an encoder beside its decoder"),
    "encoder": ("bert", {}, "is an encoder unless is_decoder is true; only decoders are measured"),
    "vision and text": ("llava", {}, r"is made of several models \(vision_config, text_config\).*give text_only"),
    "vision": ("vit", {}, "transformers has no causal language model of this family"),
    "experts computed densely": (
        "llama4_text",
        SMALL | {"num_local_experts": 4, "intermediate_size_mlp": 64, "head_dim": 16},
        "a product with the stacked weights of all experts",
    ),
    "unknown everywhere": ("lama", {}, "must be one of .*llama, .*, and transformers has no such family"),
    "misspelled field": (
        "gpt2",
        {"n_layers": 3},
        r"n_layers = 3: describes the number of layers, .* GPT2Config .*did you mean n_layer\?",
    ),
    "cross-attention": (
        "gpt2",
        {"add_cross_attention": True},
        "add_cross_attention = true: must be false: nothing else",
    ),
    "a switch turned on": (
        "gpt2",
        {"gated_mlp": True},
        "gated_mlp = true: the model is built without a feed-forward with a gate, whatever this field says",
    ),
    "unknown field": ("gpt2", {"memory_slots": 3}, "memory_slots = 3: .*if it does not change the architecture"),
    "a value of the wrong type": ("gpt2", {"n_layer": "three"}, "transformers rejects the config"),
    "heads that do not divide": ("gpt2", {"n_embd": 64, "n_head": 7}, "must be divisible|`?embed_dim`?"),
    "sequence length": ("gpt2", {"max_sequence_length": "long"}, "max_sequence_length = 'long': must be a whole"),
}


@pytest.mark.parametrize(("model_type", "fields", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(model_type: str, fields: dict[str, Any], message: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        analyze(foreign(model_type, fields), Setup(sequence_length=None if "max_sequence_length" in fields else LENGTH))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("small: ") or "seq" in message
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_an_op_without_a_formula_names_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    fewer = tuple(op for op in ops.FOREIGN_ZERO_FLOP_OPS if op != "aten::tanh")
    monkeypatch.setattr(count, "FOREIGN_ZERO_FLOP_OPS", fewer)
    with pytest.raises(ValueError, match=r"ops without a FLOP formula: aten::tanh"):
        measured("gpt2", GPT2)


def test_counters_that_differ_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ops.FOREIGN_HANDLES, "aten::addmm", lambda inputs, outputs: {"projection": 1})
    with pytest.raises(DisagreementError, match=r"dense layer, mlp: trace 2 differs from dispatch 2,097,152, by"):
        measured("gpt2", GPT2)


def test_eager_kernels_are_refused() -> None:
    with pytest.raises(ValueError, match="kernels = 'eager': gpt2 goes through transformers"):
        analyze(foreign("gpt2", GPT2), Setup(kernels="eager"))


def test_allocations_are_not_replayed() -> None:
    with pytest.raises(ValueError, match=r"^expandable_segments = true: gpt2 .*, and its allocations are not replayed"):
        analyze(foreign("gpt2", GPT2), Setup(expandable_segments=True))
    for setup in (Setup(execution="compiled"), Setup(expandable_segments=True)):
        with pytest.raises(ValueError, match=r"^reserved = 'given': gpt2 goes through transformers"):
            analyze(foreign("gpt2", GPT2), setup, reserved=True)


def test_without_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=r"pip install 'model-training-cost-analysis\[transformers\]'"):
        measured("gpt2", GPT2)


def test_the_network_is_never_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError(f"a connection: {args}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert measured("olmoe", FAMILIES["olmoe"][0]).parameters.active < 10**6


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"n_layer": 0}, "no decoder layers|cannot be measured"),
        ({"num_layers": 4}, "is another name of"),
        ({"num_hidden_layers": 4}, "is another name of"),
        ({"max_position_embeddings": 128}, "is another name of"),
    ],
)
def test_gpt2_fields_that_contradict_each_other(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        analyze(foreign("gpt2", GPT2 | fields))
