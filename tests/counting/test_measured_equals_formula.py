"""The two witnesses agree to the integer: on every config, under both kernel profiles, and on random shapes."""

import random
from typing import Any

import pytest

from counting.counts import Counts, ModelCounts
from counting.formulas.model import derive
from counting.measurements.probe import measure
from counting.reconcile import reconcile
from tests.random_specs import random_layer, random_model
from tests.shrunken import DEEPSEEK_V3, FAMILIES, LLAMA
from torch_models.fields.bundled import bundled_data
from torch_models.fields.config import read_spec, spec_from_fields
from torch_models.spec import (
    Kernels,
)

CONFIGS = sorted(file.name for file in bundled_data().iterdir() if file.name.endswith("_config.json"))
KERNELS: list[Kernels] = ["fused", "eager"]


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("config", CONFIGS)
def test_every_config(config: str, kernels: Kernels) -> None:
    spec = read_spec(config)
    assert measure(spec, 2048, kernels) == derive(spec, 2048, kernels)


@pytest.mark.parametrize("sequence_length", [1, 2, 31, 4096])
@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("fields", FAMILIES.values(), ids=FAMILIES.keys())
def test_every_sequence_length(fields: dict[str, Any], kernels: Kernels, sequence_length: int) -> None:
    spec = spec_from_fields(fields, "shrunken")
    assert measure(spec, sequence_length, kernels) == derive(spec, sequence_length, kernels)


@pytest.mark.parametrize("seed", range(150))
def test_layers_of_random_shape(seed: int) -> None:
    pick = random.Random(seed)
    layer = random_layer(pick)
    spec = random_model(pick, layer, seed)
    run = (spec, pick.choice([1, 2, 7, 64, 333, 4096]), pick.choice(KERNELS))
    reconcile(spec.name, measure(*run), derive(*run))


# --- Properties that hold whatever the numbers are -------------------------------------------------------------


def measured(fields: dict[str, Any], sequence_length: int = 64) -> ModelCounts:
    return measure(spec_from_fields(fields, "shrunken"), sequence_length, "fused")


@pytest.mark.parametrize("fields", [LLAMA, DEEPSEEK_V3], ids=["llama", "deepseek_v3"])
def test_twice_the_layers_twice_their_counts(fields: dict[str, Any]) -> None:
    doubled = fields | {"num_hidden_layers": 2 * fields["num_hidden_layers"]}
    if "first_k_dense_replace" in fields:
        doubled["first_k_dense_replace"] = 2 * fields["first_k_dense_replace"]
    once, twice = measured(fields), measured(doubled)
    assert twice.forward_flops - twice.outside_flops == (once.forward_flops - once.outside_flops) * 2
    assert twice.parameters - twice.outside_parameters == (once.parameters - once.outside_parameters) * 2
    assert twice.outside_parameters == once.outside_parameters


def test_with_all_experts_chosen_active_is_total() -> None:
    counts = measured(DEEPSEEK_V3 | {"num_experts_per_tok": 16, "topk_group": 4})
    assert counts.active_parameters == counts.parameters.total
    assert measured(DEEPSEEK_V3).active_parameters < counts.parameters.total


def test_a_tied_head_costs_flops_but_no_parameters() -> None:
    tied, untied = measured(LLAMA | {"tie_word_embeddings": True}), measured(LLAMA)
    assert tied.parameters + Counts(lm_head=LLAMA["vocab_size"] * LLAMA["hidden_size"]) == untied.parameters
    assert tied.parameters.lm_head == 0
    assert tied.forward_flops == untied.forward_flops


def test_only_the_attention_core_grows_with_the_square_of_the_length() -> None:
    short, long = measured(DEEPSEEK_V3, 64), measured(DEEPSEEK_V3, 128)
    assert long.attention_core.as_run == 4 * short.attention_core.as_run
    linear = long.forward_flops.total - long.attention_core.as_run
    assert linear == 2 * (short.forward_flops.total - short.attention_core.as_run)


def test_a_scaled_rotary_embedding_changes_no_count() -> None:
    scaling = {"type": "yarn", "factor": 4, "original_max_position_embeddings": 16}
    assert measured(DEEPSEEK_V3 | {"rope_scaling": scaling}) == measured(DEEPSEEK_V3)


def test_the_number_of_layers_does_not_matter() -> None:
    """One layer of each kind is measured, however many there are; of multi-token prediction too."""
    from counting.measurements.probe import _Measurement

    for layers in (61, 6100):
        fields = DEEPSEEK_V3 | {"num_hidden_layers": layers, "num_nextn_predict_layers": layers // 100 + 1}
        measurement = _Measurement(spec_from_fields(fields, "deep"), 16, "fused")
        assert (len(measurement.module.model.layers), len(measurement.mtp_layers)) == (2, 1)
