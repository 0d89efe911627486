"""How a model is divided over ranks, as far as the sizes of tensors depend on it; and the specs of a rank's part.

Under tensor parallelism a rank has some heads of each attention, and some columns of each MLP and of each expert
(Shoeybi et al. 2019, arXiv 1909.08053, §3): its part of a layer is a layer with fewer heads and a smaller intermediate
size. The residual stream and the norms have the full width, for some of the positions with sequence parallelism
(Korthikanti et al. 2022, arXiv 2205.05198, §4.2.2).

Under context parallelism a rank has some positions of each sequence, and everything but the core of attention runs on
these alone: its step is that of a shorter sequence (`local_setup`).
"""

from functools import lru_cache
from typing import NamedTuple, TypeVar

from msgspec import structs

from counting.setup import MicroBatch, Setup
from torch_models.layout import Layout
from torch_models.spec import (
    ClampedMLPSpec,
    GatedMLPSpec,
    GroupedQueryAttentionSpec,
    LayerSpec,
    MixtureOfExpertsSpec,
    MLPSpec,
    ModelSpec,
)

M = TypeVar("M", bound=GatedMLPSpec | MLPSpec)


class Division(NamedTuple):
    """The axes of a layout that divide a layer's tensors."""

    tp: int = 1
    sequence_parallel: bool = False  # only with tp > 1
    ep: int = 1
    expert_imbalance: float = 1.0
    cp: int = 1
    context_rank: int = 0  # the place of the rank among those of cp

    @property
    def halves_queries(self) -> bool:
        """Whether ring attention runs on the second half of this rank's queries alone: with keys of later ranks."""
        return self.context_rank < self.cp - 1

    @property
    def stream(self) -> int:
        """Ranks over which the positions of the residual stream are divided."""
        return self.tp if self.sequence_parallel else 1

    def stream_tokens(self, batch: MicroBatch) -> int:
        """Tokens of the residual stream on a rank."""
        return batch.tokens // self.stream

    def received_rows(self, rows: int) -> int:
        """Rows that a rank's experts receive, of which each rank sends `rows`: balanced, or those of the busiest."""
        return round(self.expert_imbalance * rows)


UNDIVIDED = Division()


def division_of(layout: Layout | None, context_rank: int = 0) -> Division:
    """The division of a resolved layout, for this rank of cp."""
    if layout is None:
        return UNDIVIDED
    by_position = layout.sequence_parallel and layout.tp > 1
    return Division(layout.tp, by_position, layout.ep, layout.expert_imbalance, layout.cp, context_rank)


@lru_cache(maxsize=256)
def local_setup(setup: Setup, cp: int) -> Setup:
    """The step of one of `cp` ranks, each of which has as many positions of every sequence; `setup` is resolved."""
    if cp == 1:
        return setup
    assert setup.sequence_length is not None, "a resolved setup"
    length = _part(setup.sequence_length, cp)
    chunk = setup.loss_chunk
    if chunk is not None and chunk >= setup.micro_batch_size * length:
        chunk = None
    return structs.replace(setup, sequence_length=length, loss_chunk=chunk)


def depths_with_inputs(spec: ModelSpec, setup: Setup, cp: int) -> int:
    """Prediction depths whose token ids and labels are inputs: with cp all, since other ranks have some of them."""
    return len(spec.mtp_layers) if setup.mtp and cp > 1 else 0


def local_layer(spec: LayerSpec, tp: int) -> LayerSpec:
    """The part of a layer that one of `tp` ranks has."""
    if tp == 1:
        return spec
    attention = spec.attention
    heads = _part(attention.num_attention_heads, tp)
    if isinstance(attention, GroupedQueryAttentionSpec):
        key_heads = _part(attention.num_key_value_heads, tp)
        attention = structs.replace(attention, num_attention_heads=heads, num_key_value_heads=key_heads)
    else:
        attention = structs.replace(attention, num_attention_heads=heads)
    feed_forward = spec.feed_forward
    if isinstance(feed_forward, MixtureOfExpertsSpec):
        shared = feed_forward.shared_experts
        feed_forward = structs.replace(
            feed_forward,
            expert=_local_expert(feed_forward.expert, tp),
            shared_experts=shared and _local_mlp(shared, tp),
        )
    else:
        feed_forward = _local_mlp(feed_forward, tp)
    return structs.replace(spec, attention=attention, feed_forward=feed_forward)


def _local_expert(spec: GatedMLPSpec | ClampedMLPSpec, tp: int) -> GatedMLPSpec | ClampedMLPSpec:
    return structs.replace(spec, intermediate_size=_part(spec.intermediate_size, tp))


def _local_mlp(spec: M, tp: int) -> M:
    return structs.replace(spec, intermediate_size=_part(spec.intermediate_size, tp))


def _part(size: int, ranks: int) -> int:
    assert size % ranks == 0, "a layout that divides the model"
    return size // ranks
