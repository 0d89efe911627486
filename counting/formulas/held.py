"""Bytes that a forward pass holds for backward, in closed form: every tensor that stays alive after it, by block.

The backward of a product needs both factors, each for the other's gradient. The backward of an activation function
needs its input or its output. Sums, scalings and copies need nothing. A block therefore holds the inputs of its
products and little else. The terms in common with a GPT block are those of Korthikanti et al. 2022 (arXiv 2205.05198,
§4.1): inputs of norms, projections and the activation function, queries, keys, values and probabilities.

The function of a block counts the block's input if the block holds it. It never counts the output, which is the next
block's input. A tensor that two operations hold counts once. Torch-free, from spec and setup alone, for one
micro-batch and the kernels that torch runs on CUDA; no operation is run or simulated.

Legend: B sequences, S tokens of each, T = B S, w bytes of an activation (2 or 4), D hidden_size, F intermediate_size,
V vocab_size, E experts, K experts per token, H query heads, G key/value heads, C channels of a head, R kv_lora_rank.
"""

from functools import singledispatch
from typing import NamedTuple

from counting.formulas.core_held import eager_core_held, fused_core_held
from counting.formulas.parameters import parameters, router_correction_bias
from counting.formulas.per_op import kept_outputs
from counting.setup import MicroBatch, Setup
from torch_models.spec import (
    AttentionSpec,
    ClampedMLPSpec,
    FeedForwardSpec,
    GatedMLPSpec,
    GroupedQueryAttentionSpec,
    Kernels,
    LayerSpec,
    MixtureOfExpertsSpec,
    ModelRecompute,
    ModelSpec,
    MultiHeadLatentAttentionSpec,
    RouterSpec,
)

BFLOAT16 = 2  # bytes of each of these formats
FP32 = 4
INT64 = 8
INT32 = 4


class ForwardPass(NamedTuple):
    """The part of a setup that the terms depend on."""

    micro_batch: MicroBatch  # B sequences of S tokens
    width: int  # w
    kernels: Kernels
    recompute: ModelRecompute

    def of_layer(self, spec: LayerSpec) -> "ForwardPass":
        """The same, with what is recomputed of this layer."""
        return self._replace(recompute=spec.recompute_in(self.recompute))

    @property
    def tokens(self) -> int:
        """T, of all sequences."""
        return self.micro_batch.tokens

    @property
    def norms_hold_input(self) -> bool:
        """Whether a norm holds its input itself: eager norms hold an fp32 copy if activations are not in fp32."""
        return self.kernels == "fused" or self.width == FP32


def forward_pass(setup: Setup) -> ForwardPass:
    """Return the `ForwardPass` of a training step; `setup` is resolved."""
    return ForwardPass(setup.micro_batch, setup.precision_recipe.activation_bytes, setup.kernels, setup.recompute)


def weight_bytes(spec: LayerSpec) -> int:
    """Return bytes of a layer's weights in 16 bits and of its correction bias in fp32."""
    return BFLOAT16 * parameters(spec).total + FP32 * router_correction_bias(spec)


def boundary_bytes(spec: LayerSpec, tokens: int) -> int:
    """Return bytes of a layer's input in 16 bits, T D numbers.

    Full recompute keeps nothing else of a layer (Chen et al. 2016, arXiv 1604.06174).
    """
    return BFLOAT16 * tokens * spec.hidden_size


# --- Norms -----------------------------------------------------------------------------------------------------


