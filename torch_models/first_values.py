"""The first values of parameters and buffers, the same on any device, in any dtype and on any number of ranks.

A weight is drawn from N(0, initializer_range²), as in transformers' `_init_weights`, in blocks of whole rows. The
numbers of a block follow from the seed, the parameter's name and the block's number alone, so that a process draws only
the blocks of which it holds a part, and neither the order nor the number of processes changes a value.
"""

import hashlib
import math
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torch_models.errors import ArgumentError, UserError
from torch_models.spec import DEFAULT_INITIALIZER_RANGE

BLOCK = 2**20  # numbers that are drawn at once, if a row has no more

# Wrappers hold the module under these names, which are not in the names of its parameters.
_WRAPPED = {"_orig_mod", "_checkpoint_wrapped_module"}
FACTORS = ("scale", "scalar")  # endings of the names of what numbers are multiplied by
_TORCH_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)


class OwnFirstValues(nn.Module):
    """A module that owns parameters and can set their first values.

    `initializer_range` is the standard deviation of its weights, None for that of the module that contains it, or
    `DEFAULT_INITIALIZER_RANGE`. `first_weight` is the first value of its `weight`, None if that is drawn.
    """

    initializer_range: float | None = None
    first_weight: float | None = None

    def reset_parameters(self) -> None:
        """Set the first values of the parameters and buffers of this module, but not of the modules in it.

        They are those of `initialize` with a seed from torch's default generator. Construction does not call this: a
        new module holds memory as it was, except for norms and correction biases.
        """
        _set_first_values(self, None, None, recurse=False)


def initialize(module: nn.Module, *, seed: int | None = None, initializer_range: float | None = None) -> None:
    """Set every parameter and buffer of `module` that a checkpoint would hold to its first value.

    Weights and attention sinks are drawn from N(0, initializer_range²); biases and the router's correction biases are
    0; other scales (`FACTORS`) and the weights of norms are 1, or 0 where the factor is 1 + weight (Gemma).
    `initializer_range` defaults to that of the module's spec, or 0.02. This is what transformers' modules do, but for
    two values: the row of the padding token is drawn as the other rows are, and gpt-oss's router has a bias of 0.

    `seed` is from 0 to 2⁶⁴ - 1; it defaults to a number from torch's default generator for the CPU, so that
    `torch.manual_seed` decides it. The same seed gives the same values on every device and in every dtype (drawn in
    fp32, then rounded), and each parameter's values depend only on the seed, its name, its shape and the range. A tied
    parameter is drawn under its first name. Since torch's generator for the CPU keeps 32 bits of a seed, two blocks of
    2²⁰ numbers of one model may be equal, with a chance of 2⁻³² for each pair.

    A DTensor's full value equals that of an undivided parameter, for any mesh. Without `seed` rank 0 draws the seed for
    all if a parameter is a DTensor or the module is under DDP; then every process must call this.

    Raises `ArgumentError` for an invalid seed or range, and `UserError` that names the parameter if one is on the meta
    device, if one is divided in a way that is not known, or if no first value is known; then nothing is changed.
    """
    check_seed(seed)
    _check_range(initializer_range)
    _set_first_values(module, seed, initializer_range)


def set_initializer_range(module: nn.Module, initializer_range: float) -> None:
    """Let `initialize` and `reset_parameters` draw the weights of `module`, and of all in it, with this range."""
    if initializer_range != DEFAULT_INITIALIZER_RANGE:
        for inner in module.modules():
            inner.__dict__["initializer_range"] = initializer_range


def check_seed(seed: Any) -> None:
    """Raise `ArgumentError` unless `seed` is None or an integer of 64 bits."""
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**64):
        raise ArgumentError("seed", seed, "must be an integer from 0 to 2**64 - 1")


def _check_range(initializer_range: Any) -> None:
    if initializer_range is None:
        return
    is_number = isinstance(initializer_range, int | float) and not isinstance(initializer_range, bool)
    if not is_number or not 0 <= initializer_range <= sys.float_info.max:
        raise ArgumentError("initializer_range", initializer_range, "must be a finite number, at least 0")


class _Value(NamedTuple):
    """A parameter or buffer, its name, and its first value, or the standard deviation with which it is drawn."""

    name: str
    tensor: Tensor
    constant: float | None
    initializer_range: float


