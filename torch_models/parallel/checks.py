"""What a layout divides must come out even: the sizes, from the specs of the layers, and the rules. Torch-free."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from torch_models.errors import ArgumentError
from torch_models.layout import Layout
from torch_models.spec import (
    MAX_FLASH_CHANNELS,
    GatedMLPSpec,
    GroupedQueryAttentionSpec,
    Kernels,
    LayerSpec,
    MixtureOfExpertsSpec,
    MLPSpec,
    MultiHeadLatentAttentionSpec,
)

PADDED_ROWS = 32  # the memory-efficient kernel pads its sums of exponents to multiples of so many positions
NO_PARALLEL_MLP = "must be 1: layers have an MLP beside their experts and norms after both, which tp does not divide"
UNDIVIDED_INDEXER = "the indexer of sparse attention sums over all its heads, and is not divided here"
GROUPED_PRODUCT_ROW = 8  # numbers; the rows of a grouped product in 16 bits are multiples of 16 bytes


class Size(NamedTuple):
    """A size of the model that an axis divides, under the name that its config has."""

    name: str
    value: int
    unit: int = 1  # each part must be a multiple of it

    @property
    def parts(self) -> int:
        """An axis divides it if it divides this."""
        return self.value // self.unit if self.value % self.unit == 0 else 1

    def __str__(self) -> str:
        return f"{self.name} ({self.value}){'' if self.unit == 1 else f' in multiples of {self.unit}'}"


def divided_by_tp(layers: Iterable[LayerSpec], vocab_size: int) -> list[Size]:
    """What tp divides: heads, intermediate sizes and the vocabulary; each size once."""
    found = [size for layer in layers for size in _of_layer(layer)]
    return list(dict.fromkeys([*found, Size("vocab_size", vocab_size)]))


def _of_layer(layer: LayerSpec) -> Iterator[Size]:
    attention, feed_forward = layer.attention, layer.feed_forward
    yield Size("num_attention_heads", attention.num_attention_heads)
    if isinstance(attention, GroupedQueryAttentionSpec):
        yield Size("num_key_value_heads", attention.num_key_value_heads)
    if isinstance(feed_forward, GatedMLPSpec | MLPSpec):
        yield Size("intermediate_size", feed_forward.intermediate_size)
        return
    yield Size("the intermediate_size of an expert", feed_forward.expert.intermediate_size, GROUPED_PRODUCT_ROW)
    if feed_forward.shared_experts is not None:
        yield Size("the intermediate_size of the shared experts", feed_forward.shared_experts.intermediate_size)


def by_second_dimension(num_experts: int, layout: Layout) -> bool:
    """Whether `fully_shard` divides stacks of experts by their second dimension: where ranks outnumber the experts."""
    return layout.ep > 1 and layout.expert_fsdp * layout.ep > num_experts


def second_dimensions(mixture: MixtureOfExpertsSpec) -> tuple[Size, ...]:
    """The second dimensions of the stacks of experts; torch needs equal parts of any dimension but the first."""
    expert = mixture.expert
    hidden = Size("hidden_size", expert.hidden_size)
    gate_and_up = Size("twice the intermediate_size of an expert", 2 * expert.intermediate_size)
    if isinstance(expert, GatedMLPSpec):
        return gate_and_up, hidden
    return hidden, gate_and_up, Size("the intermediate_size of an expert", expert.intermediate_size)


def borrows_evenly(ep: int, layout: Layout) -> bool:
    """Whether ep takes whole groups of the ranks of fsdp, or all of them and whole groups of replicas."""
    fewer, more = sorted((layout.shards, ep))
    return more % fewer == 0 and layout.token_ranks % more == 0


def check_tensor_parallel(layers: Iterable[LayerSpec], vocab_size: int, tp: int) -> None:
    """Raise `ArgumentError` if tp does not divide the heads, the intermediate sizes or the vocabulary.

    Or if a layer has an indexer, or an MLP beside its experts, whose outputs have norms of their own before they are
    added.
    """
    layers = list(layers)
    if has_parallel_mlp(layers):
        raise ArgumentError("tp", tp, NO_PARALLEL_MLP)
    if any(map(chooses_keys, layers)):
        raise ArgumentError("tp", tp, f"must be 1: {UNDIVIDED_INDEXER}")
    for size in divided_by_tp(layers, vocab_size):
        if size.parts % tp:
            raise ArgumentError("tp", tp, f"must divide {size}")


def has_parallel_mlp(layers: Iterable[LayerSpec]) -> bool:
    """Whether a layer has an MLP beside its experts, which tp does not divide."""
    return any(layer.parallel_mlp is not None for layer in layers)


def chooses_keys(layer: LayerSpec) -> bool:
    """Whether an indexer chooses the keys of the layer's attention."""
    attention = layer.attention
    return isinstance(attention, MultiHeadLatentAttentionSpec) and attention.indexer is not None


