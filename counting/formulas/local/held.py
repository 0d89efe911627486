"""Bytes that a rank's forward pass holds for backward under tensor and expert parallelism, in closed form.

Under tensor parallelism a rank's part of a layer holds what a layer of its size holds on one device
(`counting.formulas.held`): each block is a smaller block, whose input is not divided. Under sequence parallelism the
norms and the residual stream have T / tp tokens. Each block holds its gathered input, T D numbers. Megatron-LM holds
the T D / tp numbers of its own positions instead and gathers them again in backward (Korthikanti et al. 2022, arXiv
2205.05198, §4.2.2): of each block's input it holds w T D (1 - 1 / tp) bytes less.

Under context parallelism a rank holds what a sequence of S / c tokens holds. Ring attention holds the queries, keys and
values of the rank alone, the merged output and its log-sum-exp in fp32: what it gathers it gathers again in backward.

Under expert parallelism a rank sends N = T K rows to the ranks that have their experts, and receives M rows.

The legend of the other letters is in `counting.formulas.held`. `setup` and `layout` are resolved everywhere.
"""

from msgspec import structs

from counting.formulas.held import (
    FP32,
    INT32,
    INT64,
    ForwardPass,
    attention_held,
    expert_hidden_numbers,
    feed_forward_held,
    forward_pass,
    norm_held,
    per_op_held,
    routed_experts_held,
    shared_by_branches,
    stream_norm_held,
)
from counting.formulas.local.shapes import Division, division_of, local_layer, local_setup
from counting.formulas.parameters import number_of_stream_norms
from counting.setup import Setup
from torch_models.layout import Layout
from torch_models.spec import (
    AttentionSpec,
    ClampedMLPSpec,
    FeedForwardSpec,
    GroupedQueryAttentionSpec,
    LayerSpec,
    MixtureOfExpertsSpec,
    ModelSpec,
)


def local_layer_held(spec: LayerSpec, setup: Setup, layout: Layout, context_rank: int = 0) -> int:
    """Return bytes held after one layer's forward pass on a rank minus bytes held before it; T are tokens of the rank.

    - blocks: attention with H / tp and G / tp heads, and the MLP with F / tp columns, over all T tokens;
    - norms: of the residual stream, over T / tp tokens with sequence parallelism.

    Full recompute holds the layer's input alone; by operation, see `_per_op_held`.

    Llama-3-8B, tp 2, T = 2,048, 16 bits, fused: inputs of the two blocks 2 x 16,777,216; queries and attended 2 x
    8,388,608; keys and values 2 x 2,097,152; log-sum-exp 131,072 and state 24; gate, activated, up and hidden 4 x
    29,360,128; inputs of the two norms 2 x 8,388,608, and 1 / rms 2 x 4,096: 188,882,968 in all.
    """
    return _layer_held(spec, forward_pass(local_setup(setup, layout.cp)), division_of(layout, context_rank))


def _layer_held(spec: LayerSpec, run: ForwardPass, division: Division) -> int:
    run, rows = run.of_layer(spec), division.stream_tokens(run.micro_batch)
    stream = run.width * rows * spec.hidden_size
    if run.recompute == "full":
        return stream
    if run.recompute == "per_op":
        return stream + _per_op_held(spec, run, division)
    part = local_layer(spec, division.tp)
    norm = stream_norm_held(spec, rows, run)
    blocks = _attention_held(part.attention, run, division) + _feed_forward_held(part.feed_forward, run, division)
    if part.parallel_mlp is not None:
        blocks += feed_forward_held(part.parallel_mlp, run) - shared_by_branches(stream, run)
    return blocks + number_of_stream_norms(spec) * norm


