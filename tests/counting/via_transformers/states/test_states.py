"""Layers that carry a state along the sequence: what transformers builds, without the products of their scans."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from counting.analysis import Analysis, analyze
from counting.formulas.state_spaces import scan_flops
from counting.report.screen.lines import Fact, Lines
from counting.report.screen.model import conventions_screen, scans_in_words
from counting.scans import DeltaRuleScan, StateSpaceScan
from counting.setup import Setup
from counting.via_transformers.states import stand_ins
from counting.via_transformers.states.elementwise import _operations_of, elementwise_operations
from tests.counting.via_transformers.scans import GROUPED, without_scans
from tests.foreign_families import SMALL, without
from torch_models.errors import UserError
from torch_models.fields.config import ForeignConfig

PAGE = (Path(__file__).resolve().parents[4] / "docs" / "families.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (\w+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|$", PAGE, flags=re.MULTILINE)
LENGTH = 72

EXPERTS = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 24}
MAMBA2: dict[str, Any] = {"vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 3, "num_heads": 8, "head_dim": 16}
MAMBA2 |= {"state_size": 16, "n_groups": 2, "chunk_size": 16, "pad_token_id": 0}
DELTA = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 8}
NEMOTRON: dict[str, Any] = without(SMALL, "num_hidden_layers") | {"hybrid_override_pattern": "M*E-", "head_dim": 16}
NEMOTRON |= {"mamba_num_heads": 8, "mamba_head_dim": 16, "ssm_state_size": 16, "n_groups": 2, "chunk_size": 16}
NEMOTRON |= {"n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 24}
NEMOTRON |= {"moe_shared_expert_intermediate_size": 40, "max_position_embeddings": 128}
KIMI: dict[str, Any] = SMALL | {"num_key_value_heads": 4, "linear_head_dim": 16, "linear_num_heads": 4}
KIMI |= {"num_local_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 24, "kv_lora_rank": 16}
KIMI |= {"qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16, "num_hidden_layers": 5, "topk_group": 1}
KIMI |= {"n_group": 1, "num_shared_experts": 1, "max_position_embeddings": 128}
GEMMA: dict[str, Any] = without(SMALL, "num_key_value_heads", "max_position_embeddings") | {"num_key_value_heads": 1}
GEMMA |= {"lru_width": 64, "attention_window_size": 128, "num_hidden_layers": 3}

# Small configs, with the scans that their layers have, as they are named.
FAMILIES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "mamba": ({"vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 3, "state_size": 4}, {"Mamba-1"}),
    "mamba2": (MAMBA2, {"Mamba-2 (SSD) in chunks of 16"}),
    "qwen3_next": (
        SMALL
        | EXPERTS
        | DELTA
        | {"shared_expert_intermediate_size": 8, "head_dim": 16, "max_position_embeddings": 128},
        {"gated DeltaNet in chunks of 64"},
    ),
    "nemotron_h": (NEMOTRON, {"Mamba-2 (SSD) in chunks of 16"}),
    "kimi_linear": (KIMI, {"Kimi Delta Attention in chunks of 64"}),
    "recurrent_gemma": (GEMMA, {"RG-LRU"}),
    "rwkv": (
        {"vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 3, "context_length": 128},
        {"RWKV-4"},
    ),
    "lfm2": (
        SMALL | {"layer_types": ["conv", "conv", "full_attention", "conv"], "max_position_embeddings": 128},
        {"short convolution"},
    ),
    "minimax": (
        SMALL | {"block_size": 16, "num_local_experts": 4, "head_dim": 16, "max_position_embeddings": 128},
        {"lightning attention in blocks of 16"},
    ),
}


def foreign(model_type: str, fields: dict[str, Any]) -> ForeignConfig:
    fields = {"model_type": model_type, **fields}
    return ForeignConfig(name="small", source="small", model_type=model_type, fields=fields)


def measured(model_type: str, **more: Any) -> Analysis:
    return analyze(foreign(model_type, FAMILIES[model_type][0] | more), Setup(sequence_length=LENGTH))


def whole_model(model_type: str) -> Any:
    config = transformers.AutoConfig.for_model(model_type, **FAMILIES[model_type][0])
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16, attn_implementation="eager"
        ).eval()
    if model._can_set_experts_implementation():
        model.set_experts_implementation("grouped_mm")
    return model


@pytest.mark.parametrize("model_type", FAMILIES)
def test_parameters_and_products_are_those_of_the_whole_model(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of transformers' own model with all of its layers; the products of its scans are set aside."""
    analysis, model = measured(model_type), whole_model(model_type)
    assert analysis.parameters.total == sum(parameter.numel() for parameter in model.parameters())
    assert analysis.parameters.total == sum(analysis.parameters.by_component.values())
    counter = FlopCounterMode(display=False, custom_mapping=GROUPED)
    with torch.no_grad(), without_scans(model), counter:
        model(input_ids=torch.zeros(1, LENGTH, dtype=torch.long, device="meta"), use_cache=False)
    counts = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    rotary = sum(count for name, count in counts.items() if name.rpartition(".")[2].startswith("rotary_emb"))
    assert analysis.forward_flops_full_attention - analysis.scan_flops == counts["Global"] - rotary
    said = {scan for layer in analysis.layers for scan in layer.scans}
    assert said | {"short convolution"} == FAMILIES[model_type][1] | {"short convolution"}
    assert analysis.elementwise_operations > 0
    assert analysis.training is None
    assert any("carry a state" in note for note in analysis.notes)
    by_formula = {scan for layer in analysis.layers for scan in layer.scans_by_formula}
    assert by_formula == {scan for scan in said if "chunks" in scan}
    assert bool(by_formula) is (analysis.scan_flops > 0) is ("formula" in analysis.agreement.witnesses)
    assert analysis.proof == ("measured; scans by formula" if by_formula else "measured, no formula")
    assert analysis.notes[0].startswith("Measured, but for" if by_formula else "Measured, no formula: ")
    for layer in analysis.layers:
        assert layer.peak_memory_bytes is None or not layer.scans
        assert layer.forward_flops_by_component.get("other", 0) == 0


