"""What fully_shard gathers, frees and reduces together: the tensors of each group, and its bytes.

`fully_shard(module)` makes one group of all parameters of the module that are in no group inside it. The order of its
tensors is that in which torch visits the modules: children first, then the module's own parameters
(`_fsdp_init.py`, `_get_managed_modules`). Shapes are those on a rank, which tensor parallelism has divided before.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from counting.formulas.layouts.formats import Formats
from counting.formulas.layouts.sharding import Shape, Sharding, numbers
from counting.formulas.parameters import indexer_matrices
from counting.formulas.tensors import Tensors, tensors, tensors_after_layers, tensors_before_layers
from counting.recipes import TrainedTensor
from torch_models.layout import Grouping
from torch_models.spec import GroupedQueryAttentionSpec, LayerSpec, MixtureOfExpertsSpec, ModelSpec


class Group(NamedTuple):
    """Bytes of one group on a rank, at the moments of its life.

    - tensors: each that is trained in the format that is gathered, not padded; the gradients that backward computes are
      as large;
    - parameters: each, with those that no gradient reaches, in fully_shard's order;
    - gathered: those of all ranks together, padded; the flat buffer of the all-gather is as large;
    - shard_copy: this rank's shards, converted for the all-gather; 0 if they are gathered as they are stored;
    - reduce_input: padded gradients in the format of the reduction; reduce_output: this rank's part of them;
    - accumulated: gradients in the format of the reduction, in which they are kept over several micro-batches.
    """

    sharding: Sharding
    tensors: tuple[int, ...]
    parameters: tuple[int, ...]
    gathered: int
    shard_copy: int
    reduce_input: int
    reduce_output: int
    accumulated: tuple[int, ...]
    all_tensors: int
    all_accumulated: int


class Frozen(NamedTuple):
    """The shapes of tensors that no gradient reaches, and how many others are before them in fully_shard's order."""

    shapes: tuple[Shape, ...] = ()
    place: int = 0


NONE_FROZEN = Frozen()


@lru_cache(maxsize=1 << 14)
def group_of(shapes: tuple[Shape, ...], sharding: Sharding, formats: Formats, frozen: Frozen = NONE_FROZEN) -> Group:
    """Return the bytes of a group with tensors of these shapes, in fully_shard's order.

    The `frozen` ones are gathered with the others, and nothing of them is reduced.
    """
    trained = sum(map(sharding.stored, shapes))
    stored = trained + sum(map(sharding.stored, frozen.shapes))
    sizes = tuple(numbers(shape) * formats.gathered for shape in shapes)
    accumulated = tuple(numbers(shape) * formats.reduced for shape in shapes)
    return Group(
        sharding=sharding,
        tensors=sizes,
        parameters=(
            *sizes[: frozen.place],
            *(numbers(shape) * formats.gathered for shape in frozen.shapes),
            *sizes[frozen.place :],
        ),
        gathered=stored * sharding.shards * formats.gathered,
        shard_copy=stored * formats.gathered if formats.copies_shards else 0,
        reduce_input=trained * sharding.shards * formats.reduced,
        reduce_output=trained * formats.reduced,
        accumulated=accumulated,
        all_tensors=sum(sizes),
        all_accumulated=sum(accumulated),
    )


class LayerShapes(NamedTuple):
    """The shapes of a layer's tensors on a rank: all but the experts, and the experts that ranks of ep divide."""

    layer: tuple[Shape, ...]
    experts: tuple[Shape, ...]  # empty where the experts are in the group of the layer
    num_experts: int  # of all ranks