def _per_op_held(spec: LayerSpec, run: ForwardPass, division: Division, *, predicts: bool = False) -> int:
    """Return bytes that recomputation by operation holds of a rank's part of a layer, beside its input.

    - outputs: of the products and the core of a layer of this size, over all T tokens; the projection of multi-token
      prediction has the tokens of the residual stream;
    - sums: under sequence parallelism, the outputs of both blocks after the reduce-scatter, over T / tp tokens;
    - exchanged: under expert parallelism, what the three all-to-alls bring: the numbers of rows in int64, the M rows,
      and the outputs of the N rows.
    """
    part, rows = local_layer(spec, division.tp), division.stream_tokens(run.micro_batch)
    outputs = per_op_held(part, run, predicts=predicts)
    if predicts:
        outputs -= run.width * (run.tokens - rows) * spec.hidden_size
    sums = 2 * run.width * rows * spec.hidden_size if division.sequence_parallel else 0
    exchanged, mixture = 0, spec.feed_forward
    if isinstance(mixture, MixtureOfExpertsSpec) and division.ep > 1:
        sent = run.tokens * mixture.router.top_k
        came = division.received_rows(sent)
        exchanged = INT64 * mixture.router.num_experts + run.width * (came + sent) * spec.hidden_size
    return outputs + sums + exchanged


def _attention_held(spec: AttentionSpec, run: ForwardPass, division: Division) -> int:
    """Return bytes that a rank's heads hold, their input included.

    - a norm over the width of all heads holds its input itself whatever the kernels: no kernel of torch sums over
      ranks;
    - by_head: the merged output of a rank of cp that is not the last one is ordered by head, and the output projection
      holds a copy of it ordered by token.
    """
    by_head = 0
    if division.halves_queries and run.recompute == "none" and spec.num_attention_heads > 1:
        channels = spec.head_dim if isinstance(spec, GroupedQueryAttentionSpec) else spec.v_head_dim
        by_head = run.width * run.tokens * spec.num_attention_heads * channels
    if division.tp == 1 or not isinstance(spec, GroupedQueryAttentionSpec) or spec.query_key_norm != "width":
        return attention_held(spec, run) + by_head
    heads = spec.num_attention_heads + spec.num_key_value_heads
    source = run.width * run.tokens * heads * spec.head_dim
    inverse_rms = 2 * FP32 * run.tokens
    return attention_held(structs.replace(spec, query_key_norm=None), run) + source + inverse_rms + by_head


def _feed_forward_held(spec: FeedForwardSpec, run: ForwardPass, division: Division) -> int:
    if not isinstance(spec, MixtureOfExpertsSpec) or division.ep == 1:
        return feed_forward_held(spec, run)
    routed = exchanged_experts_held(spec, run, division)
    return feed_forward_held(spec, run) - routed_experts_held(spec, run) + routed


