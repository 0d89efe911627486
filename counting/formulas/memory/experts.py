"""Operations of a mixture of experts, from its spec alone. The legend of dimension letters is in layer.py."""

from counting.formulas.memory.blocks import gated_mlp
from counting.formulas.memory.operations import (
    add,
    add_number,
    cast,
    cast_parameter,
    clamp,
    divide,
    every_other,
    grouped_linear,
    linear,
    multiply,
    reshape,
    rows_of,
    scale,
    split,
    sum_of_rows,
    unary,
)
from counting.formulas.memory.tape import BOOL, INT, LONG, SINGLE, Array, Size, Tape
from counting.setup import MicroBatch
from torch_models.spec import ClampedMLPSpec, MixtureOfExpertsSpec, RouterSpec


def mixture_of_experts(tape: Tape, spec: MixtureOfExpertsSpec, x: Array, batch: MicroBatch) -> Array:
    """Router, routed experts on T K rows, shared experts, and the sum of both outputs."""
    flat, tokens = reshape(tape, x), batch.tokens
    routed = reshape(tape, _routed_experts(tape, spec, flat, tokens, *_router(tape, spec.router, flat, tokens)))
    return routed if spec.shared_experts is None else add(tape, routed, gated_mlp(tape, spec.shared_experts, x, batch))


def _router(tape: Tape, spec: RouterSpec, x: Array, tokens: int) -> tuple[Array, Array]:
    """The chosen experts' weights in fp32, and their indices."""
    scores = _scores(tape, spec, x, tokens)
    chosen = _choose(tape, spec, scores.numel, tokens)
    weights = rows_of(tape, scores, chosen, tokens * spec.top_k)
    if spec.norm_topk_prob:
        weights = divide(tape, weights, add_number(tape, sum_of_rows(tape, weights, tokens)))
    return scale(tape, weights), chosen


def _scores(tape: Tape, spec: RouterSpec, x: Array, tokens: int) -> Array:
    """fp32 scores of every expert."""
    width = x.size.width
    bias = cast_parameter(tape, tape.parameter(spec.num_experts, width), SINGLE) if spec.bias else None
    weight = tape.parameter(spec.num_experts * spec.hidden_size, width)
    logits = linear(
        tape,
        cast(tape, x, SINGLE),
        tokens,
        spec.num_experts,
        weight=cast_parameter(tape, weight, SINGLE),
        bias=bias,
        flat=True,
    )
    return unary(tape, logits, keeps_output=True)  # sigmoid or softmax


def _choose(tape: Tape, spec: RouterSpec, scores: int, tokens: int) -> Array:
    """The indices of the chosen experts; none of these tensors has a gradient."""
    best, indices = Size(tokens * spec.top_k, SINGLE), Size(tokens * spec.top_k, LONG)
    corrected = tape.new(scores, SINGLE) if spec.correction_bias else None
    if spec.n_group == 1:
        chosen = tape.born(best, indices)[1]
        del corrected
        return chosen
    groups, kept_groups = tokens * spec.n_group, tokens * spec.topk_group
    ranked = groups * spec.group_rank_experts
    best_in_group = tape.born(Size(ranked, SINGLE), Size(ranked, LONG))[0]
    rank = tape.new(groups, SINGLE)
    del best_in_group
    eligible = tape.born(Size(kept_groups, SINGLE), Size(kept_groups, LONG))[1]
    all_groups = tape.new(groups, BOOL)
    excluded = tape.new(groups, BOOL)
    del all_groups
    masked = tape.new(scores, SINGLE)
    chosen = tape.born(best, indices)[1]
    del corrected, rank, eligible, excluded, masked
    return chosen


def _routed_experts(
    tape: Tape, spec: MixtureOfExpertsSpec, x: Array, tokens: int, weights: Array, chosen: Array
) -> Array:
    """Rows sorted by expert, the outputs of the experts, and the weighted sum per token."""
    count, experts = tokens * spec.router.top_k, spec.router.num_experts
    width = spec.expert.hidden_size
    sorted_experts, order = tape.born(Size(count, LONG), Size(count, LONG))
    all_experts = tape.new(experts, LONG)
    ends = tape.new(experts, INT)
    token = tape.new(count, LONG)
    rows = rows_of(tape, x, token, count * width)
    if isinstance(spec.expert, ClampedMLPSpec):
        rows = _clamped_experts(tape, spec, rows, count, sorted_experts, ends)
    else:
        rows = _gated_experts(tape, spec, rows, count, ends)
    rows = multiply(tape, rows, cast(tape, rows_of(tape, reshape(tape, weights), order, count), rows.size.width))
    out = _added_to_tokens(tape, rows, token, x.numel)
    del sorted_experts, order, all_experts, ends, token, chosen
    return out


def _gated_experts(tape: Tape, spec: MixtureOfExpertsSpec, rows: Array, count: int, ends: Array) -> Array:
    """Two grouped products with a gated activation in between."""
    experts, hidden_size = spec.router.num_experts, spec.expert.intermediate_size
    both = grouped_linear(tape, rows, count, 2 * hidden_size, experts, ends)
    gate, up = split(tape, both, count * hidden_size, count * hidden_size)
    del both
    hidden = multiply(tape, unary(tape, gate, keeps_input=True), up)
    return grouped_linear(tape, hidden, count, spec.expert.hidden_size, experts, ends)


def _clamped_experts(
    tape: Tape, spec: MixtureOfExpertsSpec, rows: Array, count: int, sorted_experts: Array, ends: Array
) -> Array:
    """Two grouped products, each with the bias of the row's expert; gate and up are clamped in between."""
    experts, hidden_size = spec.router.num_experts, spec.expert.intermediate_size

    def projected(x: Array, outputs: int) -> Array:
        product = grouped_linear(tape, x, count, outputs, experts, ends)
        return add(
            tape,
            product,
            rows_of(tape, tape.parameter(experts * outputs, x.size.width), sorted_experts, count * outputs),
        )

    both = projected(rows, 2 * hidden_size)
    gate = clamp(tape, every_other(tape, both), bounds=1)
    up = clamp(tape, every_other(tape, both), bounds=2)
    hidden = multiply(
        tape,
        add_number(tape, up),
        multiply(tape, gate, unary(tape, scale(tape, gate), keeps_output=True)),
    )
    return projected(hidden, spec.expert.hidden_size)


def _added_to_tokens(tape: Tape, rows: Array, token: Array, numel: int) -> Array:
    """Add rows into a tensor of zeros, in place; backward gathers their gradients."""
    size = rows.size
    out = tape.new(numel, size.width)
    tape.record([out], [rows], [token], lambda gradients: [tape.like(size)])
    return out
