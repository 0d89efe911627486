"""Shapes of the parameter tensors by formula: those of the modules, in their order."""

import random
from typing import Any

import pytest

from counting.formulas.parameters import frozen_parameters, mtp_parameters, outside_parameters, parameters
from counting.formulas.tensors import tensors, tensors_after_layers, tensors_before_layers, tensors_of_mtp
from counting.measurements.parameters import trained_tensors
from counting.recipes import TrainedTensor
from tests.random_specs import random_layer, random_model
from tests.shrunken import FAMILIES, GPT_OSS
from torch_models.builder import build_training_model
from torch_models.fields.config import spec_from_fields
from torch_models.spec import ModelSpec


def by_formula(spec: ModelSpec) -> list[TrainedTensor]:
    layers = [tensor for layer in spec.layers for tensor in tensors(layer)]
    return [*tensors_before_layers(spec), *layers, *tensors_of_mtp(spec), *tensors_after_layers(spec)]


def by_modules(spec: ModelSpec) -> list[TrainedTensor]:
    return trained_tensors(build_training_model(spec, device="meta"))


@pytest.mark.parametrize("fields", FAMILIES.values(), ids=FAMILIES.keys())
def test_shapes_of_the_modules(fields: dict[str, Any]) -> None:
    spec = spec_from_fields(fields, "shrunken")
    assert by_formula(spec) == by_modules(spec)


@pytest.mark.parametrize("seed", range(40))
def test_shapes_of_random_models(seed: int) -> None:
    pick = random.Random(seed)
    spec = random_model(pick, random_layer(pick, indexers=True), seed)
    found = by_formula(spec)
    assert found == by_modules(spec)
    total = parameters(spec) + mtp_parameters(spec)
    layers = [*spec.layers, *spec.mtp_layers]
    assert sum(tensor.numel for tensor in found) == total.total - sum(map(frozen_parameters, layers))
    main = [*tensors_before_layers(spec), *tensors_after_layers(spec)]
    assert sum(tensor.numel for tensor in main) == outside_parameters(spec).total


def test_what_each_is_to_an_optimiser() -> None:
    """A router is a matrix; a stack of experts' biases has two dimensions, but each expert's is a vector."""
    spec = spec_from_fields(GPT_OSS, "s")
    assert tensors(spec.layers[0].feed_forward) == [
        TrainedTensor((6, 64), "matrix"),
        TrainedTensor((6,), "vector"),
        TrainedTensor((6, 64, 80), "matrix", True),
        TrainedTensor((6, 80), "vector", True),
        TrainedTensor((6, 40, 64), "matrix", True),
        TrainedTensor((6, 64), "vector", True),
    ]
    assert {tensor.role for tensor in tensors_before_layers(spec)} == {"vocabulary"}
    assert [tensor.role for tensor in tensors_after_layers(spec)] == ["vector", "vocabulary"]
