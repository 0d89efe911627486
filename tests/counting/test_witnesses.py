"""All witnesses agree to the integer: on every config, however a step is run, and on random shapes."""

import random
from typing import Any

import pytest

from counting.counts import Counts, ModelCounts, WholeModel
from counting.measurements.probe import build_probe
from counting.recipes import OPTIMIZERS, PRECISIONS
from tests.random_specs import random_layer, random_model
from tests.shrunken import DEEPSEEK_V3, FAMILIES, GPT_OSS, LLAMA, shared_out
from tests.sweeps import seeds
from tests.witnesses import agreed, at_most, derived, measured
from torch_models.fields.bundled import bundled_data
from torch_models.fields.config import read_spec, spec_from_fields
from torch_models.spec import Kernels, ModelRecompute, Recompute

CONFIGS = sorted(file.name for file in bundled_data().iterdir() if file.name.endswith("_config.json"))
KERNELS: list[Kernels] = ["fused", "eager"]
RECOMPUTES: list[Recompute] = ["none", "selective", "per_op", "full"]


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("config", CONFIGS)
def test_every_config(config: str, kernels: Kernels) -> None:
    ways: dict[Kernels, dict[str, Any]] = {
        "fused": {"recompute": "full", "loss_chunk": 512},
        "eager": {"recompute": "selective"},
    }
    spec = read_spec(config)
    assert agreed(spec, sequence_length=at_most(2048, spec), kernels=kernels, **ways[kernels])


# Of a layer, kernels and recomputation; of the head, the loss whole or in chunks. Ten in turn are all ways of a layer.
WAYS: list[tuple[Kernels, ModelRecompute, int | None]] = [
    (kernels, recompute, first if kernels == "fused" else second)
    for first, second in ((None, 7), (7, None))
    for kernels in KERNELS
    for recompute in (*RECOMPUTES, 2)
]


HEADS = ("gemma2", "deepseek_v3", "smollm3")  # caps on logits, further predictions, a head that is the embedding


