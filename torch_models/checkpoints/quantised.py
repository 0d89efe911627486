"""Tensors of quantised checkpoints: scales, and weights that pack several numbers into one. Torch-free."""

from collections.abc import Mapping
from typing import NamedTuple

from torch_models.checkpoints.places import TensorEntry

# Scales of a weight that has one number per element: DeepSeek-V3's, and those of compressed-tensors and ModelOpt.
SCALES = (".weight_scale_inv", ".weight_scale", ".input_scale")
WHOLE_DTYPES = {"F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "I8", "BF16", "F16", "F32", "F64"}
# Names that packed weights have beside them or end in: GPTQ, AWQ and MLX, compressed-tensors, bitsandbytes.
PACKED_NAMES = (".qweight", ".qzeros", ".scales", ".weight_packed", ".absmax", ".SCB")
# MXFP4 (OCP Microscaling Formats 1.0, §5): 32 numbers of 4 bits in 16 bytes, which share a scale of one byte.
BLOCKS, BLOCK_SCALES, NUMBERS_OF_A_BLOCK, BYTES_OF_A_BLOCK = "_blocks", "_scales", 32, 16


class Unpacked(NamedTuple):
    """The tensors of a checkpoint that stand for tensors of the model, one number for each of theirs."""

    found: dict[str, TensorEntry]
    is_quantised: bool  # whether there are scales: the bytes are not those of one dtype
    packed: tuple[str, ...]  # tensors whose numbers cannot be compared with the model's


def unpacked(found: Mapping[str, TensorEntry]) -> Unpacked:
    """Leave out the scales, and give each MXFP4 tensor of gpt-oss the name and the shape that it has when unpacked.

    gpt-oss stores `X_blocks`, (E, out, in / 32, 16) bytes, for its parameter X of shape (E, in, out).
    """
    kept: dict[str, TensorEntry] = {}
    left_out = 0
    for name, tensor in found.items():
        if _is_scale(name, found):
            left_out += 1
        elif name.endswith(BLOCKS) and _is_mxfp4(name, found):
            kept[name.removesuffix(BLOCKS)] = tensor._replace(shape=_unpacked_shape(tensor))
        else:
            kept[name] = tensor
    return Unpacked(kept, left_out > 0, tuple(name for name, tensor in kept.items() if _is_packed(name, tensor)))


def _is_scale(name: str, found: Mapping[str, TensorEntry]) -> bool:
    if name.endswith(BLOCK_SCALES):
        return _is_mxfp4(name.removesuffix(BLOCK_SCALES) + BLOCKS, found)
    if not name.endswith(SCALES):
        return False
    weight = found.get(f"{name.rpartition('.')[0]}.weight")
    return weight is not None and weight.dtype in (None, *WHOLE_DTYPES)


def _is_mxfp4(blocks: str, found: Mapping[str, TensorEntry]) -> bool:
    """Whether the tensor `blocks` and its scales are in the format; by their names alone if their files are absent."""
    weight, scales = found.get(blocks), found.get(blocks.removesuffix(BLOCKS) + BLOCK_SCALES)
    if weight is None or scales is None:
        return False
    if weight.shape is None:
        return True
    is_blocks = weight.dtype == "U8" and len(weight.shape) == 4 and weight.shape[3] == BYTES_OF_A_BLOCK
    return is_blocks and scales.shape in (None, weight.shape[:3])


def _unpacked_shape(blocks: TensorEntry) -> tuple[int, ...] | None:
    if blocks.shape is None:
        return None
    experts, out, groups, _ = blocks.shape
    return experts, groups * NUMBERS_OF_A_BLOCK, out


def _is_packed(name: str, tensor: TensorEntry) -> bool:
    is_weight = name.endswith(".weight") and tensor.dtype is not None and tensor.dtype not in WHOLE_DTYPES
    return is_weight or name.endswith(PACKED_NAMES)
