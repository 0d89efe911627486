"""The counts that every witness returns: integers by component, per distinct layer, for the whole model, for one step.

A witness is one independent source of a number: a measurement, a formula or the simulation. Each returns a
`ModelCounts`, and `counting.reconcile` compares them. A field is None if the witness does not count it.

The components are the rows of every table, the keys of the JSON and the ids of the tests. Multi-token prediction
(`mtp`) is counted by the same components, but never added to the main model.
"""

from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import ClassVar, TypeVar

import msgspec

from counting.step.profile import StepProfile

MODEL_FLOPS_PER_FORWARD = 3  # model FLOPs of a training step, in forward passes; backward is two
FORWARD_ONLY = "indexer"  # the component whose products have no backward pass: they only choose


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters, FLOPs or bytes of each component; exact integers."""

    word_embedding: int = 0
    positional_embedding: int = 0
    attention: int = 0
    indexer: int = 0  # part of attention: chooses the keys that sparse attention visits
    mlp: int = 0
    router: int = 0
    routed_experts: int = 0
    shared_experts: int = 0
    norm: int = 0
    lm_head: int = 0
    other: int = 0  # all that belongs to no other component; always 0 for a native family

    @property
    def total(self) -> int:
        """The sum over all components."""
        return sum(self.by_component().values())

    def by_component(self) -> dict[str, int]:
        """Component name -> count, in the order of the tables; those of few models only if they are not 0."""
        return {c: getattr(self, c) for c in COMPONENTS if c not in OF_FEW_MODELS or getattr(self, c)}

    @property
    def forward_only(self) -> int:
        """Of FLOPs, those of products without a backward pass."""
        flops: int = getattr(self, FORWARD_ONLY)
        return flops

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(**{c: getattr(self, c) + getattr(other, c) for c in COMPONENTS})

    def __sub__(self, other: "Counts") -> "Counts":
        return Counts(**{c: getattr(self, c) - getattr(other, c) for c in COMPONENTS})

    def __mul__(self, factor: int) -> "Counts":
        return Counts(**{c: getattr(self, c) * factor for c in COMPONENTS})

    __rmul__ = __mul__


COMPONENTS: tuple[str, ...] = Counts.__struct_fields__
OF_FEW_MODELS = (FORWARD_ONLY, "other")


class LayerMemory(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes alive at the worst moment of one layer's forward pass.

    `boundary` is the layer's input, which checkpointing keeps. `saved` are the tensors that stay alive for backward
    after the pass (including the shared rotary tables). `transients` is everything else alive at that moment.
    """

    weights: int
    boundary: int
    saved: int
    transients: int

    @property
    def total(self) -> int:
        """The sum of all parts: the peak."""
        return self.weights + self.boundary + self.saved + self.transients