@torch.no_grad()
def _set_first_values(
    module: nn.Module, seed: int | None, initializer_range: float | None, *, recurse: bool = True
) -> None:
    _reshard(module)
    _tie(module)
    values = list(_values(module, initializer_range, recurse))
    for value in values:
        if not holds_values(value.tensor):
            raise UserError(
                f"{value.name} is on the meta device and holds no values; call to_empty(device=...) on the module first"
            )
    held = [_held_indices(value.name, value.tensor) for value in values]
    if seed is None:
        seed = _common_seed(module, values)
    for value, indices in zip(values, held, strict=True):
        if value.constant is None:
            _draw(value, seed, indices)
        else:
            _local(value.tensor).fill_(value.constant)


def holds_values(tensor: Tensor) -> bool:
    """Whether a tensor is neither on the meta device nor one of torch's fake tensors."""
    library = sys.modules.get("torch._subclasses.fake_tensor")
    return not tensor.is_meta and not (library is not None and isinstance(tensor, library.FakeTensor))


def _tie(module: nn.Module) -> None:
    """Make one parameter again of tied ones that came apart when every module was allocated by itself.

    Divided parameters are left as who divided them made them.
    """
    for inner in module.modules():
        tie = getattr(inner, "tie_weights", None)
        if tie is not None and not any(map(_is_divided, inner.parameters())):
            tie()


def _reshard(module: nn.Module) -> None:
    """Let go of parameters that `fully_shard` has gathered: values that are written into them would be lost."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is not None:
        for inner in module.modules():
            if isinstance(inner, fsdp.FSDPModule):
                inner.reshard()


def _values(module: nn.Module, initializer_range: float | None, recurse: bool) -> Iterator[_Value]:
    """Yield what a checkpoint of `module` holds, in its order, each tensor once."""
    seen: set[int] = set()
    for prefix, owner, own_range in _owners(module, "", DEFAULT_INITIALIZER_RANGE) if recurse else [_alone(module)]:
        std = own_range if initializer_range is None else initializer_range
        buffers = {
            name: tensor for name, tensor in owner._buffers.items() if name not in owner._non_persistent_buffers_set
        }
        for own_name, tensor in (*owner._parameters.items(), *buffers.items()):
            if tensor is None or id(tensor) in seen:
                continue
            seen.add(id(tensor))
            name = f"{prefix}{own_name}"
            constant = _constant(owner, own_name)
            if own_name in buffers and constant is None:
                raise UserError(f"{name} is a buffer of {type(owner).__name__}, whose first value is not known here")
            yield _Value(name, tensor, constant, std)


def _alone(module: nn.Module) -> tuple[str, nn.Module, float]:
    return "", module, _range_of(module, DEFAULT_INITIALIZER_RANGE)


def _owners(module: nn.Module, prefix: str, inherited: float) -> Iterator[tuple[str, nn.Module, float]]:
    """Yield `module` and all in it, each with the prefix of its parameters' names and the range of its weights."""
    if type(module).__name__ == "FullyShardedDataParallel":
        raise UserError(
            f"{prefix or 'the module'} is under FullyShardedDataParallel, which flattens parameters; initialize the"
            " module before it is wrapped, or use fully_shard"
        )
    own_range = _range_of(module, inherited)
    yield prefix, module, own_range
    is_wrapper = isinstance(module, nn.parallel.DistributedDataParallel | nn.DataParallel)
    for name, inner in module._modules.items():
        if inner is not None:
            within = prefix if is_wrapper or name in _WRAPPED else f"{prefix}{name}."
            yield from _owners(inner, within, own_range)


def _range_of(module: nn.Module, inherited: float) -> float:
    own: float | None = getattr(module, "initializer_range", None)
    return inherited if own is None else own


def _constant(owner: nn.Module, name: str) -> float | None:
    """Return the value with which a parameter or buffer begins; None if it is drawn."""
    if name.endswith("bias"):
        return 0.0
    if name.endswith(FACTORS):
        return 1.0
    if isinstance(owner, OwnFirstValues):
        return owner.first_weight
    return 1.0 if isinstance(owner, _TORCH_NORMS) else None


# --- Parts of parameters: DTensor is imported by who divides them ------------------------------------------------


