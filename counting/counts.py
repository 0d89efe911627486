"""What every witness fills in: integers by component, for each distinct layer, for the whole model, for one step.

The components are the rows of every table, the keys of the JSON and the ids of the tests. Multi-token prediction
(`mtp`) is counted in the same components but never added to the main model's.

A `ModelCounts` is made several times, by measurements and by formulas, and `counting.reconcile` holds one against the
other. A field is None where a witness does not speak of it.
"""

from collections.abc import Iterable
from typing import ClassVar, TypeVar

import msgspec

from counting.step.profile import StepProfile

MODEL_FLOPS_PER_FORWARD = 3  # a training step's model FLOPs in forward passes: backward is two of them


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters, FLOPs or bytes of each component; exact integers."""

    word_embedding: int = 0
    positional_embedding: int = 0
    attention: int = 0
    mlp: int = 0
    router: int = 0
    routed_experts: int = 0
    shared_experts: int = 0
    norm: int = 0
    lm_head: int = 0
    other: int = 0  # what belongs to none of these; never of a native family

    @property
    def total(self) -> int:
        """The sum over all components."""
        return sum(self.by_component().values())

    def by_component(self) -> dict[str, int]:
        """Component name -> count, in the order of the tables; zeros included, but for `other`."""
        return {c: getattr(self, c) for c in COMPONENTS if c != "other" or self.other}

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(**{c: getattr(self, c) + getattr(other, c) for c in COMPONENTS})

    def __sub__(self, other: "Counts") -> "Counts":
        return Counts(**{c: getattr(self, c) - getattr(other, c) for c in COMPONENTS})

    def __mul__(self, factor: int) -> "Counts":
        return Counts(**{c: getattr(self, c) * factor for c in COMPONENTS})

    __rmul__ = __mul__


COMPONENTS: tuple[str, ...] = Counts.__struct_fields__


class LayerMemory(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes alive at the worst moment of one layer's forward pass.

    `boundary` is the layer's input, which checkpointing keeps; `saved` is what stays alive for backward once the
    pass is over (the shared rotary tables included); `transients` is everything else alive at that moment.
    """

    weights: int
    boundary: int
    saved: int
    transients: int

    @property
    def total(self) -> int:
        """All of it together: the peak."""
        return self.weights + self.boundary + self.saved + self.transients


class AttentionCore(msgspec.Struct, frozen=True, kw_only=True):
    """FLOPs of the part of attention that multiplies two activations: scores and weighted values.

    `as_run` is S times as many keys as a kernel visits, the window where it follows one and S otherwise; `causal`
    leaves out the keys that lie in the future; `full_square` is S x S whatever the window.
    """

    as_run: int = 0
    causal: int = 0
    full_square: int = 0

    def __add__(self, other: "AttentionCore") -> "AttentionCore":
        return AttentionCore(
            as_run=self.as_run + other.as_run,
            causal=self.causal + other.causal,
            full_square=self.full_square + other.full_square,
        )

    def __mul__(self, factor: int) -> "AttentionCore":
        return AttentionCore(
            as_run=self.as_run * factor, causal=self.causal * factor, full_square=self.full_square * factor
        )

    def causal_flops(self, forward_flops: int) -> int:
        """Of FLOPs that have this core in them, those that remain without the keys in the future."""
        return forward_flops - self.as_run + self.causal

    def full_square_flops(self, forward_flops: int) -> int:
        """What FLOPs that have this core in them would be if every query met every key."""
        return forward_flops - self.as_run + self.full_square


class LayerCounts(msgspec.Struct, frozen=True, kw_only=True):
    """One distinct decoder layer; FLOPs and bytes are of one forward pass over one micro-batch."""

    kind: str  # "dense" or "moe"
    count: int  # how many layers of the model are like this one
    parameters: Counts | None = None
    inactive_parameters: int | None = None  # of the routed experts that one token does not visit
    linear_weights: int | None = None  # in the matrices of attention and feed-forward
    router_correction_bias: int | None = None
    forward_flops: Counts | None = None
    attention_core_flops: AttentionCore | None = None
    weight_bytes: int | None = None  # in 16 bits, correction biases in fp32
    boundary_bytes: int | None = None  # of the layer's input, in 16 bits
    peak_memory_bytes: LayerMemory | None = None  # with gradients wanted: the pass that rematerialisation runs
    peak_memory_no_grad_bytes: LayerMemory | None = None  # the first pass of a checkpointed layer


class OutsideCounts(msgspec.Struct, frozen=True, kw_only=True):
    """What stands outside the layers: embedding, final norm, head."""

    scope: ClassVar[str] = "outside the layers"

    parameters: Counts | None = None
    forward_flops: Counts | None = None


