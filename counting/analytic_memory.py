"""Memory of one layer's forward pass in closed form: every tensor's size, written out from the spec alone.

Each function tells the life of one block's tensors in the order of their birth: which are only passing (`new`),
which backward needs (`keep`), and when the forward pass lets go of them (`free`). The peak is the largest sum along
that tale. Torch-free and blind to the modules: the other witness of `counting.memory`. What backward needs: a product
keeps its inputs, each for the other's gradient, unless one of them needs none; an activation keeps its input;
sigmoid and softmax keep their output; a gather keeps its indices; sums and scalings keep nothing.

For batch size 1, 16-bit weights and activations, and the kernels that torch runs on CUDA.

Legend: T tokens, D hidden_size, F intermediate_size, E experts, K experts per token, H query heads, G key/value
heads, C channels of a query head.
"""

from collections.abc import Mapping

from counting import analytic
from counting.counts import Kernels, LayerMemory
from torch_models.spec import (
    AttentionSpec,
    FeedForwardSpec,
    GatedMLPSpec,
    GroupedQueryAttentionSpec,
    LayerSpec,
    MixtureOfExpertsSpec,
    MultiHeadLatentAttentionSpec,
    RouterSpec,
)

HALF = 2  # bytes of a weight or an activation
SINGLE = 4  # bytes of what is computed in fp32
LONG = 8  # bytes of an index as sort and topk return it
INT = 4  # bytes of an index as the grouped product takes it
BOOL = 1

FLASH_RANDOM_STATE = 24  # dropout's seed and offset, which the kernel returns though there is no dropout
EFFICIENT_RANDOM_STATE = 16
EFFICIENT_ROW_BLOCK = 32  # the kernel rounds its rows of log-sum-exp up to this


class Lifetimes:
    """Bytes alive as tensors come and go. Without `grad` nothing is kept for backward but what is `shared`."""

    def __init__(self, *, shared: int, grad: bool) -> None:
        self.grad = grad
        self.live = self.kept = self.peak = self.kept_at_peak = shared
        self._alive: dict[str, tuple[int, bool]] = {}

    def new(self, **sizes: int) -> None:
        """One kernel's outputs, which are gone once the forward pass frees them."""
        self.born(passing=sizes, kept={})

    def keep(self, **sizes: int) -> None:
        """One kernel's outputs, which backward needs: with `grad` they outlive their `free`."""
        self.born(passing={}, kept=sizes)

    def born(self, *, passing: Mapping[str, int], kept: Mapping[str, int]) -> None:
        """One kernel's outputs, of either sort."""
        for sizes, needed in ((passing, False), (kept, self.grad)):
            for name, size in sizes.items():
                assert name not in self._alive, f"{name} is alive"
                self._alive[name] = (size, needed)
                self.live += size
                self.kept += size if needed else 0
        if self.live > self.peak:
            self.peak, self.kept_at_peak = self.live, self.kept

    def free(self, *names: str) -> None:
        """The forward pass lets go."""
        for name in names:
            size, needed = self._alive.pop(name)
            self.live -= 0 if needed else size

    def rename(self, name: str, other: str) -> None:
        """The same tensor under the name that the next block knows."""
        self._alive[other] = self._alive.pop(name)


def layer_memory(spec: LayerSpec, sequence_length: int, kernels: Kernels, *, grad: bool) -> LayerMemory:
    """Bytes alive at the worst moment of one layer's forward pass over one sequence.

    With `grad` it is the pass that rematerialisation runs, without it the first one.
    """
    tokens = sequence_length
    stream = HALF * tokens * spec.hidden_size
    rotary_tables = 2 * HALF * tokens * spec.attention.rotary.dim // 2  # cos and sin of half the channels
    memory = Lifetimes(shared=rotary_tables, grad=grad)

    _norm(memory, "normed", tokens, spec.hidden_size, kernels)
    _attention(memory, spec.attention, tokens, kernels)
    memory.free("normed")
    # The sum after attention: the fused norm's input, so kept; the eager norm keeps its fp32 copy instead.
    (memory.keep if kernels == "fused" else memory.new)(residual=stream)
    memory.free("attention_out")

    _norm(memory, "normed", tokens, spec.hidden_size, kernels, kept=_feed_forward_keeps_input(spec.feed_forward))
    _feed_forward(memory, spec.feed_forward, tokens)
    memory.free("normed")
    memory.new(layer_out=stream)

    return LayerMemory(
        weights=HALF * analytic.parameters(spec).total + SINGLE * analytic.router_correction_bias(spec),
        boundary=stream,
        saved=memory.kept_at_peak,
        transients=memory.peak - memory.kept_at_peak,
    )