def test_scans_are_counted_from_the_shapes_that_ran() -> None:
    """Qwen3-Next: 4 heads of values in two chunks of 64, the second padded; Mamba-2: five chunks of 16."""
    (delta, attention) = measured("qwen3_next").layers
    rule = DeltaRuleScan(
        sequences=1, length=LENGTH, heads=4, key_size=16, value_size=8, chunk=64, decays_by_channel=False
    )
    assert (delta.count, attention.count) == (3, 1)
    assert (delta.scan_flops, attention.scan_flops) == (scan_flops(rule), 0)
    (mamba,) = measured("mamba2").layers
    space = StateSpaceScan(sequences=1, length=LENGTH, heads=8, groups=2, head_size=16, state_size=16, chunk=16)
    assert mamba.scan_flops == scan_flops(space) == 2 * 5 * 16 * 16 * 16 * (2 + 3 * 8)
    twice = analyze(foreign("mamba2", MAMBA2), Setup(sequence_length=LENGTH, micro_batch_size=2))
    assert twice.scan_flops == 2 * 3 * mamba.scan_flops
    checks = [check for check in twice.agreement.checks if check.quantity == "scan_flops"]
    assert [tuple(check.values) for check in checks] == [("formula",)]


def test_scans_in_words() -> None:
    """Only scans with products are said to be by formula."""
    delta, mamba = measured("qwen3_next"), measured("mamba")
    share = 100 * delta.scan_flops / delta.forward_flops
    operations = 100 * delta.elementwise_operations / delta.forward_flops
    assert scans_in_words(delta) == (
        f"gated DeltaNet in chunks of 64: {share:.2f} % of the FLOPs, by formula; beside it short convolution; "
        f"elementwise operations: {operations:.3g} for each 100 FLOPs, not among them"
    )
    assert scans_in_words(mamba).startswith("short convolution and Mamba-1; elementwise operations: ")
    proofs = []
    for analyses in ([delta], [mamba], [mamba, delta]):
        conventions_screen(lines := Lines(80), analyses)
        proofs += [fact.text for fact in lines.said if isinstance(fact, Fact) and fact.label == "proof"]
    assert proofs[0].startswith("Measured; products of scans by formula alone. ")
    assert proofs[1].startswith("Measured, no formula. ")
    assert "by formula" not in proofs[1]
    assert proofs[2].startswith("Measured, no formula: small. Measured; products of scans by formula alone: small. ")


