"""What fully_shard gathers, frees and reduces together: the tensors of each group, and its bytes.

`fully_shard(module)` makes one group of all parameters of the module that are in no group inside it. The order of its
tensors is that in which torch visits the modules: children first, then the module's own parameters
(`_fsdp_init.py`, `_get_managed_modules`).

A shard is a slice of the first dimension. Of s rows on n ranks each rank gets c = ceil(s / n) rows, the last ones fewer
or none (`torch.chunk`), and all ranks store c rows (`_fsdp_param.py`, `_init_sharded_param`: the shard is padded). A
group with matrices of s x r numbers is gathered to the sum of n c r numbers over its matrices.

Example: Llama-3-8B's down projection, 4096 x 14336, on 100 ranks: c = 41; a rank stores 41 x 14336 = 587,776 numbers;
gathered are 100 x 587,776 = 58,777,600 numbers, of which 58,720,256 are the matrix.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from counting.formulas.layouts.formats import Formats
from counting.formulas.tensors import tensors, tensors_after_layers, tensors_before_layers
from counting.recipes import TrainedTensor
from torch_models.layout import Grouping
from torch_models.spec import GroupedQueryAttentionSpec, LayerSpec, ModelSpec

Shape = tuple[int, ...]


class Group(NamedTuple):
    """Bytes of one group on a rank, at the moments of its life.

    `tensors`: each in the format that is gathered. `gathered`: those of all ranks together, padded; the flat buffer of
    the all-gather is as large. `shard_copy`: this rank's shards, converted for the all-gather; 0 if they are gathered
    as they are stored. `reduce_input`: padded gradients in the format of the reduction, `reduce_output` this rank's
    part of them. `gradients`: those that backward computes, tensor by tensor, not padded. `accumulated`: the same in
    the format of the reduction. `words_copy`: the part of the first gradient that belongs to this rank, where the
    gradient is larger; `accumulated_copy`: the same in the format of the reduction.
    """

    tensors: tuple[int, ...]
    gathered: int
    shard_copy: int
    reduce_input: int
    reduce_output: int
    gradients: tuple[int, ...]
    all_gradients: int
    accumulated: tuple[int, ...]
    all_accumulated: int
    words_copy: int
    accumulated_copy: int


def sharded_rows(rows: int, shards: int) -> int:
    """Return ceil(rows / shards), the rows that each rank stores."""
    return -(-rows // shards)


def row_numbers(shape: Shape) -> int:
    """Return how many numbers one row of the first dimension has."""
    numbers = 1
    for size in shape[1:]:
        numbers *= size
    return numbers


@lru_cache(maxsize=1 << 14)
def group_of(shapes: tuple[Shape, ...], shards: int, formats: Formats, *, first_gradient: int = 1) -> Group:
    """Return the bytes of a group with tensors of these shapes, in fully_shard's order.

    `first_gradient` is how many times as large as the first tensor its gradient is: under tensor parallelism torch
    computes the gradient of the whole embedding on each rank, and copies the rank's part of it for the reduction
    (`_fsdp_param.py`, `_get_grad_inner_tensor`).
    """
    padded = sum(sharded_rows(shape[0], shards) * row_numbers(shape) for shape in shapes)  # numbers of one rank
    numbers = [shape[0] * row_numbers(shape) for shape in shapes]
    computed = [numbers[0] * first_gradient, *numbers[1:]]
    gradients = tuple(number * formats.gathered for number in computed)
    accumulated = tuple(number * formats.reduced for number in computed) if formats.converts_gradients else gradients
    copied = numbers[0] if first_gradient > 1 else 0
    return Group(
        tensors=tuple(number * formats.gathered for number in numbers),
        gathered=padded * shards * formats.gathered,
        shard_copy=padded * formats.gathered if formats.copies_shards else 0,
        reduce_input=padded * shards * formats.reduced,
        reduce_output=padded * formats.reduced,
        gradients=gradients,
        all_gradients=sum(gradients),
        accumulated=accumulated,
        all_accumulated=sum(accumulated),
        words_copy=copied * formats.gathered,
        accumulated_copy=copied * formats.reduced,
    )


@lru_cache(maxsize=1 << 10)
def layer_shapes(layer: LayerSpec) -> tuple[Shape, ...]:
    """Return the shapes of one decoder layer's tensors, in fully_shard's order.

    It is the order of formulas/tensors.py, but that the sinks, which attention itself owns, follow its projections and
    norms.
    """
    of_layer = tensors(layer)
    attention = layer.attention
    if isinstance(attention, GroupedQueryAttentionSpec) and attention.sinks:
        of_attention = tensors(attention)
        first = 0 if layer.norm_placement == "after" else 1  # there may be a norm before it
        sinks, *others = of_attention
        of_layer[first : first + len(of_attention)] = [*others, sinks]
    return _shapes(of_layer)


@lru_cache(maxsize=1 << 10)
def mtp_layer_shapes(layer: LayerSpec) -> tuple[Shape, ...]:
    """Return the shapes of one multi-token-prediction layer: those of a decoder layer, two norms, projection, norm."""
    width = layer.hidden_size
    return (*layer_shapes(layer), (width,), (width,), (width, 2 * width), (width,))


def outside_shapes(spec: ModelSpec, grouping: Grouping) -> dict[tuple[str, ...], tuple[Shape, ...]]:
    """Return the shapes of the groups outside the layers, by the modules that each of them spans.

    ``layers``: all of them in the group of the root, ``("model",)``. ``torchtitan``: the embedding; final norm and
    head; if head and embedding are one tensor, all three together, because a tensor can be in one group only.
    """
    before, after = _shapes(tensors_before_layers(spec)), _shapes(tensors_after_layers(spec))
    if grouping == "layers":
        return {("model",): (*before, *after)}
    if spec.tie_word_embeddings:
        return {("embedding", "norm", "head"): (*before, *after)}
    return {("embedding",): before, ("norm", "head"): after}


def _shapes(of: Sequence[TrainedTensor]) -> tuple[Shape, ...]:
    return tuple(tensor.shape for tensor in of)
