"""Ring attention of one rank of context parallelism, as torch 2.13 runs it, with its balance between ranks.

Each of c ranks has two of 2 c equal parts of a sequence: rank r the parts r and 2 c - 1 - r. It computes its queries
with its own keys, then with those of the rank before it, and so on round the ring. Keys of a rank before it (steps 1 to
r) are seen by all its queries, but only their first half; keys of a rank after it are seen whole, but only by the
second half of its queries. The outputs of the steps are merged in fp32 by their log-sum-exp. The keys and values of all
ranks are gathered at once, in forward and again in backward; their gradients pass round the ring in fp32.

The tensors, their order and their lifetimes are those of `torch/distributed/tensor/experimental/_context_parallel/
_attention.py`: `_templated_ring_attention`, `_SDPAMerger` and `_templated_ring_attention_backward`. A variable there
that is the only reference to a tensor is a variable here, set again at the same moment.
"""

from typing import NamedTuple

from counting.formulas.local.shapes import Division
from counting.formulas.memory.operations import OTHER
from counting.formulas.memory.tape import SINGLE, Array, Gradients, InputGradients, Size, Tape
from counting.setup import MicroBatch


class FusedKernel(NamedTuple):
    """What a fused kernel of attention returns for B sequences of S tokens: outputs, log-sum-exp, random state."""

    heads: int
    channels: int  # of a value
    row_block: int  # the log-sum-exp has a multiple of these rows for each sequence and head; 0: none is kept
    random_state: int  # bytes

    def outputs(self, batch: MicroBatch, width: int) -> tuple[Size, Size, Size]:
        """The sizes of the three."""
        rows = -(-batch.length // self.row_block) * self.row_block if self.row_block else 0
        return (
            Size(batch.tokens * self.heads * self.channels, width),
            Size(batch.sequences * self.heads * rows, SINGLE),
            Size(self.random_state, 1),
        )


class Factors(NamedTuple):
    """Sizes of queries, keys and values of a rank, and how keys and values are stored."""

    query: Size
    key: Size
    value: Size
    by_token: bool  # keys and values of several heads are ordered by token; ring attention needs them by head
    value_has_gaps: bool  # values are a part of a tensor with other channels

    @property
    def both(self) -> int:
        """Numbers of keys and values together."""
        return self.key.numel + self.value.numel


class _Merger:
    """The outputs of the steps so far in fp32, and their log-sum-exp."""

    def __init__(self, tape: Tape) -> None:
        self.tape = tape
        self.out: Array | None = None
        self.logsumexp: Array | None = None

    def step(self, out: Array, logsumexp: Array, *, half: bool) -> None:
        """Merge what one step has computed, for all queries or for the second half of them."""
        tape, out = self.tape, _converted(self.tape, out, SINGLE)
        if self.out is None or self.logsumexp is None:
            self.out, self.logsumexp = out, logsumexp.view()
            return
        rows, numbers = logsumexp.size, out.size
        merged = self._merged(rows, numbers)
        difference = tape.like(rows)
        logarithm = tape.like(rows)
        del difference
        merged_logsumexp = tape.like(rows)
        del logarithm
        if half:
            self.logsumexp = tape.like(self.logsumexp.size)
            self.out = tape.like(self.out.size)
        else:
            self.logsumexp, self.out = merged_logsumexp, merged

    def _merged(self, rows: Size, numbers: Size) -> Array:
        """The output so far, less sigmoid(difference of log-sum-exp) (the output so far - the new one)."""
        tape = self.tape
        difference = tape.like(rows)
        share = tape.like(rows)
        del difference
        change = tape.like(numbers)
        scaled = tape.like(numbers)
        del share, change
        out = tape.like(numbers)
        del scaled
        return out


def ring_attention(
    tape: Tape,
    kernel: FusedKernel,
    factors: Factors,
    query: Array,
    key: Array,
    value: Array,
    batch: MicroBatch,
    division: Division,
) -> Array:
    """Run ring attention; it keeps what one call of the kernel keeps, with the merged output and log-sum-exp.

    To a checkpoint it is one kernel: nothing is gathered again where its outputs are kept.
    """
    out, logsumexp, state = tape.outputs_of(OTHER, lambda: _forward(tape, kernel, factors, batch, division))
    rows, several = logsumexp.size, kernel.heads * batch.sequences > 1

    def derive(gradients: Gradients) -> InputGradients:
        return _backward(tape, factors, rows, division, several=several)

    tape.record([out], [query, key, value], [query, key, value, out, logsumexp, state], derive)
    return out


def _forward(
    tape: Tape, kernel: FusedKernel, factors: Factors, batch: MicroBatch, division: Division
) -> tuple[Array, Array, Array]:
    """The merged output, its log-sum-exp, and the random state of the last step."""
    width, half_batch = factors.query.width, batch._replace(length=batch.length // 2)
    merger = _Merger(tape)
    used = _in_one_piece(tape, factors)  # variables of the step before are freed when they are set again
    of_ring = sent = None
    for step in range(division.cp):
        if step == 0:
            sent = tape.new(factors.both, width)  # until all of them have come
            of_ring = tape.new(factors.both * division.cp, width)
        else:
            sent = None
            if step < division.cp - 1:
                tape.new(factors.both, width)  # joined, and not sent
        if step > 0:
            used = ()  # keys and values are views of those of all ranks
        half = step > division.context_rank
        out, logsumexp, state = tape.born(*kernel.outputs(half_batch if half else batch, width))
        merger.step(out, logsumexp, half=half)
    assert merger.out is not None and merger.logsumexp is not None
    merged = _converted(tape, merger.out, width)
    del of_ring, used, sent
    return merged, merger.logsumexp.view(), state


def _backward(tape: Tape, factors: Factors, rows: Size, division: Division, *, several: bool) -> InputGradients:
    """The gradients of queries, keys and values; the latter two are views of one tensor, ordered by head.

    `rows` is the log-sum-exp; half of the rows of `several` heads or sequences are copied.
    """
    query, key, value, _, _ = factors
    width = query.width
    query_gradient = tape.new(query.numel, SINGLE)
    key_gradient, value_gradient = tape.new(key.numel, SINGLE), tape.new(value.numel, SINGLE)
    used = _in_one_piece(tape, factors)
    of_ring = joined = half_of_rows = of_step = received = passed = None
    for step in range(division.cp):
        half = step > division.context_rank
        if step < division.cp - 1:
            joined = tape.new(factors.both, width)
            if step == 0:
                of_ring = tape.new(factors.both * division.cp, width)
        if half and several:
            half_of_rows = tape.new(rows.numel // 2, rows.width)
        if step > 0:
            used = ()
        of_keys = 1 if half or step == 0 else 2
        parts = zip((query, key, value), (1 + half, of_keys, of_keys), strict=True)
        of_step = tape.born(*(Size(size.numel // number, size.width) for size, number in parts))
        if received is not None:
            passed = received.again()
            key_gradient, value_gradient = passed.view(key.numel), passed.view(value.numel)
            if not half:
                key_gradient = tape.new(key.numel, SINGLE)
                value_gradient = tape.new(value.numel, SINGLE)
        passed = _joined(tape, factors, by_token=step == 0 and factors.by_token)
        received = tape.new(factors.both, SINGLE)
        if half:
            query_gradient = tape.new(query.numel, SINGLE)
    assert received is not None
    query_gradient = _converted(tape, query_gradient, width)
    passed = _converted(tape, received, width)
    del used, of_ring, joined, half_of_rows, of_step, key_gradient, value_gradient
    return [query_gradient, passed.view(key.numel), passed.view(value.numel)]


def _in_one_piece(tape: Tape, factors: Factors) -> tuple[Array, ...]:
    """Copies of keys and values, as far as they are not in one piece by head."""
    keys = (tape.like(factors.key),) if factors.by_token else ()
    return (*keys, tape.like(factors.value)) if factors.by_token or factors.value_has_gaps else keys


def _joined(tape: Tape, factors: Factors, *, by_token: bool) -> Array:
    """Gradients of keys and values in one tensor; those that are ordered by token are copied before."""
    copies = [tape.new(size.numel, SINGLE) for size in (factors.key, factors.value) if by_token]
    out = tape.new(factors.both, SINGLE)
    del copies
    return out


def _converted(tape: Tape, x: Array, width: int) -> Array:
    return x.again() if x.size.width == width else tape.new(x.numel, width)