def exchanged_experts_held(spec: MixtureOfExpertsSpec, run: ForwardPass, division: Division) -> int:
    """Return bytes that a rank holds of the routed experts under expert parallelism.

    - received: the M rows that it receives, sorted by expert, for the gradient of the first product's weight. The rows
      that it sends are not held;
    - hidden: `expert_hidden_numbers` numbers for each received row;
    - outputs: the experts' outputs of its own N rows, after they have come back, for the gradients of the router
      weights that multiply them. The outputs of the M rows are not held. Where the weights multiply the inputs, these
      are held instead, before they are sent;
    - weights, token, order: of its own N rows, as on one device;
    - order_received: the order of the M rows by expert, to route gradients back, and on the way back the rows;
    - experts: if experts have biases, the index of each received row's expert, for the gradients of the biases;
    - ends: the end of each of its E / ep experts' rows, an input of the grouped products in backward.

    DeepSeek-V3, ep 64, T = 4,096, 16 bits, balanced: N = M = 32,768; received and outputs 2 x 469,762,048; hidden
    536,870,912; weights 65,536; token, order and order_received 3 x 262,144; ends 16: 1,477,246,992 in all.
    """
    sent = run.tokens * spec.router.top_k
    came = division.received_rows(sent)
    received = run.width * came * spec.router.hidden_size
    hidden = run.width * came * expert_hidden_numbers(spec.expert)
    outputs = run.width * sent * spec.router.hidden_size
    weights = run.width * sent
    token = order = INT64 * sent
    order_received = INT64 * came
    experts = INT64 * came if isinstance(spec.expert, ClampedMLPSpec) else 0
    ends = INT32 * (spec.router.num_experts // division.ep)
    return received + hidden + outputs + weights + token + order + order_received + experts + ends


def local_embedding_held(spec: ModelSpec, setup: Setup, layout: Layout) -> int:
    """Return bytes of the residual stream before the first layer: w D T / tp with sequence parallelism, else w D T."""
    run = forward_pass(local_setup(setup, layout.cp))
    return run.width * division_of(layout).stream_tokens(run.micro_batch) * spec.hidden_size


def local_loss_held(spec: ModelSpec, setup: Setup, layout: Layout, context_rank: int = 0) -> int:
    """Return bytes that final norm, head, loss and, if trained, further predictions add to those of the layers.

    The norm has the tokens of the residual stream. The last layer's output stays only if the norm holds its input. The
    loss itself is one number in fp32.
    """
    setup = local_setup(setup, layout.cp)
    run, division = forward_pass(setup), division_of(layout, context_rank)
    rows = division.stream_tokens(run.micro_batch)
    last_output = run.width * rows * spec.hidden_size
    final_norm = stream_norm_held(spec, rows, run)
    mtp_layers = spec.mtp_layers if setup.mtp else ()
    heads = (1 + len(mtp_layers)) * _head_held(spec, run, setup.loss_chunk, division.tp)
    return final_norm - last_output + heads + sum(_mtp_layer_held(each, run, division) for each in mtp_layers) + FP32


def _mtp_layer_held(spec: LayerSpec, run: ForwardPass, division: Division) -> int:
    """Return bytes that one multi-token-prediction layer holds, without its pass through the head.

    As on one device, but for norms, joined states and the projection over the tokens of the residual stream, and for:

    - token_ids, labels: under context parallelism they are inputs of the step, because other ranks have some of them;
    - hidden: the hidden state before it. Under sequence parallelism the head before it holds a gathered copy, so it is
      held besides; else it is the input of that head and counted there.
    """
    run, rows = run.of_layer(spec), division.stream_tokens(run.micro_batch)
    stream = run.width * rows * spec.hidden_size
    token_ids = labels = INT64 * run.tokens if division.cp == 1 else 0
    hidden = stream if division.sequence_parallel else 0
    if run.recompute in ("full", "per_op"):
        embedded = stream
        outputs = _per_op_held(spec, run, division, predicts=True) if run.recompute == "per_op" else 0
        return token_ids + labels + embedded + hidden + outputs
    norm = norm_held(rows, spec.hidden_size, run)
    norm_of_hidden = norm - (stream if run.norms_hold_input else 0)
    joined = 2 * stream
    own = hidden if run.norms_hold_input else 0
    return token_ids + labels + norm + norm_of_hidden + own + joined + _layer_held(spec, run, division) + norm


def _head_held(spec: ModelSpec, run: ForwardPass, loss_chunk: int | None, tp: int) -> int:
    """Return bytes that a head with V / tp words holds.

    - hidden: the head's input, of all T tokens, for its weight's gradient;
    - capped: with soft-capped logits, the output of tanh, for its gradient;
    - log_probabilities: of the rank's words in fp32, for the gradient of the logits;
    - total_weight: the number of tokens with a label in fp32, which the cross-entropy returns as well;
    - labelled: the same number in int64, by which the loss is divided.

    A loss in chunks holds only `hidden` and `labelled`.
    """
    hidden = run.width * run.tokens * spec.hidden_size
    labelled = INT64
    if loss_chunk is not None and loss_chunk < run.tokens:
        return hidden + labelled
    words = spec.vocab_size // tp
    capped = 0 if spec.final_logit_softcap is None else run.width * run.tokens * words
    log_probabilities = FP32 * run.tokens * words
    total_weight = FP32
    return hidden + capped + log_probabilities + total_weight + labelled
