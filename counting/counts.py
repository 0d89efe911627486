"""Counts: integers by component, that add, subtract and scale; and what both witnesses say of a model.

The components are the rows of every table, the keys of the JSON and the ids of the tests. Multi-token prediction
(`mtp`) is counted in the same components but never added to the main model's.

`ModelCounts` is made twice, from the modules and from the spec, and
`counting.reconcile` holds one against the other.
"""

import msgspec

BATCH_SIZE = 1  # sequences in every pass and step that is counted


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
    def peak(self) -> int:
        """All of it together."""
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


class LayerCounts(msgspec.Struct, frozen=True, kw_only=True):
    """One distinct decoder layer; FLOPs and bytes are of one forward pass over one sequence."""

    kind: str  # "dense" or "moe"
    count: int  # how many layers of the model are like this one
    parameters: Counts
    inactive_parameters: int  # of the routed experts that one token does not visit
    linear_weights: int  # in the matrices of attention and feed-forward
    router_correction_bias: int
    forward_flops: Counts  # by fvcore's trace
    dispatched_flops: Counts  # by torch's dispatch counter
    attention_core: AttentionCore
    memory: LayerMemory | None  # with gradients wanted: the pass that rematerialisation runs
    memory_no_grad: LayerMemory | None  # the first pass of a checkpointed layer


class MtpCounts(msgspec.Struct, frozen=True, kw_only=True):
    """All multi-token-prediction modules together, without the embedding and head they share."""

    parameters: Counts
    linear_weights: int  # without those of the projection, which fp8 recipes leave alone
    router_correction_bias: int
    forward_flops: Counts  # each module runs the shared head once more
    dispatched_flops: Counts
    attention_core: AttentionCore = AttentionCore()


class StepFlops(msgspec.Struct, frozen=True, kw_only=True):
    """FLOPs of one training step over one sequence, as a machine runs it, by component.

    `backward` is two products for each of the forward pass and, of fused attention, one more: the scores, which were
    never kept. `recomputed` is what activation checkpointing runs again.
    """

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
        """What the model asks for, however it is run: the forward pass and twice that for the backward pass.

        Model FLOPs as of Chowdhery et al. 2022 (arXiv 2204.02311), appendix B; MFU is measured in these.
        """
        return 3 * self.forward.total

    @property
    def hardware(self) -> int:
        """What is executed; HFU is measured in these."""
        return self.forward.total + self.backward.total + self.recomputed.total

    @property
    def extra_products(self) -> int:
        """What of the backward pass is in no model FLOPs: the scores that fused attention multiplies once more."""
        return self.backward.total - 2 * self.forward.total


class ModelCounts(msgspec.Struct, frozen=True, kw_only=True):
    """A whole model: its distinct layers, what stands outside them, and multi-token prediction beside it."""

    layers: tuple[LayerCounts, ...]
    outside_parameters: Counts  # embedding, final norm, head
    outside_flops: Counts
    outside_dispatched_flops: Counts
    mtp: MtpCounts

    @property
    def parameters(self) -> Counts:
        """Of the main model."""
        return sum((layer.parameters * layer.count for layer in self.layers), self.outside_parameters)

    @property
    def active_parameters(self) -> int:
        """Those that one token uses."""
        return self.parameters.total - sum(layer.inactive_parameters * layer.count for layer in self.layers)

    @property
    def linear_weights(self) -> int:
        """In the matrices of attention and feed-forward, routers left out."""
        return sum(layer.linear_weights * layer.count for layer in self.layers)

    @property
    def router_correction_bias(self) -> int:
        """Numbers in the main model's correction biases, which are no parameters."""
        return sum(layer.router_correction_bias * layer.count for layer in self.layers)

    @property
    def forward_flops(self) -> Counts:
        """Of the main model's forward pass."""
        return sum((layer.forward_flops * layer.count for layer in self.layers), self.outside_flops)

    @property
    def dispatched_flops(self) -> Counts:
        """The same by torch's dispatch counter."""
        return sum((layer.dispatched_flops * layer.count for layer in self.layers), self.outside_dispatched_flops)

    @property
    def attention_core(self) -> AttentionCore:
        """The part of the forward pass that depends on which keys a query visits."""
        return sum((layer.attention_core * layer.count for layer in self.layers), AttentionCore())
