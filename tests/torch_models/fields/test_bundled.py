"""The names under which bundled configs are published."""

import pytest

from torch_models.fields.bundled import published_name


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("deepseek_v3", "DeepSeek-V3"),
        ("llama_3_1_405b", "Llama-3.1-405B"),
        ("qwen3_30b_a3b", "Qwen3-30B-A3B"),
        ("llama_7b", "llama_7b"),  # its source is a paper alone
        ("no_such_model", "no_such_model"),
        ("../secrets", "../secrets"),
    ],
)
def test_published_name(name: str, published: str) -> None:
    assert published_name(name) == published
