"""Memory that kernels and libraries take beside the tensors of a step: by rule, with the source of each. Torch-free.

It comes out of the caching allocator, so that it is part of what is reserved. Left out: workspaces of grouped products
(below a MiB) and of memory-efficient and cuDNN attention; cuBLASLt has the workspace of cuBLAS.
"""

FP32_BYTES = 4
CUBLAS_BYTES = 8 * 4096 * 1024  # 32 MiB, which NVIDIA recommends since Hopper
FLASH_ROWS = 128  # flash attention counts positions in blocks of as many rows


def cublas_workspace_bytes() -> int:
    """The workspace that torch gives each cuBLAS handle in each stream, when it is first used; it stays.

    Each thread has a handle: the forward pass and autograd's thread have one each. 32 MiB a handle are assumed on every
    GPU, which is right since Hopper (compute capability 9.0) if `CUBLAS_WORKSPACE_CONFIG` is not set. Older ones, such
    as V100, T4 and A100, have 8.125 MiB (two buffers of 4 MiB and eight of 16 KiB); ROCm has 32 MiB, on MI300 128.

    Source: torch, aten/src/ATen/cuda/CublasHandlePool.cpp, parseChosenWorkspaceSize and setWorkspaceForHandle.
    """
    return CUBLAS_BYTES


def flash_backward_workspaces(
    *, batch: int, heads: int, kv_heads: int, length: int, kv_length: int, head_dim: int, element_bytes: int
) -> tuple[int, ...]:
    """The tensors that one backward pass of flash attention allocates and frees, in bytes, in their order.

    `softmax_d` (B H S) and `dq_accum` (B S H D), both in fp32, S rounded up to 128 rows and D to 32 channels (64 above
    128); where query heads share keys, `dk_expanded` and `dv_expanded` (B S_k H D) in the dtype of the inputs.

    Source: torch, aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp, mha_bwd; not its deterministic form.
    """
    rows = -(-length // FLASH_ROWS) * FLASH_ROWS
    channels_of_a_block = 32 if head_dim <= 128 else 64
    channels = -(-head_dim // channels_of_a_block) * channels_of_a_block
    sums = FP32_BYTES * batch * heads * rows
    expanded = element_bytes * batch * kv_length * heads * head_dim
    return sums, sums * channels, *([expanded] * 2 if kv_heads != heads else [])