class AttentionCore(msgspec.Struct, frozen=True, kw_only=True):
    """FLOPs of the part of attention that multiplies two activations: scores and weighted values.

    `as_run` counts the query-key pairs that the kernel visits: S x W if it follows a window W, else S x S. `causal`
    leaves out the keys in the future. `full_square` counts S x S pairs, also with a window.
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
        """`forward_flops`, which include this core, without the keys in the future."""
        return forward_flops - self.as_run + self.causal

    def full_square_flops(self, forward_flops: int) -> int:
        """`forward_flops`, which include this core, as if every query visited every key."""
        return forward_flops - self.as_run + self.full_square


class LayerCounts(msgspec.Struct, frozen=True, kw_only=True):
    """One distinct decoder layer. FLOPs and bytes are those of one forward pass over one micro-batch."""

    kind: str  # "dense" or "moe"
    count: int  # layers of the model that are equal to this one
    parameters: Counts | None = None
    inactive_parameters: int | None = None  # of the routed experts that one token does not visit
    linear_weights: int | None = None  # in the matrices of attention and feed-forward
    router_correction_bias: int | None = None
    moment_bytes: int | None = None  # of the optimiser
    frozen_parameters: int | None = None  # of `parameters`, those that no gradient reaches: an indexer's
    forward_flops: Counts | None = None
    attention_core_flops: AttentionCore | None = None
    scan_flops: int | None = None  # of the products of scans that carry a state, beside `forward_flops`
    elementwise_operations: int | None = None  # of these scans and of short convolutions
    weight_bytes: int | None = None  # in 16 bits, correction biases in fp32
    boundary_bytes: int | None = None  # of the layer's input, in 16 bits
    peak_memory_bytes: LayerMemory | None = None  # with gradients enabled, as in recomputation
    peak_memory_no_grad_bytes: LayerMemory | None = None  # the first pass of a checkpointed layer


class OutsideCounts(msgspec.Struct, frozen=True, kw_only=True):
    """The modules outside the layers: embedding, final norm, head."""

    scope: ClassVar[str] = "outside the layers"

    parameters: Counts | None = None
    moment_bytes: int | None = None
    forward_flops: Counts | None = None


class MtpCounts(msgspec.Struct, frozen=True, kw_only=True):
    """All multi-token-prediction modules together, without the embedding and head they share."""

    scope: ClassVar[str] = "mtp"

    parameters: Counts | None = None
    linear_weights: int | None = None  # without the projection, which fp8 recipes do not quantise
    router_correction_bias: int | None = None
    moment_bytes: int | None = None
    frozen_parameters: int | None = None
    forward_flops: Counts | None = None  # each module runs the shared head once more
    attention_core_flops: AttentionCore | None = None


class StepFlops(msgspec.Struct, frozen=True, kw_only=True):
    """FLOPs of one training step, all micro-batches together, as executed, by component.

    `backward` has two products for each product of the forward pass, and for fused attention one more: the scores,
    which the forward pass does not store. `recomputed` has the products that activation checkpointing runs again.

    Attention counts the full square of positions. Where ranks of cp divide the positions, no kernel is called for the
    blocks of keys that causality hides from all queries of a block. `skipped_by_causality` has what these blocks would
    be in the forward pass: model FLOPs have them, and no pass has.
    """

    scope: ClassVar[str] = "step"
    quantity: ClassVar[str] = "training_flops"

    forward: Counts = Counts()
    backward: Counts = Counts()
    recomputed: Counts = Counts()
    skipped_by_causality: Counts = Counts()

    def __add__(self, other: "StepFlops") -> "StepFlops":
        return StepFlops(
            forward=self.forward + other.forward,
            backward=self.backward + other.backward,
            recomputed=self.recomputed + other.recomputed,
            skipped_by_causality=self.skipped_by_causality + other.skipped_by_causality,
        )

    def __mul__(self, factor: int) -> "StepFlops":
        return StepFlops(
            forward=self.forward * factor,
            backward=self.backward * factor,
            recomputed=self.recomputed * factor,
            skipped_by_causality=self.skipped_by_causality * factor,
        )

    @property
    def full_forward(self) -> Counts:
        """The forward pass by the convention: the full square of all attention."""
        return self.forward + self.skipped_by_causality

    @property
    def skipped(self) -> int:
        """Model FLOPs of the blocks that causality skips: hardware FLOPs do not have them."""
        return model_flops(self.skipped_by_causality.total)

    @property
    def model(self) -> int:
        """Model FLOPs: forward and backward, without recomputation. MFU is defined by them."""
        return model_flops(self.full_forward.total, self.full_forward.forward_only)

    @property
    def hardware(self) -> int:
        """Hardware FLOPs: all that is executed. HFU has what ring attention skips too."""
        return self.forward.total + self.backward.total + self.recomputed.total

    @property
    def extra_products(self) -> int:
        """FLOPs of the backward pass that are not model FLOPs: the scores that fused attention computes again.

        Model FLOPs, with these and `recomputed`, without `skipped`, are the hardware FLOPs.
        """
        return self.hardware - self.recomputed.total - self.model + self.skipped


class WholeModel(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over the main model: all layers and the modules outside them."""

    parameters: Counts | None
    active_parameters: int | None  # the parameters that one token uses
    linear_weights: int | None  # in the matrices of attention and feed-forward, without routers
    router_correction_bias: int | None
    moment_bytes: int | None  # of the optimiser
    frozen_parameters: int | None
    forward_flops: Counts | None
    attention_core_flops: AttentionCore | None  # the part that depends on which keys a query visits


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over the whole model, for a witness that knows no layers and no components: a checkpoint's headers."""

    scope: ClassVar[str] = "model"

    parameters: int | None = None
    router_correction_bias: int | None = None
    mtp_parameters: int | None = None
    mtp_router_correction_bias: int | None = None