def norm_held(rows: int, channels: int, run: ForwardPass, *, unit_offset: bool = False) -> int:
    """Return bytes that RMSNorm holds for `rows` rows of `channels` numbers each.

    - source: the input, or its fp32 copy, for the gradients of 1 / rms and of the product with 1 / rms;
    - inverse_rms: 1 / rms of each row, in fp32, for the gradient of the input;
    - normalised: eager only; the normalised rows before the weight multiplies them, for the weight's gradient, in fp32
      with `unit_offset`. A fused kernel computes them again;
    - factor: with `unit_offset`, the tensor 1 + weight, for the gradient of the rows.
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
    """Return bytes that attention holds, its input included.

    With selective recompute the core holds only its inputs and its output (Korthikanti et al. 2022, §5).
    """
    raise AssertionError(f"no formula of what {type(spec).__name__} holds")


@attention_held.register
def _(spec: GroupedQueryAttentionSpec, run: ForwardPass) -> int:
    """Projections, norms of queries and keys, rotation, core, output projection; biases and rotation hold nothing.

    - x: the input of the three projections, for their weights' gradients;
    - norms: of queries and keys, per head or over all heads of a token. Rotation creates new tensors, so queries and
      keys before rotation are held only as inputs of these norms;
    - query, key, value: the factors of the core's two products. Eager products of grouped heads hold keys and values
      repeated for each query head;
    - core: fused, the log-sum-exp of each row of scores, from which backward computes the probabilities again, and the
      random state (Dao 2023, arXiv 2307.08691, §3.1); eager, see `eager_core_held`;
    - attended: the input of the output projection, for its weight's gradient; the backward of a fused core needs it
      too.
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
        capped = spec.logit_softcap is not None
        core = eager_core_held(heads, run.micro_batch, run.width, softcap=capped, sinks=spec.sinks)
    elif run.recompute != "selective":
        core = fused_core_held(spec, run.micro_batch)
    query = attended = run.width * run.tokens * heads * channels
    key = value = run.width * run.tokens * held_heads * channels
    return x + norms + query + key + value + core + attended


