"""KV cache per token, against the figures of "Insights into DeepSeek-V3" (ISCA 2025), table 1, in bytes."""

import pytest

from counting.formulas.kv_cache import kv_cache_bytes_per_token
from torch_models.fields.config import read_spec


@pytest.mark.parametrize(
    ("config", "kilobytes"),
    [
        ("deepseek_v3", "70.272"),  # 61 layers x (512 + 64) x 2 bytes
        ("qwen2_5_72b", "327.680"),  # 80 layers x 2 x 8 heads x 128 x 2 bytes
        ("llama_3_1_405b", "516.096"),  # 126 layers x 2 x 8 heads x 128 x 2 bytes
    ],
)
def test_published_figures_exactly(config: str, kilobytes: str) -> None:
    assert f"{kv_cache_bytes_per_token(read_spec(config)) / 1000:.3f}" == kilobytes
    assert kv_cache_bytes_per_token(read_spec(config)) == int(kilobytes.replace(".", ""))


def test_multi_head_attention_caches_every_head() -> None:
    assert kv_cache_bytes_per_token(read_spec("llama_7b")) == 2 * 2 * 32 * 4096


@pytest.mark.parametrize(
    ("config", "size"),
    [
        ("deepseek_v3_2", 85_888),  # 61 layers x (512 + 64 + 128 of the indexer's key) x 2 bytes
        ("glm_5", 109_824),  # 78 layers x (512 + 64 + 128) x 2 bytes
    ],
)
def test_sparse_attention_caches_the_key_of_its_indexer(config: str, size: int) -> None:
    assert kv_cache_bytes_per_token(read_spec(config)) == size
