"""Bytes that a rank's forward pass holds for backward under tensor parallelism, in closed form.

A rank's part of a layer holds what a layer of its size holds on one device (`counting.formulas.held`): each block is a
smaller block, whose input is not divided. Under sequence parallelism the norms and the residual stream have T / tp
tokens. Each block holds its gathered input, T D numbers, as torch's DTensor does. Megatron-LM holds the T D / tp
numbers of its own positions instead and gathers them again in backward (Korthikanti et al. 2022, arXiv 2205.05198,
§4.2.2): of each block's input it holds w T D (1 - 1 / tp) bytes less.

The legend of the letters is in `counting.formulas.held`.
"""

from counting.formulas.held import (
    FP32,
    INT64,
    ForwardPass,
    attention_held,
    feed_forward_held,
    forward_pass,
    norm_held,
)
from counting.formulas.local.shapes import division_of, local_layer
from counting.setup import Setup
from torch_models.layout import Layout
from torch_models.spec import LayerSpec, ModelSpec


def local_layer_held(spec: LayerSpec, setup: Setup, layout: Layout) -> int:
    """Return bytes held after one layer's forward pass on a rank minus bytes held before it.

    - blocks: attention with H / tp and G / tp heads, and the MLP with F / tp columns, over all T tokens;
    - norms: of the residual stream, over T / tp tokens with sequence parallelism.

    Full recompute holds the layer's input alone. `setup` and `layout` are resolved.

    Llama-3-8B, tp 2, T = 2,048, 16 bits, fused: inputs of the two blocks 2 x 16,777,216; queries and attended 2 x
    8,388,608; keys and values 2 x 2,097,152; log-sum-exp 131,072 and state 24; gate, activated, up and hidden 4 x
    29,360,128; inputs of the two norms 2 x 8,388,608, and 1 / rms 2 x 4,096: 188,882,968 in all.
    """
    run, division = forward_pass(setup), division_of(layout)
    rows = division.stream_tokens(run.micro_batch)
    if run.recompute == "full":
        return run.width * rows * spec.hidden_size
    part = local_layer(spec, division.tp)
    norms_around_a_block = 2 if spec.norm_placement == "around" else 1
    norm = norm_held(rows, spec.hidden_size, run, unit_offset=spec.norm_unit_offset)
    blocks = attention_held(part.attention, run) + feed_forward_held(part.feed_forward, run)
    return blocks + 2 * norms_around_a_block * norm


def local_embedding_held(spec: ModelSpec, setup: Setup, layout: Layout) -> int:
    """Return bytes of the residual stream before the first layer: w D T / tp with sequence parallelism, else w D T."""
    run = forward_pass(setup)
    return run.width * division_of(layout).stream_tokens(run.micro_batch) * spec.hidden_size


def local_loss_held(spec: ModelSpec, setup: Setup, layout: Layout) -> int:
    """Return bytes that final norm, head and loss add to those of the layers on a rank, without MTP.

    The norm has the tokens of the residual stream. The last layer's output stays only if the norm holds its input. The
    loss itself is one number in fp32. `setup` and `layout` are resolved.
    """
    run, division = forward_pass(setup), division_of(layout)
    rows = division.stream_tokens(run.micro_batch)
    last_output = run.width * rows * spec.hidden_size
    final_norm = norm_held(rows, spec.hidden_size, run, unit_offset=spec.norm_unit_offset)
    return final_norm - last_output + _head_held(spec, run, setup.loss_chunk, division.tp) + FP32


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