@attention_held.register
def _(spec: MultiHeadLatentAttentionSpec, run: ForwardPass) -> int:
    """Projections to latents, their norms, expansion to heads, rotation, core, output projection.

    - x: the input of the projections to the latents, for their weights' gradients;
    - query_latent: the norm of the query latent, and the normed latent, the input of the expansion; 0 if queries are
      projected directly;
    - latent: the same for keys and values. A norm that holds its input also holds the rotary channels that all heads
      share, before their rotation, because both are parts of one tensor;
    - query, key: factors of the scores; each is a new tensor, joined from non-rotary and rotary channels;
    - expanded: the values, which share one tensor with the non-rotary channels of the keys; eager products over several
      sequences hold a copy of the values alone, ordered by head;
    - core, attended: as in grouped-query attention.
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
    if run.recompute != "selective" and run.kernels == "eager" and min(heads, *run.micro_batch) > 1:
        expanded = run.width * tokens * heads * spec.v_head_dim
    if run.recompute != "selective" and run.kernels == "eager":
        core = eager_core_held(heads, run.micro_batch, run.width)
    elif run.recompute != "selective":
        core = fused_core_held(spec, run.micro_batch)
    return x + query_latent + latent + query + key + expanded + core + attended


# --- Feed-forward ----------------------------------------------------------------------------------------------


@singledispatch
def feed_forward_held(spec: FeedForwardSpec, run: ForwardPass) -> int:
    """Return bytes that the feed-forward block holds, its input included if it holds it."""
    raise AssertionError(f"no formula of what {type(spec).__name__} holds")


@feed_forward_held.register
def _(spec: GatedMLPSpec, run: ForwardPass) -> int:
    """down(activation(gate(x)) * up(x)): T (D + 4 F) numbers; biases hold nothing.

    - x: the input of gate and up, for their weights' gradients;
    - gate: the input of the activation function;
    - activated, up: the factors of the elementwise product;
    - hidden: the product, which is the input of down, for its weight's gradient.
    """
    x = run.width * run.tokens * spec.hidden_size
    gate = activated = up = hidden = run.width * run.tokens * spec.intermediate_size
    return x + gate + activated + up + hidden


@feed_forward_held.register
def _(spec: MixtureOfExpertsSpec, run: ForwardPass) -> int:
    """Router, routed experts, and shared experts as one MLP.

    Routed experts hold copies of the input's rows. In 16 bits the router holds an fp32 copy of the input. In fp32 it
    holds the input itself, which shared experts hold too, so it counts once.
    """
    held = router_held(spec.router, run) + routed_experts_held(spec, run)
    if spec.shared_experts is None:
        return held
    same_input = FP32 * run.tokens * spec.router.hidden_size if run.width == FP32 else 0
    return held + feed_forward_held(spec.shared_experts, run) - same_input


def router_held(spec: RouterSpec, run: ForwardPass) -> int:
    """Return bytes that the router holds; it computes in fp32, whatever the format of the activations.

    - x: its input in fp32, for the weight's gradient;
    - weight: an fp32 copy, for the input's gradient; 0 if weights are in fp32, because the weight itself is held;
    - scores: the output of sigmoid or softmax over E experts, for its gradient;
    - choice: the indices of K experts, for the gradients of their scores; the selection holds nothing else;
    - normalisation: if the K weights are divided by their sum, these weights and the sum.
    """
    x = FP32 * run.tokens * spec.hidden_size
    weight = 0 if run.width == FP32 else FP32 * spec.num_experts * spec.hidden_size
    scores = FP32 * run.tokens * spec.num_experts
    choice = INT64 * run.tokens * spec.top_k
    normalisation = FP32 * run.tokens * (spec.top_k + 1) if spec.norm_topk_prob else 0
    return x + weight + scores + choice + normalisation


def routed_experts_held(spec: MixtureOfExpertsSpec, run: ForwardPass) -> int:
    """Return bytes that routed experts hold: T K rows, one per token and chosen expert, sorted by expert.

    - gathered: the tokens' rows, the input of the first product, for its weight's gradient;
    - hidden: `expert_hidden_numbers` numbers for each row;
    - outputs: the experts' outputs, for the gradients of the router weights that multiply them;
    - weights: these router weights, in the format of the rows, for the gradients of the outputs;
    - token, order: the index of each row's token, and of its weight before sorting, to route gradients back;
    - experts: if experts have biases, the index of each row's expert, for the gradients of the biases;
    - ends: the end of each expert's rows, an input of the grouped products in backward.
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
    """Return how many numbers an expert holds per row between its two products, the second's input included."""
    raise AssertionError(f"no formula of what an expert of {type(spec).__name__} holds")


@expert_hidden_numbers.register
def _(spec: GatedMLPSpec) -> int:
    """4 F: gate and up, which share one tensor, the activated gate, and the product of activated gate and up."""
    gate_and_up, activated, product = 2 * spec.intermediate_size, spec.intermediate_size, spec.intermediate_size
    return gate_and_up + activated + product


@expert_hidden_numbers.register
def _(spec: ClampedMLPSpec) -> int:
    """7 F for (up + 1) * (gate * sigmoid(alpha gate)), gate and up clamped.

    Gate and up before clamping, which share one tensor, to find the clamped numbers; the clamped gate; the output of
    sigmoid, for its gradient; the product of clamped gate and sigmoid; up + 1; and the product of the last two.
    """
    gate_and_up = 2 * spec.intermediate_size
    gate = sigmoid = gated = up_plus_one = product = spec.intermediate_size
    return gate_and_up + gate + sigmoid + gated + up_plus_one + product


# --- Layers and what stands outside them -----------------------------------------------------------------------


def layer_held(spec: LayerSpec, run: ForwardPass) -> int:
    """Return bytes held after one decoder layer minus bytes held before it.

    The layer's output is new, and its input is freed if no block holds it. Both are T D numbers, so the difference is
    what its blocks hold. Residual sums hold nothing. Full recompute holds only the input; by operation, see
    `per_op_held`.
    """
    run = run.of_layer(spec)
    stream = run.width * run.tokens * spec.hidden_size
    if run.recompute == "full":
        return stream
    if run.recompute == "per_op":
        return stream + per_op_held(spec, run)
    norms_around_a_block = 2 if spec.norm_placement == "around" else 1
    norm = norm_held(run.tokens, spec.hidden_size, run, unit_offset=spec.norm_unit_offset)
    blocks = attention_held(spec.attention, run) + feed_forward_held(spec.feed_forward, run)
    return blocks + 2 * norms_around_a_block * norm


