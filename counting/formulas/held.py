"""What a forward pass holds for backward, in closed form: bytes of every tensor that outlives the pass, block by block.

A product's backward needs both its factors, each for the other's gradient; an activation function's its input or its
output; sums, scalings and moves of numbers need nothing. So each block holds the inputs of its products and little
else. The terms that a GPT block shares with these are those of Korthikanti et al. 2022 (arXiv 2205.05198, §4.1):
inputs of norms, of the projections and of the activation function, queries, keys, values and probabilities.

A function of a block counts the block's input if the block holds it, never its output: that is the next block's input.
A tensor that two operations hold is one tensor and counts once. Torch-free, from the spec alone, for one sequence and
the kernels that torch runs on CUDA; nothing here runs anything, operation by operation or otherwise.

Legend: T tokens, w bytes of an activation (2 or 4), D hidden_size, F intermediate_size, V vocab_size, E experts,
K experts per token, H query heads, G key/value heads, C channels of a head, R kv_lora_rank.
"""

from functools import singledispatch
from typing import NamedTuple

from counting.formulas.parameters import parameters, router_correction_bias
from counting.setup import Setup
from torch_models.spec import (
    AttentionSpec,
    ClampedMLPSpec,
    FeedForwardSpec,
    GatedMLPSpec,
    GroupedQueryAttentionSpec,
    Kernels,
    LayerSpec,
    MixtureOfExpertsSpec,
    ModelSpec,
    MultiHeadLatentAttentionSpec,
    Recompute,
    RouterSpec,
)

BFLOAT16 = 2  # bytes of each of these formats
FP32 = 4
INT64 = 8
INT32 = 4

FLASH_STATE_BYTES = 24  # bytes: seed and offset of a dropout of 0, which torch's flash attention returns and keeps
EFFICIENT_STATE_BYTES = 16  # the same of torch's memory-efficient attention
EFFICIENT_ROWS_MULTIPLE = 32  # which rounds its rows of log-sum-exp up to a multiple of this


class ForwardPass(NamedTuple):
    """What the terms depend on beside the spec."""

    tokens: int  # T, of one sequence
    width: int  # w
    kernels: Kernels
    recompute: Recompute

    @property
    def norms_hold_input(self) -> bool:
        """Whether a norm's backward reads its very input: an eager one reads a copy in fp32, if that is another."""
        return self.kernels == "fused" or self.width == FP32


def forward_pass(setup: Setup) -> ForwardPass:
    """Of a training step; `setup` is resolved."""
    return ForwardPass(setup.tokens, setup.precision_recipe.activation_bytes, setup.kernels, setup.recompute)


def weight_bytes(spec: LayerSpec) -> int:
    """A layer's weights in 16 bits, its correction bias in fp32."""
    return BFLOAT16 * parameters(spec).total + FP32 * router_correction_bias(spec)


def boundary_bytes(spec: LayerSpec, tokens: int) -> int:
    """A layer's input in 16 bits: T D numbers, all that full recompute keeps of it (Chen et al. 2016, 1604.06174)."""
    return BFLOAT16 * tokens * spec.hidden_size


# --- Norms -----------------------------------------------------------------------------------------------------


def norm_held(rows: int, channels: int, run: ForwardPass, *, unit_offset: bool = False) -> int:
    """RMSNorm of `rows` rows of `channels` each.

    - source: the input, or its copy in fp32, for the gradients of 1 / rms and of the product with it;
    - inverse_rms: 1 / rms of each row, in fp32, for the gradient of the input;
    - normalised: eager only, the rows that the weight multiplies, for the weight's gradient, in fp32 where the weight
      has a `unit_offset`; a fused kernel computes them again;
    - factor: 1 + weight where that is a tensor of its own, for the gradient of the rows.
    """
    source = (run.width if run.norms_hold_input else FP32) * rows * channels
    inverse_rms = FP32 * rows
    if run.kernels == "fused":
        factor = run.width * channels if unit_offset else 0
        return source + inverse_rms + factor
    normalised = (FP32 if unit_offset else run.width) * rows * channels
    factor = FP32 * channels if unit_offset else 0
    return source + inverse_rms + normalised + factor


# --- Attention -------------------------------------------------------------------------------------------------


@singledispatch
def attention_held(spec: AttentionSpec, run: ForwardPass) -> int:
    """Attention, its input included; under selective recompute the core holds its inputs and output alone (§5)."""
    raise AssertionError(f"no formula of what {type(spec).__name__} holds")