@pytest.mark.parametrize(("family", "way"), shared_out(WAYS, share=len(WAYS) // 2, whole=HEADS), ids=str)
def test_every_way_to_run_a_step(family: str, way: tuple[Kernels, ModelRecompute, int | None]) -> None:
    kernels, recompute, loss_chunk = way
    spec = spec_from_fields(FAMILIES[family], "shrunken")
    counts = agreed(spec, kernels=kernels, recompute=recompute, loss_chunk=loss_chunk)
    assert counts.step_profile
    assert counts.training_flops


@pytest.mark.parametrize("optimizer", [optimizer.name for optimizer in OPTIMIZERS])
@pytest.mark.parametrize("precision", [precision.name for precision in PRECISIONS])
@pytest.mark.parametrize("fields", [DEEPSEEK_V3, GPT_OSS], ids=["deepseek_v3", "gpt_oss"])
def test_every_recipe(fields: dict[str, Any], precision: str, optimizer: str) -> None:
    spec = spec_from_fields(fields | {"tie_word_embeddings": optimizer == "sgd"}, "shrunken")
    mtp = False if precision == "fp32" else None
    assert agreed(spec, precision=precision, optimizer=optimizer, mtp=mtp, clip_gradients=True).step_profile


@pytest.mark.parametrize("family", FAMILIES)
def test_every_optimiser(family: str) -> None:
    """Of those whose update depends on shapes or neighbours; layers of several kinds, some of them repeated."""
    spec = spec_from_fields(FAMILIES[family] | {"num_hidden_layers": 5}, "shrunken")
    for optimizer, precision in (("adamw-foreach", "mixed"), ("adafactor", "bf16"), ("muon", "mixed")):
        assert agreed(spec, precision=precision, optimizer=optimizer, clip_gradients=True).step_profile


@pytest.mark.parametrize("config", ["llama_7b_config.json", "deepseek_v3_config.json", "gpt_oss_20b_config.json"])
def test_published_sizes(config: str) -> None:
    assert agreed(read_spec(config), sequence_length=4096, recompute="full", loss_chunk=1024).step_profile


LENGTHS = [(kernels, length) for kernels in KERNELS for length in (1, 2, 31, 4096)]


@pytest.mark.parametrize(("family", "way"), shared_out(LENGTHS, share=len(LENGTHS)), ids=str)
def test_every_sequence_length(family: str, way: tuple[Kernels, int]) -> None:
    kernels, sequence_length = way
    spec = spec_from_fields(FAMILIES[family], "shrunken")
    assert agreed(spec, step=False, sequence_length=sequence_length, kernels=kernels)


@pytest.mark.parametrize("seed", seeds(80, 600))
def test_layers_of_random_shape(seed: int) -> None:
    pick = random.Random(seed)
    spec = random_model(pick, random_layer(pick, indexers=True), seed)
    length, kernels = pick.choice([1, 2, 7, 64, 333, 4096]), pick.choice(KERNELS)
    chunk = pick.choice([None, 1, 3, 64, 5000]) if length < 256 else pick.choice([None, 64, 5000])
    assert agreed(
        spec,
        step=seed % 4 == 0,
        sequence_length=length,
        kernels=kernels,
        recompute=pick.choice(RECOMPUTES),
        loss_chunk=chunk,
        optimizer=pick.choice(OPTIMIZERS).name,
        precision=pick.choice(PRECISIONS).name,
        clip_gradients=pick.random() < 0.5,
    )


# --- Properties that hold whatever the numbers are -------------------------------------------------------------


def whole(fields: dict[str, Any], sequence_length: int = 64) -> WholeModel:
    return counts_of(fields, sequence_length).whole_model()


def counts_of(fields: dict[str, Any], sequence_length: int = 64) -> ModelCounts:
    return measured(spec_from_fields(fields, "shrunken"), step=False, sequence_length=sequence_length)


@pytest.mark.parametrize("fields", [LLAMA, DEEPSEEK_V3], ids=["llama", "deepseek_v3"])
def test_twice_the_layers_twice_their_counts(fields: dict[str, Any]) -> None:
    doubled = fields | {"num_hidden_layers": 2 * fields["num_hidden_layers"]}
    if "first_k_dense_replace" in fields:
        doubled["first_k_dense_replace"] = 2 * fields["first_k_dense_replace"]
    once, twice = counts_of(fields), counts_of(doubled)
    assert twice.outside == once.outside
    for field in ("forward_flops", "parameters"):
        outside: Any = getattr(once.outside, field)
        one, two = getattr(once.whole_model(), field), getattr(twice.whole_model(), field)
        assert two - outside == (one - outside) * 2


def test_with_all_experts_chosen_active_is_total() -> None:
    counts = whole(DEEPSEEK_V3 | {"num_experts_per_tok": 16, "topk_group": 4})
    assert counts.parameters is not None
    assert counts.active_parameters == counts.parameters.total
    few = whole(DEEPSEEK_V3).active_parameters
    assert few is not None
    assert few < counts.parameters.total


def test_a_tied_head_costs_flops_but_no_parameters() -> None:
    tied, untied = whole(LLAMA | {"tie_word_embeddings": True}), whole(LLAMA)
    assert tied.parameters is not None
    assert tied.parameters + Counts(lm_head=LLAMA["vocab_size"] * LLAMA["hidden_size"]) == untied.parameters
    assert tied.parameters.lm_head == 0
    assert tied.forward_flops == untied.forward_flops


def test_only_the_attention_core_grows_with_the_square_of_the_length() -> None:
    short, long = whole(DEEPSEEK_V3, 64), whole(DEEPSEEK_V3, 128)
    assert short.forward_flops is not None
    assert long.forward_flops is not None
    assert short.attention_core_flops is not None
    assert long.attention_core_flops is not None
    assert long.attention_core_flops.as_run == 4 * short.attention_core_flops.as_run
    linear = long.forward_flops.total - long.attention_core_flops.as_run
    assert linear == 2 * (short.forward_flops.total - short.attention_core_flops.as_run)


def test_a_scaled_rotary_embedding_changes_no_count() -> None:
    scaling = {"type": "yarn", "factor": 4, "original_max_position_embeddings": 16}
    assert counts_of(DEEPSEEK_V3 | {"rope_scaling": scaling}) == counts_of(DEEPSEEK_V3)


def test_the_number_of_layers_does_not_matter() -> None:
    """One layer of each kind is built and measured, however many there are."""
    for layers in (61, 6100):
        fields = DEEPSEEK_V3 | {"num_hidden_layers": layers, "first_k_dense_replace": 10}
        probe = build_probe(spec_from_fields(fields, "deep"), "fused")
        assert len(probe.layers) == 2
    spec = spec_from_fields(DEEPSEEK_V3 | {"num_hidden_layers": 10_000, "num_nextn_predict_layers": 7}, "deep")
    assert measured(spec, sequence_length=16).training_flops == derived(spec, sequence_length=16).training_flops