def per_op_held(spec: LayerSpec, run: ForwardPass, *, predicts: bool = False) -> int:
    """Return bytes that recomputation by operation holds beside the layer's input.

    - outputs: those of products and of the attention core, see `kept_outputs`;
    - core: with fused kernels, the log-sum-exps and the random state; with eager ones, the scores before the softmax.
    """
    attention, batch = spec.attention, run.micro_batch
    scores = run.width * run.tokens * attention.num_attention_heads * batch.length
    core = scores if run.kernels == "eager" else fused_core_held(attention, batch)
    return kept_outputs(spec, run.tokens, run.width, predicts=predicts) + core


def embedding_held(spec: ModelSpec, run: ForwardPass) -> int:
    """Return bytes of the residual stream before the first layer.

    The embedding's backward needs only the token ids, which are counted as inputs.
    """
    return run.width * run.tokens * spec.hidden_size


def loss_held(spec: ModelSpec, setup: Setup) -> int:
    """Return bytes that final norm, head, loss and, if trained, multi-token prediction add to those of the layers.

    `setup` is resolved. The last layer's output stays only if the norm holds its input. The loss itself is one number
    in fp32.
    """
    run = forward_pass(setup)
    last_output = run.width * run.tokens * spec.hidden_size
    final_norm = norm_held(run.tokens, spec.hidden_size, run, unit_offset=spec.norm_unit_offset)
    mtp_layers = spec.mtp_layers if setup.mtp else ()
    heads = (1 + len(mtp_layers)) * head_held(spec, run, setup.loss_chunk)
    return final_norm - last_output + heads + sum(mtp_layer_held(layer, run) for layer in mtp_layers) + FP32


def head_held(spec: ModelSpec, run: ForwardPass, loss_chunk: int | None) -> int:
    """Return bytes that the head and the cross-entropy over V words hold; the logits themselves are not held.

    - hidden: the head's input, for its weight's gradient;
    - capped: with soft-capped logits, the output of tanh, for its gradient;
    - log_probabilities: in fp32, for the gradient of the logits;
    - total_weight: the sum of the token weights, one fp32 number that the cross-entropy returns as well;
    - labelled: the number of tokens with a label, by which the loss is divided.

    A loss in chunks holds only its input and `labelled`; backward computes the logits again.
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
    """Return bytes that one multi-token-prediction layer holds, without its pass through the head.

    Source: DeepSeek-V3, arXiv 2412.19437, eq. 21-23.

    - token_ids, labels: shifted by one token, for the gradients of the embedding and of the loss;
    - norm, norm_of_hidden: the norms of the next token's embedding and of the hidden state. The hidden state itself is
      the input of the preceding head and counted there;
    - joined: both normed states, 2 D numbers per token, the projection's input;
    - the decoder layer after the projection, and the norm after it.

    Full recompute holds token ids, labels and the embedded tokens only; by operation, outputs of products besides.
    """
    run = run.of_layer(spec)
    stream = run.width * run.tokens * spec.hidden_size
    token_ids = labels = INT64 * run.tokens
    if run.recompute == "full":
        embedded = stream
        return token_ids + labels + embedded
    if run.recompute == "per_op":
        embedded = stream
        return token_ids + labels + embedded + per_op_held(spec, run, predicts=True)
    norm = norm_held(run.tokens, spec.hidden_size, run)
    norm_of_hidden = norm - (stream if run.norms_hold_input else 0)
    joined = 2 * stream
    return token_ids + labels + norm + norm_of_hidden + joined + layer_held(spec, run) + norm