@attention_held.register
def _(spec: GroupedQueryAttentionSpec, run: ForwardPass) -> int:
    """Projections, norms of queries and keys, rotation, core, output projection; biases and rotation hold nothing.

    - x: the input of the three projections, for their weights' gradients;
    - norms: those of queries and keys, of each head or of all heads of a token together; rotation makes new tensors,
      so what it rotates is not held but as a norm's input;
    - query, key, value: the factors of the core's two products. Eager products of grouped heads hold keys and values
      repeated for each query head;
    - core: fused, the log-sum-exp of each row of scores, from which backward makes the scores again, and the random
      state (Dao 2023, arXiv 2307.08691, §3.1); eager, see `_eager_core_held`;
    - attended: the input of the output projection, for its weight's gradient; a fused core's backward reads it too.
    """
    heads, key_heads, channels = spec.num_attention_heads, spec.num_key_value_heads, spec.head_dim
    x = run.width * run.tokens * spec.hidden_size
    norms = 0
    if spec.query_key_norm == "head":
        norms = sum(norm_held(run.tokens * each, channels, run) for each in (heads, key_heads))
    elif spec.query_key_norm == "width":
        norms = sum(norm_held(run.tokens, each * channels, run) for each in (heads, key_heads))
    core, held_heads = 0, key_heads
    if run.recompute != "selective" and run.kernels == "eager":
        held_heads = heads
        core = _eager_core_held(heads, run, softcap=spec.logit_softcap is not None, sinks=spec.sinks)
    elif run.recompute != "selective":
        ours = spec.window is not None or spec.logit_softcap is not None or spec.sinks
        core = FP32 * heads * run.tokens + (0 if ours else FLASH_STATE_BYTES)  # log-sum-exp of each row of scores
    query = attended = run.width * run.tokens * heads * channels
    key = value = run.width * run.tokens * held_heads * channels
    return x + norms + query + key + value + core + attended


