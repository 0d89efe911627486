"""Moments of each optimiser by the shape of a tensor, and the names of recipes."""

import pytest

from counting.recipes import (
    OPTIMIZERS,
    PRECISIONS,
    TrainedTensor,
    bytes_per_parameter,
    find_optimizer,
    find_precision,
    moment_bytes,
)
from torch_models.errors import ArgumentError

FP32 = find_precision("fp32")
MATRIX, STACK = TrainedTensor((100, 300), "matrix"), TrainedTensor((7, 100, 300), "matrix", True)
VECTOR, EMBEDDING = TrainedTensor((4095,), "vector"), TrainedTensor((1000, 300), "vocabulary")


@pytest.mark.parametrize(
    ("optimizer", "matrix", "stack", "vector", "embedding"),
    [
        ("sgd", 0, 0, 0, 0),
        ("sgd-momentum", 4 * 30_000, 4 * 210_000, 4 * 4095, 4 * 300_000),
        ("adamw", 8 * 30_000, 8 * 210_000, 8 * 4095, 8 * 300_000),
        ("adamw-foreach", 8 * 30_000, 8 * 210_000, 8 * 4095, 8 * 300_000),
        ("adafactor", 4 * 400, 4 * 7 * 400, 4 * 4095, 4 * 1300),
        ("muon", 4 * 30_000, 4 * 210_000, 8 * 4095, 8 * 300_000),
        # 30,000 numbers are 117.2 blocks of 256, 210,000 are 820.3, 300,000 are 1171.9; the vector stays in fp32.
        ("adamw-8bit", 2 * (30_000 + 4 * 118), 2 * (210_000 + 4 * 821), 8 * 4095, 2 * (300_000 + 4 * 1172)),
    ],
)
def test_moments_by_shape(optimizer: str, matrix: int, stack: int, vector: int, embedding: int) -> None:
    recipe = find_optimizer(optimizer)
    found = [moment_bytes(tensor, FP32, recipe) for tensor in (MATRIX, STACK, VECTOR, EMBEDDING)]
    assert found == [matrix, stack, vector, embedding]


def test_a_tensor_of_4096_numbers_has_moments_in_8_bits() -> None:
    assert moment_bytes(TrainedTensor((4096,), "vector"), FP32, find_optimizer("adamw-8bit")) == 2 * (4096 + 4 * 16)


def test_the_format_of_moments_is_that_of_the_precision() -> None:
    sizes = {each.name: moment_bytes(MATRIX, each, find_optimizer("adafactor")) // 400 for each in PRECISIONS}
    assert sizes == {"mixed": 4, "mixed-fp32-gradients": 4, "bf16": 2, "fp32": 4, "fp8": 2}


def test_bytes_per_parameter_where_no_shape_matters() -> None:
    sizes = {each.name: bytes_per_parameter(find_precision("mixed"), each) for each in OPTIMIZERS}
    assert sizes == {
        "adamw": 16,
        "adamw-foreach": 16,
        "adamw-8bit": None,
        "adafactor": None,
        "sgd": 8,
        "sgd-momentum": 12,
        "muon": None,
    }


def test_an_unknown_optimiser_is_an_error_that_lists_all() -> None:
    with pytest.raises(ArgumentError) as caught:
        find_optimizer("lion")
    assert str(caught.value) == (
        "optimizer = 'lion': is not known: choose from adamw, adamw-foreach, adamw-8bit, adafactor, sgd, sgd-momentum, "
        "muon"
    )


def test_every_recipe_cites_its_source() -> None:
    assert all(each.citation and each.description for each in (*PRECISIONS, *OPTIMIZERS))