def _norm(
    memory: Lifetimes, out: str, tokens: int, width: int, kernels: Kernels, *, kept: bool = True, gaps: bool = False
) -> None:
    """RMSNorm of rows of `width`; `kept`: backward needs the output; `gaps`: the rows are a part of longer ones."""
    rows = tokens * width
    born = memory.keep if kept else memory.new
    if kernels == "fused":  # keeps its input, which is born elsewhere, and 1 / rms
        memory.keep(inverse_rms=SINGLE * tokens)
        if gaps:
            memory.new(without_gaps=HALF * rows)
        born(**{out: HALF * rows})
        if gaps:
            memory.free("without_gaps")
        memory.free("inverse_rms")
        return
    memory.keep(fp32=SINGLE * rows)
    memory.new(square=SINGLE * rows)
    memory.new(mean=SINGLE * tokens)
    memory.free("square")
    memory.new(mean_plus_eps=SINGLE * tokens)
    memory.free("mean")
    memory.keep(inverse_rms=SINGLE * tokens)
    memory.free("mean_plus_eps")
    memory.new(scaled=SINGLE * rows)
    memory.keep(rounded=HALF * rows)
    memory.free("scaled")
    born(**{out: HALF * rows})
    memory.free("rounded", "fp32", "inverse_rms")


# --- Attention -------------------------------------------------------------------------------------------------


def _attention(memory: Lifetimes, spec: AttentionSpec, tokens: int, kernels: Kernels) -> None:
    """From the normed input to `attention_out`."""
    if isinstance(spec, GroupedQueryAttentionSpec):
        heads_per_group = spec.num_attention_heads // spec.num_key_value_heads
        names = _grouped_projections(memory, spec, tokens, repeated=kernels == "eager" and heads_per_group > 1)
        query_channels, value_channels = spec.head_dim, spec.head_dim
    else:
        heads_per_group = 1
        names = _latent_projections(memory, spec, tokens, kernels)
        query_channels, value_channels = spec.qk_nope_head_dim + spec.qk_rope_head_dim, spec.v_head_dim
    heads = spec.num_attention_heads
    if kernels == "fused":
        names += _fused_core(memory, tokens, heads, query_channels, value_channels)
    else:
        names += _eager_core(memory, tokens, heads, query_channels, value_channels, heads_per_group)
    memory.new(attention_out=HALF * tokens * spec.hidden_size)
    memory.free(*names)


def _rotate(memory: Lifetimes, out: str, channels: int, *, kept: bool) -> None:
    """Rotary embedding of `channels` numbers: two halves, each a sum of two products with the angles, joined."""
    half = HALF * channels // 2
    for member in ("first", "second"):
        memory.new(by_cos=half)
        memory.new(by_sin=half)
        memory.new(**{member: half})
        memory.free("by_cos", "by_sin")
    (memory.keep if kept else memory.new)(**{out: 2 * half})
    memory.free("first", "second")


def _grouped_projections(
    memory: Lifetimes, spec: GroupedQueryAttentionSpec, tokens: int, *, repeated: bool
) -> tuple[str, ...]:
    """Query, key and value; the core keeps them, or, where keys and values are `repeated`, their copies."""
    for name, heads in (("query", spec.num_attention_heads), ("key", spec.num_key_value_heads)):
        channels = tokens * heads * spec.head_dim
        memory.new(projected=HALF * channels)
        _rotate(memory, name, channels, kept=name == "query" or not repeated)
        memory.free("projected")
    (memory.new if repeated else memory.keep)(value=HALF * tokens * spec.num_key_value_heads * spec.head_dim)
    return "query", "key", "value"


