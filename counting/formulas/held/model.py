"""Bytes that layers, head and loss hold for backward, of the blocks that they are made of."""

from counting.formulas.held.attention import attention_held
from counting.formulas.held.core import fused_core_held
from counting.formulas.held.feed_forward import feed_forward_held
from counting.formulas.held.forward_pass import (
    BFLOAT16,
    FP32,
    INT64,
    ForwardPass,
    forward_pass,
    norm_held,
    stream_norm_held,
)
from counting.formulas.parameters import number_of_stream_norms, parameters, router_correction_bias
from counting.formulas.per_op import kept_choice_of_keys, kept_index_score_bytes, kept_outputs
from counting.setup import Setup
from torch_models.spec import (
    LayerSpec,
    ModelSpec,
)


def weight_bytes(spec: LayerSpec) -> int:
    """Return bytes of a layer's weights and the factor of its output in 16 bits, and of its correction bias in fp32."""
    return BFLOAT16 * (parameters(spec).total + spec.output_scale) + FP32 * router_correction_bias(spec)


def boundary_bytes(spec: LayerSpec, tokens: int) -> int:
    """Return bytes of a layer's input in 16 bits, T D numbers.

    Full recompute keeps nothing else of a layer (Chen et al. 2016, arXiv 1604.06174).
    """
    return BFLOAT16 * tokens * spec.hidden_size


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
    norm = stream_norm_held(spec, run.tokens, run)
    blocks = attention_held(spec.attention, run) + feed_forward_held(spec.feed_forward, run)
    if spec.parallel_mlp is not None:
        blocks += feed_forward_held(spec.parallel_mlp, run) - shared_by_branches(stream, run)
    return blocks + number_of_stream_norms(spec) * norm


def shared_by_branches(stream: int, run: ForwardPass) -> int:
    """Return bytes that three norms hold together, but each is counted with: the input of MLP, experts and router."""
    return 2 * stream if run.norms_hold_input else 0


def per_op_held(spec: LayerSpec, run: ForwardPass, *, predicts: bool = False) -> int:
    """Return bytes that recomputation by operation holds beside the layer's input.

    - outputs: those of products and of the attention core, see `kept_outputs`;
    - core: with fused kernels, the log-sum-exps and the random state; with eager ones, the scores before the softmax;
    - chosen: what topk returns to an indexer; index_scores: with eager kernels, its scores, which are batched products.
    """
    attention, batch = spec.attention, run.micro_batch
    chosen = run.tokens * kept_choice_of_keys(spec, batch.length)
    index_scores = run.tokens * kept_index_score_bytes(spec, batch.length) if run.kernels == "eager" else 0
    scores = run.width * run.tokens * attention.num_attention_heads * batch.length
    core = scores if run.kernels == "eager" else fused_core_held(attention, batch)
    return kept_outputs(spec, run.tokens, run.width, predicts=predicts) + core + chosen + index_scores


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
    final_norm = stream_norm_held(spec, run.tokens, run)
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