@pytest.mark.parametrize("model_type", ["mamba", "mamba2", "qwen3_next", "kimi_linear", "recurrent_gemma", "rwkv"])
def test_elementwise_operations_of_short_sequences_give_those_of_longer_ones(
    model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held against the reference code run over the sequence itself."""
    from counting.via_transformers import count

    found: list[tuple[int, int]] = []

    def both(noted: stand_ins.NotedScan) -> int:
        operations = elementwise_operations(noted)
        found.append((operations, _operations_of(noted, noted.length)))
        return operations

    monkeypatch.setattr(count, "elementwise_operations", both)
    length = 5 * 64 if model_type in ("qwen3_next", "kimi_linear") else 5 * 16 + (0 if model_type == "mamba2" else 3)
    analyze(foreign(model_type, FAMILIES[model_type][0] | longer(model_type)), Setup(sequence_length=length))
    assert found
    assert [short for short, _ in found] == [whole for _, whole in found]


def longer(model_type: str) -> dict[str, Any]:
    return {"max_position_embeddings": 512} if "max_position_embeddings" in FAMILIES[model_type][0] else {}


def test_only_softmax_layers_have_a_causal_half() -> None:
    """MiniMax-01 in small: two of four layers have a square of 64 x 64 scores and values, 4 heads of 16 channels.

    The others multiply blocks of 16 tokens, which count whole, also in the causal figure.
    """
    fields = FAMILIES["minimax"][0] | {"layer_types": ["linear_attention", "full_attention"] * 2}
    analysis = analyze(foreign("minimax", fields), Setup(sequence_length=64))
    softmax = 2 * (2 * 64 * 64 * 64)
    cores = {layer.kind: (layer.count, layer.attention_core_flops.as_run) for layer in analysis.layers}
    assert cores == {"moe, linear_attention": (2, 0), "moe": (2, softmax)}
    assert analysis.forward_flops - analysis.forward_flops_causal == 2 * softmax // 2 == 1_048_576


def test_a_window_by_hand() -> None:
    """Each of 64 channels multiplies and adds 3 numbers (`conv_L_cache`) at 72 + 2 places, padded ones included."""
    (first, *_) = measured("lfm2").layers
    assert first.elementwise_operations == 2 * 3 * 64 * (LENGTH + 2)
    assert first.scan_flops == 0


def test_an_unknown_scan_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The convolution before it is known, and is no reason to accept the layer."""
    known = {name: each for name, each in stand_ins.REPLACED.items() if name != "mamba_selective_scan"}
    monkeypatch.setattr(stand_ins, "REPLACED", known)
    with pytest.raises(UserError, match=r"its layers \(MambaBlock\) carry a state from token to token by a function"):
        measured("mamba")


def test_functions_of_transformers_are_put_back() -> None:
    from transformers.models.mamba2 import modeling_mamba2

    before = dict(vars(modeling_mamba2))
    measured("mamba2")
    assert dict(vars(modeling_mamba2)) == before


@pytest.mark.parametrize(("model_type", "parameters", "flops", "scans", "operations"), ROWS, ids=[r[0] for r in ROWS])
def test_default_configs_give_what_the_page_says(
    model_type: str, parameters: str, flops: str, scans: str, operations: str, tmp_path: Path
) -> None:
    path = tmp_path / "saved_config.json"
    transformers.AutoConfig.for_model(model_type).to_json_file(path, use_diff=False)
    analysis = analyze(path, Setup(sequence_length=1024))
    numbers = (analysis.parameters.total, analysis.forward_flops, analysis.scan_flops, analysis.elementwise_operations)
    assert tuple(f"{number:,}" for number in numbers) == (parameters, flops, scans, operations)
