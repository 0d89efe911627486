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

from functools import partial

from counting import analytic
from counting.analytic_memory_attention import attention_memory, norm_memory
from counting.counts import LayerMemory
from counting.lifetimes import BOOL, HALF, INT, LONG, SINGLE, Lifetimes
from torch_models.spec import (
    ClampedMLPSpec,
    FeedForwardSpec,
    GatedMLPSpec,
    Kernels,
    LayerSpec,
    MixtureOfExpertsSpec,
    RouterSpec,
)


def layer_memory(spec: LayerSpec, sequence_length: int, kernels: Kernels, *, grad: bool) -> LayerMemory:
    """Bytes alive at the worst moment of one layer's forward pass over one sequence.

    With `grad` it is the pass that rematerialisation runs, without it the first one.
    """
    tokens = sequence_length
    stream = HALF * tokens * spec.hidden_size
    rotary_tables = 2 * HALF * tokens * spec.attention.rotary.dim // 2  # cos and sin of half the channels
    memory = Lifetimes(shared=rotary_tables, grad=grad)

    fused, before, after = kernels == "fused", spec.norm_placement != "after", spec.norm_placement != "before"
    mlp_keeps = _feed_forward_keeps_input(spec.feed_forward)

    norm = partial(
        norm_memory, memory, tokens=tokens, width=spec.hidden_size, kernels=kernels, unit_offset=spec.norm_unit_offset
    )
    # A norm after a block keeps the block's output if it is fused; the eager one keeps an fp32 copy instead.
    if before:
        norm("normed")
    attention_memory(memory, spec.attention, tokens, kernels, keep_out=after and fused)
    if before:
        memory.free("normed")
    if after:  # the sum that follows keeps nothing
        norm("normed_out", kept=False)
        memory.free("attention_out")
        memory.rename("normed_out", "attention_out")
    # The sum is what the next norm keeps, or, with none before the feed-forward, what that keeps itself.
    (memory.keep if (fused if before else mlp_keeps) else memory.new)(residual=stream)
    memory.free("attention_out")

    if before:
        norm("normed", kept=mlp_keeps)
    _feed_forward(memory, spec.feed_forward, tokens, keep_out=after and fused)
    if before:
        memory.free("normed")
    if after:
        norm("normed_out", kept=False)
        memory.free("feed_forward_out")
        memory.rename("normed_out", "feed_forward_out")
    memory.new(layer_out=stream)

    return LayerMemory(
        weights=HALF * analytic.parameters(spec).total + SINGLE * analytic.router_correction_bias(spec),
        boundary=stream,
        saved=memory.kept_at_peak,
        transients=memory.peak - memory.kept_at_peak,
    )


def _feed_forward(memory: Lifetimes, spec: FeedForwardSpec, tokens: int, *, keep_out: bool) -> None:
    """From the normed input to `feed_forward_out`, which stays until the layer's output is there."""
    if isinstance(spec, GatedMLPSpec):
        _gated_mlp(memory, spec, tokens, "feed_forward_out", keep_out=keep_out)
    else:
        _mixture_of_experts(memory, spec, tokens, keep_out=keep_out)


def _gated_mlp(memory: Lifetimes, spec: GatedMLPSpec, tokens: int, out: str, *, keep_out: bool) -> None:
    """gate, activation, up, their product, down."""
    hidden = HALF * tokens * spec.intermediate_size
    memory.keep(gate=hidden)
    memory.keep(activated=hidden)
    memory.free("gate")
    memory.keep(up=hidden)
    memory.keep(product=hidden)
    memory.free("activated", "up")
    (memory.keep if keep_out else memory.new)(**{out: HALF * tokens * spec.hidden_size})
    memory.free("product")


def _mixture_of_experts(memory: Lifetimes, spec: MixtureOfExpertsSpec, tokens: int, *, keep_out: bool) -> None:
    """Router, routed experts on T K rows, shared experts, their sum."""
    stream = HALF * tokens * spec.router.hidden_size
    _router(memory, spec.router, tokens)
    _routed_experts(memory, spec, tokens, keep_out=keep_out and spec.shared_experts is None)
    memory.free("routing_weights", "chosen")
    if spec.shared_experts is None:
        return
    _gated_mlp(memory, spec.shared_experts, tokens, "shared_out", keep_out=False)
    (memory.keep if keep_out else memory.new)(sum=stream)
    memory.free("shared_out", "feed_forward_out")
    memory.rename("sum", "feed_forward_out")