class MtpCounts(msgspec.Struct, frozen=True, kw_only=True):
    """All multi-token-prediction modules together, without the embedding and head they share."""

    scope: ClassVar[str] = "mtp"

    parameters: Counts | None = None
    linear_weights: int | None = None  # without those of the projection, which fp8 recipes leave alone
    router_correction_bias: int | None = None
    forward_flops: Counts | None = None  # each module runs the shared head once more
    attention_core_flops: AttentionCore | None = None


class StepFlops(msgspec.Struct, frozen=True, kw_only=True):
    """FLOPs of one training step over one micro-batch, as a machine runs it, by component.

    `backward` is two products for each of the forward pass and, of fused attention, one more: the scores, which were
    never kept. `recomputed` is what activation checkpointing runs again.
    """

    scope: ClassVar[str] = "step"
    quantity: ClassVar[str] = "training_flops"

    forward: Counts = Counts()
    backward: Counts = Counts()
    recomputed: Counts = Counts()

    def __add__(self, other: "StepFlops") -> "StepFlops":
        return StepFlops(
            forward=self.forward + other.forward,
            backward=self.backward + other.backward,
            recomputed=self.recomputed + other.recomputed,
        )

    def __mul__(self, factor: int) -> "StepFlops":
        return StepFlops(
            forward=self.forward * factor, backward=self.backward * factor, recomputed=self.recomputed * factor
        )

    @property
    def model(self) -> int:
        """What the model asks for, however it is run; MFU is measured in these."""
        return model_flops(self.forward.total)

    @property
    def hardware(self) -> int:
        """What is executed; HFU is measured in these."""
        return self.forward.total + self.backward.total + self.recomputed.total

    @property
    def extra_products(self) -> int:
        """What of the backward pass is in no model FLOPs: the scores that fused attention multiplies once more."""
        return self.hardware - self.recomputed.total - self.model


class WholeModel(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over all layers of the main model and what stands outside them."""

    parameters: Counts | None
    active_parameters: int | None  # those that one token uses
    linear_weights: int | None  # in the matrices of attention and feed-forward, routers left out
    router_correction_bias: int | None
    forward_flops: Counts | None
    attention_core_flops: AttentionCore | None  # the part that depends on which keys a query visits


class ModelCounts(msgspec.Struct, frozen=True, kw_only=True):
    """One witness's word on a model: its distinct layers, the rest, multi-token prediction, and a training step."""

    layers: tuple[LayerCounts, ...]
    outside: OutsideCounts = OutsideCounts()
    mtp: MtpCounts = MtpCounts()
    training_flops: StepFlops | None = None
    step_profile: StepProfile | None = None

    def whole_model(self) -> WholeModel:
        """The sums; None where a part of one is not known."""
        inactive = self._sum_over_layers("inactive_parameters")
        parameters = self._with_outside("parameters")
        return WholeModel(
            parameters=parameters,
            active_parameters=None if parameters is None or inactive is None else parameters.total - inactive,
            linear_weights=self._sum_over_layers("linear_weights"),
            router_correction_bias=self._sum_over_layers("router_correction_bias"),
            forward_flops=self._with_outside("forward_flops"),
            attention_core_flops=_sum(
                None if layer.attention_core_flops is None else layer.attention_core_flops * layer.count
                for layer in self.layers
            ),
        )

    def _with_outside(self, field: str) -> Counts | None:
        parts: list[Counts | None] = [getattr(self.outside, field)]
        for layer in self.layers:
            counts: Counts | None = getattr(layer, field)
            parts.append(None if counts is None else counts * layer.count)
        return _sum(parts)

    def _sum_over_layers(self, field: str) -> int | None:
        numbers = [(getattr(layer, field), layer.count) for layer in self.layers]
        return _sum(None if number is None else number * count for number, count in numbers)


def model_flops(forward_flops: int) -> int:
    """FLOPs that training asks for, from those of a forward pass: that pass, and twice it for the backward pass.

    Model FLOPs as of Chowdhery et al. 2022 (arXiv 2204.02311), appendix B; nothing recomputed is in them.
    """
    return MODEL_FLOPS_PER_FORWARD * forward_flops


_N = TypeVar("_N", int, Counts, AttentionCore)


def _sum(parts: Iterable[_N | None]) -> _N | None:
    """The sum; None where there is nothing, or a part is None."""
    total: _N | None = None
    for index, part in enumerate(parts):
        if part is None:
            return None
        total = part if index == 0 or total is None else total + part
    return total