def _latent_projections(
    memory: Lifetimes, spec: MultiHeadLatentAttentionSpec, tokens: int, kernels: Kernels
) -> tuple[str, ...]:
    """Query and key, and the expansion of the latent that holds the value beside the key's own channels."""
    heads, rope = spec.num_attention_heads, spec.qk_rope_head_dim
    query_row = heads * (spec.qk_nope_head_dim + rope)
    latent = memory.keep if kernels == "fused" else memory.new  # the fused norm keeps its input, the eager one a copy

    if spec.q_lora_rank is None:
        memory.new(projected=HALF * tokens * query_row)
    else:
        latent(query_latent=HALF * tokens * spec.q_lora_rank)
        _norm(memory, "normed_latent", tokens, spec.q_lora_rank, kernels)
        memory.free("query_latent")
        memory.new(projected=HALF * tokens * query_row)
        memory.free("normed_latent")
    _rotate(memory, "rotated", tokens * heads * rope, kept=False)
    memory.keep(query=HALF * tokens * query_row)
    memory.free("rotated", "projected")

    latent(latent=HALF * tokens * (spec.kv_lora_rank + rope))
    _norm(memory, "normed_latent", tokens, spec.kv_lora_rank, kernels, gaps=tokens > 1)
    memory.keep(expanded=HALF * tokens * heads * (spec.qk_nope_head_dim + spec.v_head_dim))
    memory.free("normed_latent")
    _rotate(memory, "rotated", tokens * rope, kept=False)
    memory.keep(key=HALF * tokens * query_row)
    memory.free("rotated", "latent")
    return "query", "key", "expanded"