def _router(memory: Lifetimes, spec: RouterSpec, tokens: int) -> None:
    """fp32 scores of every expert, the choice, and the chosen experts' weights."""
    scores, chosen = tokens * spec.num_experts, tokens * spec.top_k
    if spec.bias:
        memory.new(fp32_bias=SINGLE * spec.num_experts)
    memory.keep(fp32_input=SINGLE * tokens * spec.hidden_size)
    memory.keep(fp32_weight=SINGLE * spec.num_experts * spec.hidden_size)
    memory.new(logits=SINGLE * scores)
    memory.free("fp32_input", "fp32_weight")
    memory.keep(scores=SINGLE * scores)
    memory.free("logits")
    if spec.bias:
        memory.free("fp32_bias")

    choice: list[str] = []
    if spec.correction_bias:
        memory.new(corrected=SINGLE * scores)
        choice.append("corrected")
    if spec.n_group > 1:
        groups, kept_groups = tokens * spec.n_group, tokens * spec.topk_group
        ranked = groups * spec.group_rank_experts
        memory.new(best_in_group=SINGLE * ranked, best_in_group_indices=LONG * ranked)
        memory.free("best_in_group_indices")
        memory.new(rank=SINGLE * groups)
        memory.free("best_in_group")
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


def _routed_experts(memory: Lifetimes, spec: MixtureOfExpertsSpec, tokens: int, *, keep_out: bool) -> None:
    """Rows sorted by expert, what the experts make of them, and the weighted sum per token."""
    rows, experts = tokens * spec.router.top_k, spec.router.num_experts
    width = HALF * rows * spec.expert.hidden_size
    clamped = isinstance(spec.expert, ClampedMLPSpec)
    # The biases of clamped experts are gathered by the sorted experts, which that keeps.
    sizes = {"sorted_experts": LONG * rows, "order": LONG * rows}
    kept = {name: size for name, size in sizes.items() if clamped or name == "order"}
    memory.born(passing={name: size for name, size in sizes.items() if name not in kept}, kept=kept)
    memory.new(all_experts=LONG * experts)
    memory.keep(ends=INT * experts)
    memory.keep(token=LONG * rows)
    memory.keep(rows=width)
    (_clamped_experts if clamped else _gated_experts)(memory, rows, spec.expert.intermediate_size, width)
    memory.free("rows")
    memory.new(sorted_weights=SINGLE * rows)
    memory.keep(half_weights=HALF * rows)
    memory.free("sorted_weights")
    memory.new(weighted=width)
    memory.free("down", "half_weights")
    (memory.keep if keep_out else memory.new)(feed_forward_out=HALF * tokens * spec.expert.hidden_size)
    memory.free("weighted", "token", "ends", "all_experts", "sorted_experts", "order")


def _gated_experts(memory: Lifetimes, rows: int, intermediate_size: int, width: int) -> None:
    """Two grouped products with the activation between, to `down`."""
    hidden = HALF * rows * intermediate_size
    memory.keep(gate_up=2 * hidden)
    memory.keep(activated=hidden)
    memory.keep(product=hidden)
    memory.free("activated")
    memory.keep(down=width)
    memory.free("product", "gate_up")


def _clamped_experts(memory: Lifetimes, rows: int, intermediate_size: int, width: int) -> None:
    """Two grouped products with a gathered bias each; clamps keep their input, and a product of two its factors."""
    hidden = HALF * rows * intermediate_size
    memory.new(product=2 * hidden)
    memory.new(bias=2 * hidden)
    memory.keep(gate_up=2 * hidden)
    memory.free("product", "bias")
    memory.keep(gate=hidden)
    memory.new(up=hidden)
    memory.keep(up_plus_one=hidden)
    memory.new(scaled_gate=hidden)
    memory.keep(sigmoid=hidden)
    memory.free("scaled_gate")
    memory.keep(glu=hidden)
    memory.free("sigmoid")
    memory.keep(activated=hidden)
    memory.free("up_plus_one", "glu")
    memory.new(product=width)
    memory.new(bias=width)
    memory.keep(down=width)
    memory.free("product", "bias", "activated", "up", "gate", "gate_up")


def _feed_forward_keeps_input(spec: FeedForwardSpec) -> bool:
    """Any linear layer keeps its input; a router keeps an fp32 copy, and a gather of rows their indices."""
    return isinstance(spec, GatedMLPSpec) or spec.shared_experts is not None