@attention_held.register
def _(spec: MultiHeadLatentAttentionSpec, run: ForwardPass) -> int:
    """Projections to latents, their norms, expansion to heads, rotation, core, output projection.

    - x: the input of the projections to the latents, for their weights' gradients;
    - query_latent: its norm, and the normed latent that is expanded; none where queries are projected directly;
    - latent: the same of keys and values. A norm that holds its input holds the rotated channels that all heads share
      too, before their rotation: both are parts of one tensor;
    - query, key: factors of the scores, each joined anew from channels of its own and rotated ones;
    - expanded: the values, a part of one tensor with the keys' own channels before these were joined;
    - core, attended: as of grouped-query attention.
    """
    heads, tokens = spec.num_attention_heads, run.tokens
    x = run.width * tokens * spec.hidden_size
    query_latent = 0
    if spec.q_lora_rank is not None:
        query_latent = norm_held(tokens, spec.q_lora_rank, run) + run.width * tokens * spec.q_lora_rank
    shared_channels = run.width * tokens * spec.qk_rope_head_dim if run.norms_hold_input else 0
    latent = norm_held(tokens, spec.kv_lora_rank, run) + shared_channels + run.width * tokens * spec.kv_lora_rank
    query = key = run.width * tokens * heads * spec.qk_head_dim
    expanded = run.width * tokens * heads * (spec.qk_nope_head_dim + spec.v_head_dim)
    attended = run.width * tokens * heads * spec.v_head_dim
    core = 0
    if run.recompute != "selective" and run.kernels == "eager":
        core = _eager_core_held(heads, run)
    elif run.recompute != "selective" and spec.qk_head_dim == spec.v_head_dim:
        core = FP32 * heads * tokens + FLASH_STATE_BYTES
    elif run.recompute != "selective":  # flash attention takes values as wide as keys alone
        rows = -(-tokens // EFFICIENT_ROWS_MULTIPLE) * EFFICIENT_ROWS_MULTIPLE
        core = FP32 * heads * rows + EFFICIENT_STATE_BYTES
    return x + query_latent + latent + query + key + expanded + core + attended


def _eager_core_held(heads: int, run: ForwardPass, *, softcap: bool = False, sinks: bool = False) -> int:
    """Squares of all pairs, of each head but the mask; queries, keys, values and the result are counted elsewhere.

    - mask: which positions are hidden, one byte a pair, to give them no gradient;
    - capped: where scores are soft-capped, tanh's output, for its own gradient;
    - probabilities: the softmax's output, in fp32, for its own gradient; a sink is one more column;
    - rounded: the probabilities as the product with the values reads them, if that is in another format.
    """
    square = run.tokens**2
    mask = square
    capped = run.width * heads * square if softcap else 0
    probabilities = FP32 * heads * (square + sinks * run.tokens)
    rounded = 0 if run.width == FP32 else run.width * heads * square
    return mask + capped + probabilities + rounded


# --- Feed-forward ----------------------------------------------------------------------------------------------


@singledispatch
def feed_forward_held(spec: FeedForwardSpec, run: ForwardPass) -> int:
    """The feed-forward block, its input included where it holds that."""
    raise AssertionError(f"no formula of what {type(spec).__name__} holds")


@feed_forward_held.register
def _(spec: GatedMLPSpec, run: ForwardPass) -> int:
    """down(activation(gate(x)) * up(x)): T (D + 4 F) numbers; biases hold nothing.

    - x: the input of gate and up, for their weights' gradients;
    - gate: the activation function's input;
    - activated, up: the factors of their product;
    - hidden: that product, the input of down, for its weight's gradient.
    """
    x = run.width * run.tokens * spec.hidden_size
    gate = activated = up = hidden = run.width * run.tokens * spec.intermediate_size
    return x + gate + activated + up + hidden


@feed_forward_held.register
def _(spec: MixtureOfExpertsSpec, run: ForwardPass) -> int:
    """Router, routed experts, and shared experts as one MLP.

    Routed experts read copies of the input's rows. In 16 bits the router reads a copy in fp32 as well; in fp32 it
    reads the input itself, which shared experts hold too.
    """
    held = router_held(spec.router, run) + routed_experts_held(spec, run)
    if spec.shared_experts is None:
        return held
    same_input = FP32 * run.tokens * spec.router.hidden_size if run.width == FP32 else 0
    return held + feed_forward_held(spec.shared_experts, run) - same_input


def router_held(spec: RouterSpec, run: ForwardPass) -> int:
    """The router, in fp32 whatever the activations are in; how it chooses experts holds nothing but the choice.

    - x: its input in fp32, for the weight's gradient;
    - weight: a copy in fp32, for the input's gradient; where weights are in fp32, the weight itself;
    - scores: the output of sigmoid or softmax over E experts, for its own gradient;
    - choice: the indices of K experts, to give the chosen scores their gradients;
    - normalisation: where the K weights are divided by their sum, these and the sum.
    """
    x = FP32 * run.tokens * spec.hidden_size
    weight = 0 if run.width == FP32 else FP32 * spec.num_experts * spec.hidden_size
    scores = FP32 * run.tokens * spec.num_experts
    choice = INT64 * run.tokens * spec.top_k
    normalisation = FP32 * run.tokens * (spec.top_k + 1) if spec.norm_topk_prob else 0
    return x + weight + scores + choice + normalisation


def routed_experts_held(spec: MixtureOfExpertsSpec, run: ForwardPass) -> int:
    """T K rows, one for each expert that a token visits, sorted by expert.

    - gathered: the tokens' rows, the input of the first product, for its weight's gradient;
    - hidden: what `expert_hidden_numbers` says of each row;
    - outputs: the experts' outputs, for the gradients of the weights that multiply them;
    - weights: those, in the format of the rows, for the gradients of the outputs;
    - token, order: which token a row is of, to bring gradients back to it, and where its weight stood before sorting;
    - experts: where each expert has biases, which expert's a row is given;
    - ends: where each expert's rows end, which grouped products read again.
    """
    rows = run.tokens * spec.router.top_k
    gathered = outputs = run.width * rows * spec.router.hidden_size
    hidden = run.width * rows * expert_hidden_numbers(spec.expert)
    weights = run.width * rows
    token = order = INT64 * rows
    experts = INT64 * rows if isinstance(spec.expert, ClampedMLPSpec) else 0
    ends = INT32 * spec.router.num_experts
    return gathered + hidden + outputs + weights + token + order + experts + ends


@singledispatch
def expert_hidden_numbers(spec: GatedMLPSpec | ClampedMLPSpec) -> int:
    """How many numbers a routed expert holds of one row between its two products, the second one's input included."""
    raise AssertionError(f"no formula of what an expert of {type(spec).__name__} holds")


@expert_hidden_numbers.register
def _(spec: GatedMLPSpec) -> int:
    """4 F: gate and up, which are one tensor, the activated gate, and its product with up."""
    gate_and_up, activated, product = 2 * spec.intermediate_size, spec.intermediate_size, spec.intermediate_size
    return gate_and_up + activated + product


@expert_hidden_numbers.register
def _(spec: ClampedMLPSpec) -> int:
    """7 F for (up + 1) * (gate * sigmoid(alpha gate)), gate and up clamped.

    Gate and up before clamping, which are one tensor, to see which were clamped; the clamped gate, its sigmoid (which
    is its own gradient's input), their product, up + 1, and the product of these two.
    """
    gate_and_up = 2 * spec.intermediate_size
    gate = sigmoid = gated = up_plus_one = product = spec.intermediate_size
    return gate_and_up + gate + sigmoid + gated + up_plus_one + product


# --- Layers and what stands outside them -----------------------------------------------------------------------


def layer_held(spec: LayerSpec, run: ForwardPass) -> int:
    """One decoder layer: its input and all that its blocks hold; residual sums hold nothing.

    Bytes held after the layer beyond those before it: its output has come, its input has gone if no block holds it.
    Both are T D numbers, and what a layer adds is what its blocks hold. Full recompute holds the input alone.
    """
    if run.recompute == "full":
        return run.width * run.tokens * spec.hidden_size
    norms_around_a_block = 2 if spec.norm_placement == "around" else 1
    norm = norm_held(run.tokens, spec.hidden_size, run, unit_offset=spec.norm_unit_offset)
    blocks = attention_held(spec.attention, run) + feed_forward_held(spec.feed_forward, run)
    return blocks + 2 * norms_around_a_block * norm


def embedding_held(spec: ModelSpec, run: ForwardPass) -> int:
    """The residual stream before the first layer; its own backward needs the token ids alone, which are inputs."""
    return run.width * run.tokens * spec.hidden_size


def loss_held(spec: ModelSpec, setup: Setup) -> int:
    """Final norm, head and loss and, where it is trained, multi-token prediction; `setup` is resolved.

    Beyond what was held after the last layer, whose output stays only where the norm holds its input. At the end there
    is the loss itself, one number in fp32.
    """
    run = forward_pass(setup)
    last_output = run.width * run.tokens * spec.hidden_size
    final_norm = norm_held(run.tokens, spec.hidden_size, run, unit_offset=spec.norm_unit_offset)
    mtp_layers = spec.mtp_layers if setup.mtp else ()
    heads = (1 + len(mtp_layers)) * head_held(spec, run, setup.loss_chunk)
    return final_norm - last_output + heads + sum(mtp_layer_held(layer, run) for layer in mtp_layers) + FP32


def head_held(spec: ModelSpec, run: ForwardPass, loss_chunk: int | None) -> int:
    """The head and the cross-entropy of its logits, over V words; the logits themselves are not held.

    - hidden: the head's input, for its weight's gradient;
    - capped: where logits are soft-capped, tanh's output, for its own gradient;
    - log_probabilities: in fp32, for the gradient of the logits;
    - total_weight: of all tokens, one number in fp32 that the loss returns beside itself;
    - labelled: how many tokens have a label, which divides the loss.

    A loss in chunks holds its input alone, and makes the logits again.
    """
    hidden = run.width * run.tokens * spec.hidden_size
    labelled = INT64
    if loss_chunk is not None and loss_chunk < run.tokens:
        return hidden + labelled
    capped = 0 if spec.final_logit_softcap is None else run.width * run.tokens * spec.vocab_size
    log_probabilities = FP32 * run.tokens * spec.vocab_size
    total_weight = FP32
    return hidden + capped + log_probabilities + total_weight + labelled


def mtp_layer_held(spec: LayerSpec, run: ForwardPass) -> int:
    """One multi-token-prediction layer, without its pass through the head (DeepSeek-V3, arXiv 2412.19437, eq. 21-23).

    - token_ids, labels: each moved one token further, for the embedding's gradient and the loss's;
    - joined: norms of the next token's embedding and of the hidden state, joined to 2 D, the projection's input. The
      hidden state is the input of the head before it, and counted there;
    - layer: the decoder layer behind the projection; the norm after it.

    Full recompute holds the embedding alone of all this.
    """
    stream = run.width * run.tokens * spec.hidden_size
    token_ids = labels = INT64 * run.tokens
    if run.recompute == "full":
        embedded = stream
        return token_ids + labels + embedded
    norm = norm_held(run.tokens, spec.hidden_size, run)
    norm_of_hidden = norm - (stream if run.norms_hold_input else 0)
    joined = 2 * stream
    return token_ids + labels + norm + norm_of_hidden + joined + layer_held(spec, run) + norm
