"""What a layout divides must come out even: the rules, from the specs of the layers. Torch-free."""

from collections.abc import Iterable, Iterator, Sequence

from torch_models.errors import ArgumentError
from torch_models.layout import Layout
from torch_models.spec import GatedMLPSpec, GroupedQueryAttentionSpec, LayerSpec, MixtureOfExpertsSpec

IN_16_BITS = 8  # numbers in 16 bytes, of which torch's grouped product needs a multiple in each row


def check_tensor_parallel(layers: Iterable[LayerSpec], vocab_size: int, tp: int, row: int) -> None:
    """Raise `ArgumentError` if tp does not divide the heads, the intermediate sizes or the vocabulary.

    A rank's part of the intermediate size of an expert must be a multiple of `row`.
    """
    sizes = [("vocab_size", vocab_size, 1), *(size for layer in layers for size in _divided(layer, row))]
    for name, size, unit in sizes:
        if size % (tp * unit):
            raise ArgumentError(
                "tp", tp, f"must divide {name} ({size}){f' in multiples of {unit}' if unit > 1 else ''}"
            )


def check_expert_parallel(name: str, layers: Sequence[LayerSpec], layout: Layout) -> None:
    """Raise `ArgumentError` if a model called `name` has no experts, or if ep leaves uneven parts of them."""
    mixtures = [layer.feed_forward for layer in layers if isinstance(layer.feed_forward, MixtureOfExpertsSpec)]
    if not mixtures:
        raise ArgumentError("ep", layout.ep, f"must be 1: {name} has no experts")
    for mixture in mixtures:
        experts, expert = mixture.router.num_experts, mixture.expert
        if experts % layout.ep:
            raise ArgumentError("ep", layout.ep, f"must divide the number of experts ({experts})")
        if by_second_dimension(experts, layout):
            _check_second_dimension(expert.hidden_size, layout, "hidden_size")
            _check_second_dimension(2 * expert.intermediate_size, layout, "twice the intermediate_size of an expert")
            if not isinstance(expert, GatedMLPSpec):
                _check_second_dimension(expert.intermediate_size, layout, "the intermediate_size of an expert")


def by_second_dimension(num_experts: int, layout: Layout) -> bool:
    """Whether `fully_shard` divides stacks of experts by their second dimension: where ranks outnumber the experts."""
    return layout.ep > 1 and layout.expert_fsdp * layout.ep > num_experts


def _check_second_dimension(size: int, layout: Layout, what: str) -> None:
    """Torch needs equal parts of any dimension but the first."""
    if size % layout.expert_fsdp:
        rule = (
            f"leaves {layout.expert_fsdp} ranks of fsdp for each stack of experts, which do not divide {what} ({size})"
        )
        raise ArgumentError("ep", layout.ep, rule)


def _divided(layer: LayerSpec, row: int) -> Iterator[tuple[str, int, int]]:
    """Yield name, size, and what each part must be a multiple of."""
    attention, feed_forward = layer.attention, layer.feed_forward
    yield "num_attention_heads", attention.num_attention_heads, 1
    if isinstance(attention, GroupedQueryAttentionSpec):
        yield "num_key_value_heads", attention.num_key_value_heads, 1
    if isinstance(feed_forward, GatedMLPSpec):
        yield "intermediate_size", feed_forward.intermediate_size, 1
        return
    yield "the intermediate_size of an expert", feed_forward.expert.intermediate_size, row
    if feed_forward.shared_experts is not None:
        yield "the intermediate_size of the shared experts", feed_forward.shared_experts.intermediate_size, 1
