"""The analysis as a library call: its conventions, its parts, and what it refuses."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest
import torch

from counting.analysis import Analysis, analyze
from counting.cost.cluster import Cluster
from counting.cost.hardware import find_gpu
from counting.setup import Setup
from tests.shrunken import DEEPSEEK_V3, LLAMA
from torch_models import UserError, build
from torch_models.fields.config import spec_from_fields
from torch_models.layout import Layout

SPECS = {"llama": spec_from_fields(LLAMA, "small"), "deepseek_v3": spec_from_fields(DEEPSEEK_V3, "small")}


@pytest.mark.parametrize("kernels", ["fused", "eager"])
@pytest.mark.parametrize("family", SPECS)
def test_lossless_to_json_and_consistent(family: str, kernels: Any) -> None:
    analysis = analyze(SPECS[family], Setup(kernels=kernels))
    assert msgspec.json.decode(msgspec.json.encode(analysis), type=Analysis) == analysis
    assert analysis.parameters.total == sum(analysis.parameters.by_component.values())
    assert analysis.parameters.by_component["positional_embedding"] == 0
    assert analysis.forward_flops == sum(analysis.forward_flops_by_component.values())
    assert sum(layer.count for layer in analysis.layers) == len(SPECS[family].layers)
    cores = sum(layer.count * layer.attention_core_flops.as_run for layer in analysis.layers)
    assert analysis.forward_flops - analysis.forward_flops_causal == cores // 2
    assert analysis.forward_flops_full_attention == analysis.forward_flops
    for layer in analysis.layers:
        assert layer.peak_memory_bytes >= layer.peak_memory_no_grad_bytes
        assert layer.peak_memory_parts.weights >= 2 * layer.parameters


def test_the_sequence_length_given_wins() -> None:
    own, given = analyze(SPECS["llama"]), analyze(SPECS["llama"], Setup(sequence_length=16))
    assert (own.setup.sequence_length, own.setup.sequence_length_source) == (64, "max_position_embeddings")
    assert (given.setup.sequence_length, given.setup.sequence_length_source) == (16, "given")


@pytest.mark.parametrize("length", [0, -1, 2**24 + 1, True, 1.5, "16"])
def test_a_sequence_length_that_cannot_be(length: Any) -> None:
    with pytest.raises(ValueError, match=r"sequence_length = .*: must be a whole number of tokens from 1 to 16777216"):
        Setup(sequence_length=length)


def test_unknown_kernels() -> None:
    with pytest.raises(ValueError, match="kernels = 'flash': must be one of fused, eager"):
        Setup(kernels="flash")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"setup": "x"}, r"^setup = 'x': must be a Setup$"),
        ({"setup": None}, r"^setup = null: must be a Setup$"),
        ({"layout": "fsdp=8"}, r"^layout = 'fsdp=8': must be a Layout$"),
        ({"layout": Layout(), "step": False}, r"^step = false: must be true with a layout$"),
        ({"cluster": 8, "step": False}, r"^step = false: must be true with a cluster$"),
        ({"cluster": ()}, r"^cluster = \(\): must be a Cluster, or several of them$"),
        ({"cluster": 8}, r"^cluster = 8: must be a Cluster, or several of them$"),
    ],
)
def test_arguments_that_cannot_be(arguments: dict[str, Any], error: str) -> None:
    with pytest.raises(UserError, match=error):
        analyze(SPECS["llama"], **arguments)


def test_a_cluster_whose_speed_is_unknown_is_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu = msgspec.structs.replace(find_gpu("H100"), name="Ours", architecture=None, rates=None)
    monkeypatch.setattr("counting.measurements.model.measure", None)
    with pytest.raises(UserError, match="'Ours': has no rates in the catalogue, and its architecture is not given"):
        analyze(SPECS["llama"], cluster=Cluster(gpu=gpu))


@pytest.mark.parametrize(
    ("precision", "step", "dtype"),
    [("fp32", True, "float32"), ("fp32", False, "bfloat16"), ("mixed", True, "bfloat16"), ("fp8", True, "bfloat16")],
)
def test_the_format_that_was_measured(precision: str, step: bool, dtype: str) -> None:
    assert analyze(SPECS["llama"], Setup(precision=precision), step=step).setup.measured_dtype == dtype


def test_the_largest_sizes_do_not_overflow() -> None:
    fields = LLAMA | {
        "hidden_size": 2**20,
        "intermediate_size": 2**20,
        "num_attention_heads": 2**12,
        "head_dim": 256,
        "vocab_size": 2**24,
        "num_hidden_layers": 100_000,
    }
    analysis = analyze(spec_from_fields(fields, "absurd"), Setup(sequence_length=2**24, kernels="eager"))
    assert analysis.forward_flops > 2**80  # far beyond 64 bits
    assert msgspec.json.decode(msgspec.json.encode(analysis), type=Analysis) == analysis


def test_main_layer() -> None:
    assert analyze(SPECS["deepseek_v3"]).main_layer.kind == "moe"
    dense = spec_from_fields(DEEPSEEK_V3 | {"first_k_dense_replace": 4}, "dense")
    assert analyze(dense).main_layer.kind == "dense"


def test_windows_are_followed_and_the_full_figure_stands_beside() -> None:
    """Mistral-7B at twice its window of 4096: the band is half the square, and causally three eighths."""
    analysis = analyze("mistral_7b_config.json", Setup(sequence_length=8192))
    (layer,) = analysis.layers
    square = 4 * 8192**2 * 4096  # scores and values, 2 FLOPs each, 32 heads of 128 channels
    assert layer.kind == "dense_window_4096"
    assert layer.attention_core_flops.full_square == square
    assert layer.attention_core_flops.as_run == square // 2
    assert layer.attention_core_flops.causal == square * 3 // 8
    assert layer.forward_flops_full_attention - layer.forward_flops == square // 2
    within = analyze("mistral_7b_config.json", Setup(sequence_length=4096)).layers[0]
    assert within.forward_flops == within.forward_flops_full_attention
    eager = analyze("mistral_7b_config.json", Setup(sequence_length=8192, kernels="eager")).layers[0]
    assert eager.forward_flops == layer.forward_flops_full_attention


def test_an_analysis_within_inference_mode_and_in_threads() -> None:
    with torch.inference_mode():
        expected = analyze(SPECS["deepseek_v3"])
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: analyze(SPECS["deepseek_v3"]), range(8)))
    assert all(result == expected for result in results)


def test_without_gradients_nothing_is_saved() -> None:
    for layer in analyze(SPECS["deepseek_v3"]).layers:
        assert layer.peak_memory_no_grad_parts is not None
        assert layer.peak_memory_no_grad_parts.saved == 0


@pytest.mark.parametrize("kernels", ["flash", "", "FUSED"])
def test_building_refuses_unknown_kernels(kernels: Any) -> None:
    with pytest.raises(UserError, match="must be one of fused, eager"):
        build(SPECS["llama"], device="meta", kernels=kernels)
