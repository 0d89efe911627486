import pytest

from counting.workspaces import cublas_workspace_bytes, flash_backward_workspaces


def test_cublas_takes_what_it_does_since_hopper() -> None:
    """32 MiB by torch's source; before Hopper 8,519,680 bytes, which is not modelled."""
    assert cublas_workspace_bytes() == 32 * 2**20


def test_flash_attention_by_hand() -> None:
    """Llama-3-8B, two sequences of 8,192: 4 B H S and 4 B H S D; 8 of 32 heads have keys: 2 x 2 B H S D more."""
    rows = 2 * 32 * 8192
    assert flash_backward_workspaces(
        batch=2, heads=32, kv_heads=8, length=8192, kv_length=8192, head_dim=128, element_bytes=2
    ) == (4 * rows, 4 * rows * 128, 2 * rows * 128, 2 * rows * 128)


@pytest.mark.parametrize(
    ("length", "head_dim", "expected"),
    [(128, 64, (512, 32_768)), (129, 64, (1024, 65_536)), (1, 80, (512, 49_152)), (128, 129, (512, 98_304))],
)
def test_flash_attention_rounds_rows_and_channels(length: int, head_dim: int, expected: tuple[int, int]) -> None:
    """One head: rows to 128; channels to 32, as 80 to 96, but above 128 to 64, as 129 to 192."""
    assert (
        flash_backward_workspaces(
            batch=1, heads=1, kv_heads=1, length=length, kv_length=length, head_dim=head_dim, element_bytes=2
        )
        == expected
    )