def _fused_core(
    memory: Lifetimes, tokens: int, heads: int, query_channels: int, value_channels: int
) -> tuple[str, ...]:
    """Flash attention, or the memory-efficient kernel for unequal head sizes: the output and a log-sum-exp per row."""
    if query_channels == value_channels:
        logsumexp, state = SINGLE * heads * tokens, FLASH_RANDOM_STATE
    else:
        padded = -(-tokens // EFFICIENT_ROW_BLOCK) * EFFICIENT_ROW_BLOCK
        logsumexp, state = (SINGLE * heads * padded if memory.grad else 0), EFFICIENT_RANDOM_STATE
    memory.keep(attended=HALF * tokens * heads * value_channels, logsumexp=logsumexp, state=state)
    memory.free("logsumexp", "state")
    return ("attended",)


def _eager_core(
    memory: Lifetimes, tokens: int, heads: int, query_channels: int, value_channels: int, heads_per_group: int
) -> tuple[str, ...]:
    """Scores, mask and probabilities in memory, each T x T in every head."""
    square = tokens * tokens
    if heads_per_group > 1:
        memory.keep(repeated_key=HALF * tokens * heads * query_channels)
        memory.keep(repeated_value=HALF * tokens * heads * value_channels)
    memory.new(product=HALF * heads * square)
    memory.new(scores=HALF * heads * square)
    memory.free("product")
    memory.new(ones=BOOL * square)
    memory.keep(future=BOOL * square)
    memory.free("ones")
    memory.new(masked_scores=HALF * heads * square)
    memory.free("scores")
    memory.new(fp32_scores=SINGLE * heads * square)
    memory.keep(fp32_probabilities=SINGLE * heads * square)
    memory.free("fp32_scores")
    memory.keep(probabilities=HALF * heads * square)
    memory.free("fp32_probabilities")
    # Heads come one after the other; the projection reads a token's heads together, and keeps that copy.
    copied = heads > 1 and tokens > 1
    (memory.new if copied else memory.keep)(attended_by_head=HALF * tokens * heads * value_channels)
    memory.free("probabilities", "masked_scores", "future")
    if heads_per_group > 1:
        memory.free("repeated_key", "repeated_value")
    if not copied:
        return ("attended_by_head",)
    memory.keep(attended=HALF * tokens * heads * value_channels)
    return "attended_by_head", "attended"


# --- Feed-forward ----------------------------------------------------------------------------------------------


def _feed_forward(memory: Lifetimes, spec: FeedForwardSpec, tokens: int) -> None:
    """From the normed input to `feed_forward_out`, which stays until the layer's output is there."""
    if isinstance(spec, GatedMLPSpec):
        _gated_mlp(memory, spec, tokens, "feed_forward_out")
    else:
        _mixture_of_experts(memory, spec, tokens)


def _gated_mlp(memory: Lifetimes, spec: GatedMLPSpec, tokens: int, out: str) -> None:
    """gate, activation, up, their product, down."""
    hidden = HALF * tokens * spec.intermediate_size
    memory.keep(gate=hidden)
    memory.keep(activated=hidden)
    memory.free("gate")
    memory.keep(up=hidden)
    memory.keep(product=hidden)
    memory.free("activated", "up")
    memory.new(**{out: HALF * tokens * spec.hidden_size})
    memory.free("product")


def _mixture_of_experts(memory: Lifetimes, spec: MixtureOfExpertsSpec, tokens: int) -> None:
    """Router, routed experts on T K rows, shared experts, their sum."""
    stream = HALF * tokens * spec.router.hidden_size
    _router(memory, spec.router, tokens)
    _routed_experts(memory, spec, tokens)
    memory.free("routing_weights", "chosen")
    if spec.shared_experts is None:
        return
    _gated_mlp(memory, spec.shared_experts, tokens, "shared_out")
    memory.new(sum=stream)
    memory.free("shared_out", "feed_forward_out")
    memory.rename("sum", "feed_forward_out")


def _router(memory: Lifetimes, spec: RouterSpec, tokens: int) -> None:
    """fp32 scores of every expert, the choice, and the chosen experts' weights."""
    scores, chosen = tokens * spec.num_experts, tokens * spec.top_k
    memory.keep(fp32_input=SINGLE * tokens * spec.hidden_size)
    memory.keep(fp32_weight=SINGLE * spec.num_experts * spec.hidden_size)
    memory.new(logits=SINGLE * scores)
    memory.free("fp32_input", "fp32_weight")
    memory.keep(scores=SINGLE * scores)
    memory.free("logits")

    choice: list[str] = []
    if spec.correction_bias:
        memory.new(corrected=SINGLE * scores)
        choice.append("corrected")
    if spec.n_group > 1:
        groups, kept_groups = tokens * spec.n_group, tokens * spec.topk_group
        memory.new(best_two=SINGLE * 2 * groups, best_two_indices=LONG * 2 * groups)
        memory.free("best_two_indices")
        memory.new(rank=SINGLE * groups)
        memory.free("best_two")
        memory.new(best_ranks=SINGLE * kept_groups, eligible=LONG * kept_groups)
        memory.free("best_ranks")
        memory.new(all_groups=BOOL * groups)
        memory.new(excluded=BOOL * groups)
        memory.free("all_groups")
        memory.new(masked=SINGLE * scores)
        choice += ["rank", "eligible", "excluded", "masked"]
    memory.born(passing={"best": SINGLE * chosen}, kept={"chosen": LONG * chosen})
    memory.free("best", *choice)

    # Gathered scores are kept by the division that normalises them; scaling keeps nothing.
    if spec.norm_topk_prob:
        memory.keep(gathered=SINGLE * chosen)
        memory.new(sum=SINGLE * tokens)
        memory.keep(sum_plus_eps=SINGLE * tokens)
        memory.free("sum")
        memory.new(normalised=SINGLE * chosen)
        memory.free("gathered", "sum_plus_eps")
        memory.new(routing_weights=SINGLE * chosen)
        memory.free("normalised", "scores")
    else:
        memory.new(gathered=SINGLE * chosen)
        memory.new(routing_weights=SINGLE * chosen)
        memory.free("gathered", "scores")


def _routed_experts(memory: Lifetimes, spec: MixtureOfExpertsSpec, tokens: int) -> None:
    """Rows sorted by expert, two grouped products with the activation between, and the weighted sum per token."""
    rows, experts = tokens * spec.router.top_k, spec.router.num_experts
    width, hidden = HALF * rows * spec.expert.hidden_size, HALF * rows * spec.expert.intermediate_size
    memory.born(passing={"sorted_experts": LONG * rows}, kept={"order": LONG * rows})
    memory.new(all_experts=LONG * experts)
    memory.keep(ends=INT * experts)
    memory.keep(token=LONG * rows)
    memory.keep(rows=width)
    memory.keep(gate_up=2 * hidden)
    memory.keep(activated=hidden)
    memory.keep(product=hidden)
    memory.free("rows", "activated")
    memory.keep(down=width)
    memory.free("product")
    memory.new(sorted_weights=SINGLE * rows)
    memory.keep(half_weights=HALF * rows)
    memory.free("sorted_weights")
    memory.new(weighted=width)
    memory.free("down", "half_weights")
    memory.new(feed_forward_out=HALF * tokens * spec.expert.hidden_size)
    memory.free("weighted", "gate_up", "token", "ends", "all_experts", "sorted_experts", "order")


def _feed_forward_keeps_input(spec: FeedForwardSpec) -> bool:
    """Any linear layer keeps its input; a router keeps an fp32 copy, and a gather of rows their indices."""
    return isinstance(spec, GatedMLPSpec) or spec.shared_experts is not None
