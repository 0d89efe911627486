"""Operations of a mixture of experts, from its spec alone. The legend of dimension letters is in layer.py."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, Protocol

from counting.formulas.local.shapes import UNDIVIDED, Division
from counting.formulas.memory.blocks import gated_mlp, norm
from counting.formulas.memory.exchange import exchange
from counting.formulas.memory.operations import (
    OTHER,
    Operand,
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
from counting.formulas.memory.parameters import added_bias, own_experts, summed_parameter
from counting.formulas.memory.tape import BOOL, INT, LONG, SINGLE, Array, Size, Tape
from torch_models.spec import ClampedMLPSpec, GatedMLPSpec, Kernels, MixtureOfExpertsSpec, RouterSpec

Expert = GatedMLPSpec | ClampedMLPSpec


class Around(Protocol):
    """What is done before and after the routed experts, on their inputs and their output."""

    def enter(self, *inputs: Array) -> Sequence[Array]:
        """Return the inputs, in which the gradients of the experts arrive."""

    def leave(self, out: Array) -> None:
        """Take notice of the output."""


def mixture_of_experts(
    tape: Tape,
    spec: MixtureOfExpertsSpec,
    x: Array,
    tokens: int,
    kernels: Kernels,
    division: Division = UNDIVIDED,
    around: Around | None = None,
) -> Array:
    """Router, routed experts on T K rows, shared experts and their gate, and the sum of both outputs."""
    flat = reshape(tape, x)
    out = routed_tokens(tape, spec, flat, flat, tokens, kernels, division, around)
    del flat
    routed = reshape(tape, out)
    del out
    if spec.shared_experts is None:
        return routed
    return add(tape, routed, _shared_experts(tape, spec.shared_experts, x, tokens, division, spec.shared_expert_gate))


def _shared_experts(tape: Tape, spec: GatedMLPSpec, x: Array, tokens: int, division: Division, gated: bool) -> Array:
    """Their output or, if it is gated, its product with the sigmoid of a score per token; each rank of tp has all."""
    shared = gated_mlp(tape, spec, x, tokens, division)
    if not gated:
        return shared
    weight = summed_parameter(tape, tape.parameter(spec.hidden_size, x.size.width), division)
    return multiply(tape, shared, unary(tape, linear(tape, x, tokens, 1, weight=weight), keeps_output=True))


def routed_tokens(
    tape: Tape,
    spec: MixtureOfExpertsSpec,
    x: Array,
    of_router: Array,
    tokens: int,
    kernels: Kernels,
    division: Division,
    around: Around | None,
) -> Array:
    """Router and routed experts, each with its own input of one row per token."""
    weights, chosen = _router(tape, spec.router, of_router, tokens, kernels, division)
    of_experts, weights = around.enter(x, weights) if around else (x, weights)
    out = _routed_experts(tape, spec, of_experts, weights, chosen, division)
    if around:
        around.leave(out)
    return out


def _router(
    tape: Tape, spec: RouterSpec, x: Array, tokens: int, kernels: Kernels, division: Division
) -> tuple[Array, Array]:
    """The chosen experts' weights in fp32, and their indices; each rank of tp routes all tokens."""
    scores = _scores(tape, spec, x, tokens, kernels, division)
    chosen = _choose(tape, spec, scores.numel, tokens)
    weights = rows_of(tape, scores, chosen, tokens * spec.top_k)
    if spec.norm_topk_prob:
        weights = divide(tape, weights, add_number(tape, sum_of_rows(tape, weights, tokens)))
    if spec.learned_scales:
        of_experts = summed_parameter(tape, tape.parameter(spec.num_experts, x.size.width), division)
        factors = rows_of(tape, cast_parameter(tape, of_experts, SINGLE), chosen, tokens * spec.top_k)
        return multiply(tape, weights, factors), chosen
    return scale(tape, weights), chosen


def _scores(tape: Tape, spec: RouterSpec, x: Array, tokens: int, kernels: Kernels, division: Division) -> Array:
    """fp32 scores of every expert."""
    if spec.learned_scales:
        x = norm(tape, x, tokens, kernels, division=division)

    def parameter(numel: int) -> Operand:
        return summed_parameter(tape, tape.parameter(numel, x.size.width), division)

    weight = parameter(spec.num_experts * spec.hidden_size)
    bias = cast_parameter(tape, parameter(spec.num_experts), SINGLE) if spec.bias else None
    logits = linear(
        tape,
        cast(tape, x, SINGLE),
        tokens,
        spec.num_experts,
        weight=cast_parameter(tape, weight, SINGLE),
        bias=bias,
        flat=True,
    )
    if spec.learned_scales:
        logits = scale(tape, logits)
    return unary(tape, logits, keeps_output=True)  # sigmoid or softmax


def _choose(tape: Tape, spec: RouterSpec, scores: int, tokens: int) -> Array:
    """The indices of the chosen experts; none of these tensors has a gradient."""
    best, indices = Size(tokens * spec.top_k, SINGLE), Size(tokens * spec.top_k, LONG)
    corrected = tape.new(scores, SINGLE) if spec.correction_bias else None
    if spec.n_group == 1:
        chosen = tape.born_of(OTHER, best, indices)[1]
        del corrected
        return chosen
    groups, kept_groups = tokens * spec.n_group, tokens * spec.topk_group
    ranked = groups * spec.group_rank_experts
    best_in_group = tape.born_of(OTHER, Size(ranked, SINGLE), Size(ranked, LONG))[0]
    rank = tape.new(groups, SINGLE)
    del best_in_group
    eligible = tape.born_of(OTHER, Size(kept_groups, SINGLE), Size(kept_groups, LONG))[1]
    all_groups = tape.new(groups, BOOL)
    excluded = tape.new(groups, BOOL)
    del all_groups
    masked = tape.new(scores, SINGLE)
    chosen = tape.born_of(OTHER, best, indices)[1]
    del corrected, rank, eligible, excluded, masked
    return chosen


