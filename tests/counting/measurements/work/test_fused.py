"""The rule of compiled layers, on hand-made ops. A unit is the bytes of one tensor of activations, F."""

from collections.abc import Sequence

from counting.measurements.work.fused import summarise_compiled
from counting.measurements.work.records import RawKind, RawOp, RawStretch, Touch, summarise
from counting.work import Op

F = 1000
SMALL = 10  # a number a row, or a weight of a norm

Tensors = Sequence[Touch]


def tensor(serial: int, size: int = F) -> Touch:
    """The whole of a storage."""
    return Touch(serial, ("whole",), size, size)


def part(serial: int, name: str) -> Touch:
    """A half of a storage."""
    return Touch(serial, (name,), F // 2, F)


def memory(name: str, reads: Tensors, writes: Tensors) -> RawOp:
    return RawOp("memory", name, tuple(reads), tuple(writes))


def product(reads: Tensors, writes: Tensors, kind: RawKind = "product") -> RawOp:
    return RawOp(kind, "mm", tuple(reads), tuple(writes), flops=0 if kind == "collective" else 7)


def kernels(ops: Sequence[Op]) -> list[tuple[str, int, int]]:
    """The memory ops: name, bytes read and written of all calls."""
    return [(op.name, op.calls * op.bytes_read, op.calls * op.bytes_written) for op in ops if op.kind == "memory"]


def layer(*stretches: tuple[Sequence[RawOp], set[int]]) -> list[list[tuple[str, int, int]]]:
    """The memory ops of the stretches of one layer, each with what is alive after it."""
    found = summarise_compiled([RawStretch(*each) for each in stretches], [0] * len(stretches))
    return [kernels(ops) for ops in found]


X, GATE, UP, S, H, OUT = map(tensor, range(6))
D_H, D_S, D_GATE, D_UP = map(tensor, range(10, 14))
SWIGLU = [
    product([X], [GATE]),
    memory("silu", [GATE], [S]),
    product([X], [UP]),
    memory("mul", [S, UP], [H]),
    product([H], [OUT]),
]


def test_golden_gate_and_up() -> None:
    """silu(gate) x up is one kernel: it reads gate and up, and writes the product; op by op it is 3 F and 2 F.

    Backward computes silu(gate) again. One kernel reads the gradient of the product, gate and up, and writes the
    gradients of gate and up, which products read: 3 F and 2 F. Op by op three ops read 2 F and write F each.
    """
    backward = [
        product([OUT], [D_H]),
        memory("mul", [D_H, UP], [D_S]),
        memory("mul", [D_H, S], [D_UP]),
        memory("silu_backward", [D_S, GATE], [D_GATE]),
        product([D_UP, D_GATE, H], [tensor(20)]),
    ]
    kept = {0, 1, 2, 3, 4, 5}
    assert layer((SWIGLU, kept), (backward, kept)) == [
        [("generated", 2 * F, F)],
        [("generated", 3 * F, 2 * F)],
    ]
    plain = summarise(RawStretch(SWIGLU, kept)), summarise(RawStretch(backward, kept))
    assert kernels(plain[0]) == [("silu", F, F), ("mul", 2 * F, F)]
    assert sum(read + written for _, read, written in kernels(plain[1])) == 3 * 3 * F


def test_golden_residual_and_norm() -> None:
    """The sum of x and a product, and its norm: one kernel reads both and the weight, and writes sum and norm.

    Backward needs the sum, and of what it is made the product is not kept: the sum is in memory. Of 1 / rms in the
    forward pass (SMALL) backward reads what was written. One kernel of backward reads the gradients of norm and sum,
    the sum, weight and 1 / rms, and writes the gradients of x and of the weight.
    """
    attended, total, weight, inverse_rms, norm = (
        tensor(30),
        tensor(31),
        tensor(32, SMALL),
        tensor(33, SMALL),
        tensor(34),
    )
    d_norm, d_total, d_weight, d_out, d_x = tensor(40), tensor(41), tensor(42, SMALL), tensor(43), tensor(44)
    forward = [
        product([X], [attended]),
        memory("add", [X, attended], [total]),
        memory("_fused_rms_norm", [total, weight], [norm, inverse_rms]),
        product([norm], [OUT]),
    ]
    backward = [
        product([d_out], [d_norm]),
        memory("_fused_rms_norm_backward", [d_norm, total, weight, inverse_rms], [d_total, d_weight]),
        memory("add", [d_total, d_out], [d_x]),
        product([d_x], [tensor(45)]),
    ]
    kept = {0, 5, 31, 32, 33, 34}
    assert layer((forward, kept), (backward, {42, 45})) == [
        [("generated", 2 * F + SMALL, 2 * F + SMALL)],
        [("generated", 3 * F + 2 * SMALL, F + SMALL)],
    ]
    # If backward does not need it, neither the sum nor 1 / rms is in memory.
    assert layer((forward, {0, 5, 32})) == [[("generated", 2 * F + SMALL, F)]]


def test_what_only_a_collective_reads_is_in_memory() -> None:
    """As the norm of a rank's positions, which sequence parallelism gathers."""
    norm, gathered = tensor(50), tensor(51)
    ops = [memory("mul", [X], [norm]), product([norm], [gathered], "collective"), product([gathered], [OUT])]
    assert layer((ops, {5})) == [[("generated", F, F)]]


def test_results_are_in_memory() -> None:
    """What the next layer reads, and what nothing reads and is there afterwards, such as a gradient."""
    of_next, gradient, nothing = tensor(60), tensor(61), tensor(62)
    ops = [memory("add", [X], [of_next]), memory("mul", [OUT], [gradient]), memory("neg", [OUT], [nothing])]
    stretches = [RawStretch(ops, {60, 61}), RawStretch([memory("mul", [of_next], [tensor(63)])], {63})]
    first, second = summarise_compiled(stretches, [0, 1])
    assert kernels(first) == [("generated", 2 * F, 2 * F)]
    assert kernels(second) == [("generated", F, F)]


def test_gradients_that_are_there_are_added_to_in_memory() -> None:
    """A sum of gradients is changed in place: it reads both, and writes the sum."""
    total, gradient = tensor(70), tensor(71)
    before = RawStretch([], {70})
    ops = RawStretch([product([X], [gradient]), memory("add_", [total, gradient], [total])], {70})
    assert kernels(summarise_compiled([before, ops], [-1, 0])[1]) == [("generated", 2 * F, F)]


def test_a_change_in_place_of_what_the_layer_made_is_not_in_memory() -> None:
    """silu(gate), multiplied in place: nothing but the last state is read by a product."""
    ops = [memory("silu", [GATE], [S]), memory("mul_", [S, UP], [S]), product([S], [OUT])]
    assert layer((ops, {5})) == [[("generated", 2 * F, F)]]


def test_what_is_overwritten_before_it_is_read_is_not_in_memory() -> None:
    """Zeros that a copy takes the place of, though their storage is there afterwards."""
    ops = [memory("zeros_like", [], [S]), memory("copy_", [X], [S]), product([S], [OUT])]
    assert layer((ops, {3, 5})) == [[("generated", F, F)]]


def test_what_is_made_of_an_overwritten_tensor_is_in_memory() -> None:
    """silu(gate) is read after gate has changed, so it cannot be computed again from it.

    One kernel reads gate and up, and writes silu(gate) and the new gate, which a product reads; one reads silu(gate)
    and the product.
    """
    multiplied = tensor(97)
    ops = [
        product([X], [GATE]),
        memory("silu", [GATE], [S]),
        memory("mul_", [GATE, UP], [GATE]),
        product([GATE], [multiplied]),
        memory("mul", [S, multiplied], [H]),
        product([H], [OUT]),
    ]
    assert layer((ops, {5})) == [[("generated", 2 * F, 2 * F), ("generated", 2 * F, F)]]


def test_parts_of_a_tensor() -> None:
    """Halves of a result are not in memory; a tensor that is written half by half is."""
    turned, first, second = tensor(80), part(80, "first"), part(80, "second")
    rotated = [
        memory("mul", [X], [turned]),
        memory("neg", [first], [tensor(81, F // 2)]),
        memory("cat", [tensor(81, F // 2), second], [tensor(82)]),
        product([tensor(82)], [OUT]),
    ]
    assert layer((rotated, {5})) == [[("generated", F, F)]]
    halves = [memory("copy_", [X], [first]), memory("copy_", [UP], [second]), memory("mul", [turned], [H])]
    assert layer((halves, {4})) == [[("generated", 2 * F, F), ("generated", F, F)]]


def test_kernels_that_are_not_generated_stay() -> None:
    """A scatter is complete only when all of it is: what it adds to and its result are in memory."""
    zeros, sums = tensor(90), tensor(91)
    ops = [
        memory("new_zeros", [], [zeros]),
        memory("index_add", [zeros, X, tensor(92, SMALL)], [sums]),
        memory("mul", [sums], [H]),
        product([H], [OUT]),
    ]
    assert layer((ops, {5})) == [
        [("index_add", 2 * F + SMALL, F), ("generated", 0, F), ("generated", F, F)],
    ]


def test_sums_that_a_later_kernel_reads_are_in_memory() -> None:
    """A sum over rows is not computed again from all of them."""
    scale = tensor(95, SMALL)
    ops = [
        memory("amax", [X], [scale]),
        product([X], [UP]),
        memory("div", [UP, scale], [H]),
        product([H], [OUT]),
    ]
    assert layer((ops, {5})) == [[("generated", F, SMALL), ("generated", F + SMALL, F)]]


def test_layers_keep_all_products_and_no_more_bytes() -> None:
    """What a rule would make dearer runs as it is: here a value that two distant kernels compute from 3 tensors."""
    mixed = tensor(96)
    ops = [
        memory("addcmul", [X, GATE, UP], [mixed]),
        memory("neg", [mixed], [S]),
        product([S], [D_S]),
        memory("mul", [mixed, D_S], [H]),
        product([H], [OUT]),
    ]
    (found,) = summarise_compiled([RawStretch(ops, {5})], [0])
    assert [op.flops * op.calls for op in found if op.flops] == [14]
    # Op by op 3 + 1, 1 + 1 and 2 + 1 F; as kernels 3 + 1 and 4 + 1 F.
    assert sum(read + written for _, read, written in kernels(found)) == 9 * F
