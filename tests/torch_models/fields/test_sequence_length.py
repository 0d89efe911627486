"""At how many tokens a model is analysed, by its config."""

from typing import Any

import pytest

from tests.shrunken import DEEPSEEK_V3, LLAMA
from torch_models import read_spec
from torch_models.fields.family_config import trained_length

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, (None, None)),
        ({"max_position_embeddings": 64}, (64, "max_position_embeddings")),
        (
            {"original_max_position_embeddings": 16, "max_position_embeddings": 64},
            (16, "original_max_position_embeddings"),
        ),
        ({"rope_scaling": YARN, "max_position_embeddings": 64}, (16, "rope_scaling.original_max_position_embeddings")),
        (
            {"rope_parameters": {"full_attention": YARN}},
            (16, "rope_parameters.full_attention.original_max_position_embeddings"),
        ),
        ({"max_sequence_length": 8, "rope_scaling": YARN}, (8, "max_sequence_length")),
        (
            {"max_sequence_length": None, "rope_scaling": None, "max_position_embeddings": 64},
            (64, "max_position_embeddings"),
        ),
        ({"vision_config": {"original_max_position_embeddings": 16}}, (None, None)),
    ],
)
def test_where_the_length_stands(fields: dict[str, Any], expected: tuple[int | None, str | None]) -> None:
    assert trained_length(fields, ["max_position_embeddings"]) == expected


@pytest.mark.parametrize(
    ("config", "length"),
    [("deepseek_v3", 4096), ("llama_3_2_1b", 8192), ("llama_7b", 2048), ("llama_3_8b", 8192), ("mistral_7b", 32768)],
)
def test_published_models(config: str, length: int) -> None:
    assert read_spec(config).sequence_length == length


def test_of_a_mapping() -> None:
    spec = read_spec(DEEPSEEK_V3 | {"rope_scaling": YARN})
    assert (spec.sequence_length, spec.sequence_length_source) == (16, "rope_scaling.original_max_position_embeddings")
    assert read_spec(LLAMA).sequence_length == 64