def _routed_experts(
    tape: Tape, spec: MixtureOfExpertsSpec, x: Array, weights: Array, chosen: Array, division: Division
) -> Array:
    """Rows sorted by expert, the outputs of the experts, and the weighted sum per token."""
    count, experts = chosen.numel, spec.router.num_experts
    own = experts // division.ep
    stacks = _stacks(tape, spec.expert, own, x.size.width, division)
    width = spec.expert.hidden_size
    sorted_experts, order = tape.born(Size(count, LONG), Size(count, LONG))
    all_experts = tape.new(experts, LONG)
    ends = tape.new(experts, INT)
    token = tape.new(count, LONG)
    transform = partial(_transform, tape, spec.expert, stacks)

    rows = rows_of(tape, x, token, count * width)
    if spec.weighs_inputs:
        rows = _weighted(tape, rows, weights, order)
    if division.ep > 1:
        rows = exchange(tape, transform, rows, experts, own, division.received_rows(count), width)
    else:
        rows = transform(rows, sorted_experts, ends)
    if not spec.weighs_inputs:
        rows = _weighted(tape, rows, weights, order)
    out = _added_to_tokens(tape, rows, token, x.numel)
    del sorted_experts, order, all_experts, ends, token, chosen
    return out


def _weighted(tape: Tape, rows: Array, weights: Array, order: Array) -> Array:
    """Multiply each row by the weight that the router gives it, in the format of the rows."""
    return multiply(tape, rows, cast(tape, rows_of(tape, reshape(tape, weights), order, order.numel), rows.size.width))


class _Stacks(NamedTuple):
    """The parameters of all experts: of gate and up in one matrix for each expert, and of down."""

    gate_up: Operand
    down: Operand
    gate_up_bias: Operand | None = None
    down_bias: Operand | None = None


def _stacks(tape: Tape, spec: Expert, experts: int, width: int, division: Division) -> _Stacks:
    """Those of this rank's experts."""
    hidden, outputs = spec.intermediate_size, spec.hidden_size

    def stack(numel: int) -> Operand:
        return own_experts(tape, tape.parameter(experts * numel, width), division)

    gate_up = stack(2 * hidden * outputs)
    if not isinstance(spec, ClampedMLPSpec):
        return _Stacks(gate_up, stack(hidden * outputs))
    gate_up_bias, down = stack(2 * hidden), stack(hidden * outputs)
    if division.ep > 1:
        return _Stacks(gate_up, down, gate_up_bias, stack(outputs))
    bias = tape.parameter(experts * outputs, width)
    return _Stacks(gate_up, down, gate_up_bias, added_bias(tape, bias, division))


def _transform(tape: Tape, spec: Expert, stacks: _Stacks, rows: Array, experts: Array, ends: Array) -> Array:
    """The outputs of the experts for rows that are sorted by expert; `experts` is the expert of each."""
    count = rows.numel // spec.hidden_size
    if isinstance(spec, ClampedMLPSpec):
        return _clamped_experts(tape, spec, stacks, rows, count, experts, ends)
    return _gated_experts(tape, spec, stacks, rows, count, ends)


def _gated_experts(tape: Tape, spec: GatedMLPSpec, stacks: _Stacks, rows: Array, count: int, ends: Array) -> Array:
    """Two grouped products with a gated activation in between."""
    hidden_size = spec.intermediate_size
    both = grouped_linear(tape, rows, count, 2 * hidden_size, stacks.gate_up, ends)
    gate, up = split(tape, both, count * hidden_size, count * hidden_size)
    del both
    hidden = multiply(tape, unary(tape, gate, keeps_input=True), up)
    return grouped_linear(tape, hidden, count, spec.hidden_size, stacks.down, ends)


def _clamped_experts(
    tape: Tape, spec: ClampedMLPSpec, stacks: _Stacks, rows: Array, count: int, sorted_experts: Array, ends: Array
) -> Array:
    """Two grouped products, each with the bias of the row's expert; gate and up are clamped in between."""

    def projected(x: Array, outputs: int, weight: Operand, bias: Operand | None) -> Array:
        assert bias is not None
        product = grouped_linear(tape, x, count, outputs, weight, ends)
        return add(tape, product, rows_of(tape, bias, sorted_experts, count * outputs))

    both = projected(rows, 2 * spec.intermediate_size, stacks.gate_up, stacks.gate_up_bias)
    gate = clamp(tape, every_other(tape, both), bounds=1)
    up = clamp(tape, every_other(tape, both), bounds=2)
    hidden = multiply(
        tape,
        add_number(tape, up),
        multiply(tape, gate, unary(tape, scale(tape, gate), keeps_output=True)),
    )
    return projected(hidden, spec.hidden_size, stacks.down, stacks.down_bias)


def _added_to_tokens(tape: Tape, rows: Array, token: Array, numel: int) -> Array:
    """Add rows into a tensor of zeros, in place; backward gathers their gradients."""
    size = rows.size
    out = tape.new(numel, size.width)
    tape.record([out], [rows], [token], lambda gradients: [tape.like(size)])
    return out