def without_ring_attention(layer: LayerSpec) -> str | None:
    """What of a layer's attention torch's ring attention does not have, or None."""
    attention = layer.attention
    if not isinstance(attention, GroupedQueryAttentionSpec):
        return "keys that an indexer chooses" if chooses_keys(layer) else None
    has = {
        "a window": attention.window is not None,
        "chunks": attention.chunk is not None,
        "a temperature by position": attention.temperature is not None,
        "a cap on its scores": attention.logit_softcap is not None,
        "sinks": attention.sinks,
        "a norm of its values": attention.value_norm,
        f"heads of more than {MAX_FLASH_CHANNELS} channels": attention.head_dim > MAX_FLASH_CHANNELS,
    }
    return next((name for name, there in has.items() if there), None)


def check_context_parallel(layers: Iterable[LayerSpec], kernels: Kernels, cp: int) -> None:
    """Raise `ArgumentError` for attention that torch's ring attention does not have."""
    if kernels != "fused":
        rule = "must be 1 with eager kernels: torch's ring attention merges the outputs of fused ones"
        raise ArgumentError("cp", cp, rule)
    for layer in layers:
        if reason := without_ring_attention(layer):
            rule = f"must be 1: attention has {reason}, which torch's ring attention does not"
            raise ArgumentError("cp", cp, rule)


def context_length_unit(layers: Iterable[LayerSpec], cp: int) -> int:
    """What a sequence's length must be a multiple of: each of the 2 cp chunks is one position, or `PADDED_ROWS`.

    Queries and values with heads of unequal sizes run the memory-efficient kernel. Torch's ring attention merges its
    padded sums of exponents with those of a chunk, so that the padding must be none.
    """
    latent = [each for layer in layers if isinstance(each := layer.attention, MultiHeadLatentAttentionSpec)]
    padded = any(attention.qk_head_dim != attention.v_head_dim for attention in latent)
    return 2 * cp * (PADDED_ROWS if padded else 1)


def check_expert_parallel(name: str, layers: Sequence[LayerSpec], layout: Layout) -> None:
    """Raise `ArgumentError` if a model called `name` has no experts, or if ep leaves uneven parts of them."""
    mixtures = [layer.feed_forward for layer in layers if isinstance(layer.feed_forward, MixtureOfExpertsSpec)]
    if not mixtures:
        raise ArgumentError("ep", layout.ep, f"must be 1: {name} has no experts")
    for mixture in mixtures:
        experts, ranks = mixture.router.num_experts, layout.expert_fsdp
        if experts % layout.ep:
            raise ArgumentError("ep", layout.ep, f"must divide the number of experts ({experts})")
        uneven = [size for size in second_dimensions(mixture) if size.value % ranks]
        if uneven and by_second_dimension(experts, layout):
            rule = f"leaves {ranks} ranks of fsdp for each stack of experts, which do not divide {uneven[0]}"
            raise ArgumentError("ep", layout.ep, rule)