class ModelCounts(msgspec.Struct, frozen=True, kw_only=True):
    """The counts of one witness: distinct layers, the rest of the model, multi-token prediction, a training step."""

    layers: tuple[LayerCounts, ...]
    outside: OutsideCounts = OutsideCounts()
    mtp: MtpCounts = MtpCounts()
    training_flops: StepFlops | None = None
    step_profile: StepProfile | None = None
    totals: Totals | None = None

    def own_totals(self) -> Totals:
        """The sums that `Totals` has; a sum is None if one of its parts is None."""
        whole, mtp = self.whole_model(), self.mtp
        return Totals(
            parameters=None if whole.parameters is None else whole.parameters.total,
            router_correction_bias=whole.router_correction_bias,
            mtp_parameters=None if mtp.parameters is None else mtp.parameters.total,
            mtp_router_correction_bias=mtp.router_correction_bias,
        )

    def whole_model(self) -> WholeModel:
        """The sums over the main model; a sum is None if one of its parts is None."""
        inactive = self._sum_over_layers("inactive_parameters")
        parameters = self._with_outside("parameters")
        return WholeModel(
            parameters=parameters,
            active_parameters=None if parameters is None or inactive is None else parameters.total - inactive,
            linear_weights=self._sum_over_layers("linear_weights"),
            router_correction_bias=self._sum_over_layers("router_correction_bias"),
            moment_bytes=_sum((self.outside.moment_bytes, self._sum_over_layers("moment_bytes"))),
            frozen_parameters=self._sum_over_layers("frozen_parameters"),
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


def model_flops(forward_flops: int, forward_only: int = 0) -> int:
    """Model FLOPs of training: three times `forward_flops`, once for forward and twice for backward.

    Defined by Chowdhery et al. 2022 (arXiv 2204.02311), appendix B. Recomputation is not included. `forward_only` are
    those of `forward_flops` that have no backward pass (`Counts.forward_only`), which count once.
    """
    return MODEL_FLOPS_PER_FORWARD * (forward_flops - forward_only) + forward_only


def model_flops_in_words(forward_only: bool) -> str:
    """How model FLOPs follow from those of a forward pass, in words; `forward_only`: some count once."""
    return "3 × forward, an indexer's once" if forward_only else "3 × forward"


def model_flops_per_token(forward_flops: int, tokens: int, forward_only: int = 0) -> Fraction:
    """Model FLOPs of training one token, exact, from those of a forward pass over so many tokens."""
    return Fraction(model_flops(forward_flops, forward_only), tokens)


_N = TypeVar("_N", int, Counts, AttentionCore)


def _sum(parts: Iterable[_N | None]) -> _N | None:
    """The sum; None if `parts` is empty or a part is None."""
    total: _N | None = None
    for index, part in enumerate(parts):
        if part is None:
            return None
        total = part if index == 0 or total is None else total + part
    return total


def with_scans(counts: ModelCounts) -> ModelCounts:
    """The counts with the products of the layers' scans in their forward FLOPs, as attention."""
    return msgspec.structs.replace(counts, layers=tuple(map(_with_scan, counts.layers)))


def _with_scan(layer: LayerCounts) -> LayerCounts:
    if not layer.scan_flops or layer.forward_flops is None:
        return layer
    flops = layer.forward_flops + Counts(attention=layer.scan_flops)
    return msgspec.structs.replace(layer, forward_flops=flops)


def with_checkpoint(witnesses: Mapping[str, ModelCounts], stored: Totals) -> dict[str, ModelCounts]:
    """The witnesses with their sums over the model, and the checkpoint as one more, which has nothing but the sums."""
    summed = {name: msgspec.structs.replace(counts, totals=counts.own_totals()) for name, counts in witnesses.items()}
    layers = next(iter(witnesses.values())).layers
    same_layers = tuple(LayerCounts(kind=layer.kind, count=layer.count) for layer in layers)
    return {**summed, "checkpoint": ModelCounts(layers=same_layers, totals=stored)}
