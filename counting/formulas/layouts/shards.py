"""What each rank stores under fully_shard: parameters, gradients, the optimiser's state; and the classes of ranks.

Of a tensor with s rows on n ranks, c = ceil(s / n) rows are stored on each rank, and rank i updates
min(c, s - i c) of them, at least none (`torch.chunk`). Weights and gradients are stored padded; the optimiser's moments
are as large as the part that is updated. AdamW has two moments and, in its fused form, a step count of 4 bytes for each
tensor on the device.

Example: a norm of 4,096 numbers on 100 ranks: c = 41; rank 0 stores 41 numbers in fp32, 164 bytes, as many bytes of
gradients, and 2 x 164 + 4 bytes of AdamW's state. Rank 99 updates 4,096 - 99 x 41 = 37 numbers.
"""

from collections.abc import Iterable, Sequence

from counting.formulas.layouts.formats import Stored
from counting.formulas.layouts.groups import Shape, row_numbers, sharded_rows
from counting.ranks.profile import RankShare
from counting.recipes import ModelStates, Optimizer
from counting.setup import Setup
from torch_models.layout import Layout
from torch_models.spec import ModelSpec

STEP_COUNT_BYTES = 4
NUMBERS = {"none": 0, "one": 1, "two": 2}  # moments of each parameter


def rank_rows(rows: int, shards: int, shard: int) -> int:
    """Return how many of `rows` the shard with this index has."""
    of_each = sharded_rows(rows, shards)
    return min(of_each, max(rows - shard * of_each, 0))


def rank_numbers(shape: Shape, shards: int, shard: int = 0) -> int:
    """Return how many numbers of a tensor the shard with this index has."""
    return rank_rows(shape[0], shards, shard) * row_numbers(shape)


def moment_bytes(numbers: int, formats: Stored, optimizer: Optimizer) -> int:
    """Return the bytes of the optimiser's state of `numbers` numbers of one tensor."""
    return NUMBERS[optimizer.moments] * numbers * formats.moment + STEP_COUNT_BYTES * formats.counts_steps


def sharded_states(
    shapes: Iterable[Shape], shards: int, formats: Stored, optimizer: Optimizer, further_gradients: int = 0
) -> ModelStates:
    """Return what the first rank stores of these tensors; `further_gradients` are bytes beside theirs."""
    padded = updated = moments = 0
    for shape in shapes:
        padded += sharded_rows(shape[0], shards) * row_numbers(shape)
        numbers = rank_numbers(shape, shards)
        updated += numbers
        moments += moment_bytes(numbers, formats, optimizer)
    return ModelStates(
        weights=padded * formats.weight,
        gradients=padded * formats.gradient + further_gradients,
        masters=updated * formats.master,
        moments=moments,
    )


def gradient_of_all_words(spec: ModelSpec, setup: Setup, layout: Layout) -> int:
    """Return the bytes of the embedding's gradient that belong to other ranks' words.

    Under tensor parallelism torch computes the gradient of the whole embedding, of which the rank's part is a view. It
    stays with the parameter, unless fully_shard reduces it, the head's is added to it, or the recipe adds it to a
    buffer of another format.
    """
    if layout.is_sharded or spec.tie_word_embeddings or setup.precision_recipe.gradients_apart:
        return 0
    whole = spec.vocab_size * spec.hidden_size * setup.precision_recipe.gradient_bytes
    return whole - whole // layout.tp


def sharded_parameters(shapes: Iterable[Shape], shards: int) -> int:
    """Return how many numbers of these tensors the first rank updates."""
    return sum(rank_numbers(shape, shards) for shape in shapes)


def sharded_shares(
    tensors: Sequence[tuple[Shape, int]], layout: Layout, formats: Stored, optimizer: Optimizer
) -> tuple[RankShare, ...]:
    """Return the classes of ranks, in the order of their lowest rank.

    `tensors` are those of the whole model, each shape with the number of tensors that have it. A shard differs from the
    one before it only where some tensor has its last whole part, or its last part of all.
    """
    starts = {0}
    for (rows, *_), _ in tensors:
        of_each = sharded_rows(rows, layout.fsdp)
        starts |= {rows // of_each, -(-rows // of_each)}
    found: dict[tuple[int, int], tuple[int, int]] = {}  # parameters, moments -> first shard, number of shards
    bounds = sorted(start for start in starts if start < layout.fsdp)
    for first, end in zip(bounds, [*bounds[1:], layout.fsdp], strict=True):
        parameters = moments = 0
        for shape, times in tensors:
            numbers = rank_numbers(shape, layout.fsdp, first)
            parameters += numbers * times
            moments += moment_bytes(numbers, formats, optimizer) * times
        lowest, number = found.get((parameters, moments), (first, 0))
        found[parameters, moments] = (lowest, number + end - first)
    return tuple(
        RankShare(
            count=number * layout.replicas * layout.tp,
            first_rank=first * layout.tp,
            parameters=parameters,
            moments=moments,
        )
        for (parameters, moments), (first, number) in found.items()
    )


def update_bytes(
    groups: Iterable[tuple[Sequence[Shape], int]], shards: int, formats: Stored, optimizer: Optimizer
) -> int:
    """Return the peak of the optimiser's temporary tensors; `groups` are shapes, with how often each group occurs.

    - a fused kernel, and SGD in a loop, allocate none;
    - AdamW over all tensors at once allocates the roots of all second moments (torch/optim/adamw.py,
      `_multi_tensor_adamw`);
    - with masters, gradients in another format are converted before: all of them, or one tensor's after the other.
    """
    converted = formats.master if formats.master and formats.gradient != formats.master else 0
    if not optimizer.all_at_once:
        return max(rank_numbers(shape, shards) for shapes, _ in groups for shape in shapes) * converted
    numbers = sum(sharded_parameters(shapes, shards) * times for shapes, times in groups)
    return numbers * (converted + formats.moment)