@lru_cache(maxsize=1 << 10)
def layer_shapes(layer: LayerSpec, ep: int = 1, *, predicts: bool = False) -> LayerShapes:
    """Return the shapes of one decoder layer's tensors, in fully_shard's order.

    It is the order of formulas/tensors.py, but that what a module itself owns follows the modules in it: sinks the
    projections and norms of attention, and learned scales the matrix of the router. With ep > 1 the routed experts are
    a group of their own, and a rank has 1 / ep of them. A layer that `predicts` further tokens has two more norms, a
    projection, and a last norm.
    """
    found = tensors(layer)
    attention, mixture = layer.attention, layer.feed_forward
    if isinstance(attention, GroupedQueryAttentionSpec) and attention.sinks:
        found = _own_last(found, tensors(attention), own=1)
    if isinstance(mixture, MixtureOfExpertsSpec) and mixture.router.learned_scales:
        found = _own_last(found, tensors(mixture.router), own=2)
    further = mtp_shapes(layer.hidden_size) if predicts else []
    if ep == 1 or not isinstance(mixture, MixtureOfExpertsSpec):
        return LayerShapes((*_shapes(found), *further), (), 0)
    experts = mixture.router.num_experts
    stacks = tuple((experts // ep, *tensor.shape[1:]) for tensor in found if tensor.stacked)
    rest = _shapes([tensor for tensor in found if not tensor.stacked])
    return LayerShapes((*rest, *further), stacks, experts)


def _own_last(found: Tensors, part: Tensors, *, own: int) -> Tensors:
    """Return the tensors of a layer with the first `own` of those of a `part` of it behind the others of that part."""
    start = next(index for index in range(len(found)) if found[index : index + len(part)] == part)
    return [*found[:start], *part[own:], *part[:own], *found[start + len(part) :]]


def frozen_shapes(layer: LayerSpec) -> Frozen:
    """Return the shapes of an indexer's tensors, the last of the attention; see formulas/parameters.py."""
    attention = layer.attention
    if isinstance(attention, GroupedQueryAttentionSpec) or attention.indexer is None:
        return NONE_FROZEN
    queries, key, weights = ((columns, rows) for rows, columns in indexer_matrices(attention, attention.indexer))
    norm = (attention.indexer.head_dim,)
    first = 0 if layer.norm_placement == "after" else 1
    return Frozen((queries, key, norm, norm, weights), first + len(tensors(attention)))


def mtp_shapes(width: int) -> list[Shape]:
    """Return the shapes of what a multi-token-prediction layer has beside a decoder layer, in order."""
    return [(width,), (width,), (width, 2 * width), (width,)]


def outside_shapes(spec: ModelSpec, grouping: Grouping) -> dict[tuple[str, ...], tuple[Shape, ...]]:
    """Return the shapes of the groups outside the layers, by the modules that each of them spans.

    ``layers``: all of them in the group of the root, ``("model",)``. ``torchtitan``: the embedding; final norm and
    head; if head and embedding are one tensor, all three together, because a tensor can be in one group only.
    """
    before, after = _before_layers(spec), _shapes(tensors_after_layers(spec))
    if grouping == "layers":
        return {("model",): (*before, *after)}
    if spec.tie_word_embeddings:
        return {("embedding", "norm", "head"): (*before, *after)}
    return {("embedding",): before, ("norm", "head"): after}


def outside_shapes_of_stage(
    stage: ModelSpec, grouping: Grouping, *, embeds: bool, is_last: bool
) -> dict[tuple[str, ...], tuple[Shape, ...]]:
    """Return the same of one stage of a pipeline, which may have an embedding, and is the last one or not."""
    before = _before_layers(stage) if embeds else ()
    after = _shapes(tensors_after_layers(stage)) if is_last else ()
    found = (
        {("model",): (*before, *after)} if grouping == "layers" else {("embedding",): before, ("norm", "head"): after}
    )
    return {modules: shapes for modules, shapes in found.items() if shapes}


def _before_layers(spec: ModelSpec) -> tuple[Shape, ...]:
    """The embedding; before it a learned table of positions, which is a module within the embedding's."""
    return _shapes(tensors_before_layers(spec))[::-1]


def _shapes(of: Sequence[TrainedTensor]) -> tuple[Shape, ...]:
    return tuple(tensor.shape for tensor in of)
