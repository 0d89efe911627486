"""The steps that the searches of design families share."""

from itertools import islice

import pytest

from counting.cost.design.architecture import best_shape, hidden_sizes, multiples_near, sizes_in_range, whole_layers
from torch_models.errors import UserError


def test_the_smallest_penalty_wins_and_the_first_of_equals() -> None:
    assert best_shape([(2.0, "a"), (1.0, "b"), (1.0, "c")], "llama", 10) == "b"


def test_no_shape_is_an_error_of_one_line() -> None:
    with pytest.raises(UserError) as caught:
        best_shape([], "qwen3", 10**9)
    assert str(caught.value) == (
        "no qwen3 model by its design rules is within 0.5% of 1,000,000,000 parameters; change the budget by a percent"
    )


def test_hidden_sizes_get_coarser() -> None:
    sizes = list(islice(hidden_sizes(), 20))
    assert sizes == [*range(512, 2048, 256), *range(2048, 8192, 512), 8192, 9216]
    assert list(islice(hidden_sizes(128), 14)) == [*range(512, 2048, 128), 2048, 2304]


def test_multiples_near_an_ideal() -> None:
    assert list(multiples_near(1000, 128, 0.1)) == [896, 1024]  # 872 to 1128, one step of 128
    assert list(multiples_near(1000, 128, 0.2)) == [896, 1024, 1152]  # 800 to 1200
    assert list(multiples_near(3, 8, 0.1)) == [8]  # none below 8


@pytest.mark.parametrize(("target", "expected"), [(149, (4, 150)), (151, (4, 150)), (10, (0, 30)), (30, (0, 30))])
def test_whole_layers(target: int, expected: tuple[int, int]) -> None:
    # 30 with one layer, 60 with two: 30 for each further layer.
    assert whole_layers(30, 60, target) == expected


def test_sizes_in_range_stop_where_models_get_too_shallow() -> None:
    ratios = {10: 20.0, 20: 42.0, 30: 100.0, 40: 119.0, 50: 121.0, 60: 50.0}
    assert list(sizes_in_range(ratios, ratios.__getitem__, 50, 100)) == [20, 30, 40]  # 50 / 1.2 to 100 x 1.2
