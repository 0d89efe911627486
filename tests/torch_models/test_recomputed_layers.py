"""Which layers of a model are recomputed, and what the modules then keep for backward."""

from typing import Any

import pytest
from msgspec import structs

from tests.shrunken import DEEPSEEK_V3, LLAMA
from torch_models import UserError, build_training_model, set_recompute
from torch_models.fields.config import spec_from_fields
from torch_models.recomputed_layers import recompute_of_layer, with_recompute, without_recompute
from torch_models.spec import ModelSpec

SIX = spec_from_fields(LLAMA | {"num_hidden_layers": 6}, "six")


def modules_of(spec: ModelSpec) -> Any:
    return build_training_model(spec, device="meta").model.layers


def recomputed(layers: Any) -> list[bool]:
    return [layer.recompute_layer for layer in layers]


def test_the_first_of_them_is_the_nth_layer() -> None:
    """As `ptd_checkpoint_wrapper._count % ac_freq == 0` in torchtitan, whose count begins at 1."""
    assert [index for index in range(8) if recompute_of_layer(3, index) == "full"] == [2, 5]
    assert {recompute_of_layer("per_op", index) for index in range(8)} == {"per_op"}


def test_layers_that_differ_in_what_is_recomputed_are_two_kinds() -> None:
    spec = with_recompute(SIX, 4)
    assert [(layer.kind, count) for layer, count in spec.layer_groups()] == [("dense", 5), ("dense_recomputed", 1)]
    assert [run.count for run in spec.layer_runs] == [3, 1, 2]
    assert with_recompute(spec, 2) == spec  # a layer that says so already keeps it
    assert without_recompute(spec) == SIX == with_recompute(SIX, "full")


def test_further_predictions_are_numbered_on() -> None:
    spec = spec_from_fields(DEEPSEEK_V3 | {"num_nextn_predict_layers": 2}, "two")
    assert len(spec.layers) == 4
    marked = with_recompute(spec, 3)
    recomputed = [layer.recompute for layer in (*marked.layers, *marked.mtp_layers)]
    assert recomputed == ["none", "none", "full", "none", "none", "full"]


def test_modules_are_numbered_as_in_their_names() -> None:
    layers = modules_of(SIX)
    set_recompute(layers, 2)
    assert recomputed(layers) == [False, True] * 3
    set_recompute(layers[3:], "none")
    assert recomputed(layers) == [False, True, False, False, False, False]
    set_recompute(layers, "per_op")
    assert recomputed(layers) == [True] * 6
    assert all(layer.keeps_products for layer in layers)
    set_recompute(layers, "selective")
    assert recomputed(layers) == [False] * 6
    assert all(layer.self_attn.recompute_core for layer in layers)


def test_a_spec_that_says_what_is_recomputed_is_followed() -> None:
    spec = with_recompute(SIX, 3)
    layers = modules_of(spec)
    set_recompute(layers, 2)
    assert recomputed(layers) == [False, False, True] * 2
    shallow = structs.replace(spec, layer_runs=spec.layer_runs[1:])
    layers = modules_of(shallow)
    set_recompute(layers, 3)
    assert recomputed(layers) == [True, False, False, True]


@pytest.mark.parametrize("value", [1, 0, -2, True, 2.0, "2", None])
def test_what_cannot_be(value: Any) -> None:
    with pytest.raises(UserError, match=r"recompute = .*: must be one of none, .*, or a whole number N, at least 2"):
        set_recompute(modules_of(SIX), value)
