"""`initializer_range`: what a config may say of it, and what holds where it says nothing."""

import pytest

from tests.shrunken import LLAMA
from torch_models.errors import ConfigError
from torch_models.fields.config import FAMILIES, spec_from_fields
from torch_models.spec import DEFAULT_INITIALIZER_RANGE


@pytest.mark.parametrize(("value", "expected"), [(None, 0.02), (1, 1.0), (0, 0.0), (0.006, 0.006)])
def test_ranges_in_the_wild(value: object, expected: float) -> None:
    assert spec_from_fields(LLAMA | {"initializer_range": value}, "x").initializer_range == expected


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (-0.02, "initializer_range = -0.02: must be float >= 0.0"),
        ("0.02", "initializer_range = '0.02': must be float | null, is str"),
        (True, "initializer_range = true: must be float | null, is bool"),
        ([0.02], "initializer_range = [0.02]: must be float | null, is array"),
        (float("nan"), "initializer_range = nan: must be a finite number"),
        (1e13, "initializer_range = 10000000000000.0: must be float <= 1000000000000.0"),
    ],
    ids=str,
)
def test_a_range_that_cannot_be(value: object, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        spec_from_fields(LLAMA | {"initializer_range": value}, "x")
    assert str(caught.value) == said


@pytest.mark.parametrize("model_type", [name for name in FAMILIES if name != "kimi_k2"])  # of DeepSeek-V3's class
def test_the_default_range_is_that_of_transformers(model_type: str) -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    assert CONFIG_MAPPING[model_type]().initializer_range == DEFAULT_INITIALIZER_RANGE


def test_a_range_that_is_not_given_is_no_news() -> None:
    """It changes no count, so it is in no list of the analysis; one that is given has a part in the model."""
    for fields in (LLAMA, LLAMA | {"initializer_range": 0.02}):
        spec = spec_from_fields(fields, "x")
        listed = (*spec.defaulted_fields, *spec.passed_over_fields, *spec.ignored_fields)
        assert not any("initializer_range" in field for field in listed)