def _is_divided(tensor: Tensor) -> bool:
    # An import would cost as much as that of torch, and nobody has a DTensor without it.
    library = sys.modules.get("torch.distributed.tensor")
    return library is not None and isinstance(tensor, library.DTensor)


def _local(tensor: Any) -> Tensor:
    """Return the part of a tensor that this process holds."""
    local: Tensor = tensor.to_local() if _is_divided(tensor) else tensor
    return local.detach()


def _held_indices(name: str, tensor: Any) -> list[Tensor | None]:
    """Return for each dimension the indices that this process holds, in the order of its part; None for all.

    The placements are applied in the order of the mesh, as torch applies them. Raises `UserError` if the part is not
    known.
    """
    held: list[Tensor | None] = [None] * tensor.ndim
    if not _is_divided(tensor):
        return held
    mesh = tensor.device_mesh
    coordinate = mesh.get_coordinate()
    if coordinate is None:
        raise UserError(f"{name} is divided over a device mesh that this process is not in")
    for at, parts, placement in zip(coordinate, mesh.shape, tensor.placements, strict=True):
        if placement.is_replicate():
            continue
        if placement.is_partial() or not hasattr(placement, "_split_tensor"):
            raise UserError(f"{name} has the placement {placement}, which does not say which values a process holds")
        dim = placement.dim % tensor.ndim
        indices = held[dim]
        if indices is None:
            indices = torch.arange(tensor.shape[dim], device="cpu")
        # In its dimension, since the placement splits that one.
        in_place = indices.view([len(indices) if other == dim else 1 for other in range(tensor.ndim)])
        held[dim] = placement._split_tensor(in_place, parts, with_padding=False, contiguous=False)[0][at].flatten()
    shape = [size if own is None else len(own) for size, own in zip(tensor.shape, held, strict=True)]
    if shape != list(_local(tensor).shape):
        has = list(_local(tensor).shape)
        raise UserError(f"{name} has a part of shape {has} here, where its placements {tensor.placements} give {shape}")
    return held


def _common_seed(module: nn.Module, values: list[_Value]) -> int:
    """Return a seed from torch's default generator for the CPU, of rank 0 if the parameters are of several ranks."""
    seed = int(torch.randint(2**63 - 1, (), dtype=torch.int64, device="cpu"))
    is_common = any(_is_divided(value.tensor) for value in values) or any(
        isinstance(inner, nn.parallel.DistributedDataParallel) for inner in module.modules()
    )
    if is_common:
        box = [seed]
        torch.distributed.broadcast_object_list(box, src=0)
        (seed,) = box
    return seed


# --- Drawing -----------------------------------------------------------------------------------------------------


def _draw(value: _Value, seed: int, held: list[Tensor | None]) -> None:
    """Fill the part of the parameter that this process holds, block by block; a block is of rows of dimension 0."""
    local = _local(value.tensor)
    if local.ndim == 0:
        _generate(local.view(1), value, seed, 0)
        return
    if local.numel() == 0:
        return
    rows, *rest = value.tensor.shape
    rows_of_block = max(1, BLOCK // math.prod(rest))
    is_whole = all(own is None for own in held)
    in_place = is_whole and local.is_contiguous() and local.dtype == torch.float32 and local.device.type == "cpu"
    indices = torch.arange(rows, device="cpu") if held[0] is None else held[0]
    blocks, counts = torch.unique_consecutive(indices // rows_of_block, return_counts=True)
    memory = torch.empty(0 if in_place else (min(rows_of_block, rows), *rest), dtype=torch.float32, device="cpu")
    start = 0
    for block, count in zip(blocks.tolist(), counts.tolist(), strict=True):
        part = local[start : start + count]
        first = block * rows_of_block
        drawn = part if in_place else memory[: min(rows_of_block, rows - first)]
        _generate(drawn, value, seed, block)
        if held[0] is not None:
            drawn = drawn.index_select(0, indices[start : start + count] - first)
        for dim, own in enumerate(held[1:], 1):
            if own is not None:
                drawn = drawn.index_select(dim, own)
        if not in_place:
            part.copy_(drawn)
        start += count


def _generate(out: Tensor, value: _Value, seed: int, block: int) -> None:
    digest = hashlib.blake2b(f"{seed}/{value.name}/{block}".encode(), digest_size=8).digest()
    generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest, "little"))
    out.normal_(std=value.initializer_range, generator=generator)
