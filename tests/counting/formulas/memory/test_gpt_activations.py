"""Korthikanti et al. 2022: their equations equal the simulation run on their block, and give their models' table."""

from fractions import Fraction

import pytest

from counting.formulas.memory.operations import add, batched_product, linear, scale, unary
from counting.formulas.memory.tape import BOOL, HALF, Array, Edge, Operation, Tape
from tests.counting.formulas.memory.korthikanti import (
    activation_bytes_per_layer,
    first_stage_activation_bytes,
    state_bytes,
)
from torch_models.spec import Recompute

GIB = 2**30


def gpt_block(tape: Tape, x: Array, s: int, b: int, h: int, a: int, recompute: Recompute) -> Array:
    """The paper's figure 2, in the operations of the simulation."""
    tokens = s * b

    def norm(x: Array) -> Array:
        out = tape.like(x.size)
        size = x.size
        tape.record([out], [x], [x], lambda gradients: [tape.like(size)])
        return out

    def dropout(x: Array) -> Array:
        out, mask = tape.like(x.size), tape.new(x.numel, BOOL)
        size = x.size
        tape.record([out], [x], [mask], lambda gradients: [tape.like(size)])
        return out

    def core(query: Array, key: Array, value: Array) -> Array:
        scores = unary(tape, scale(tape, batched_product(tape, query, key, b * a * s * s)), keeps_output=True)
        return batched_product(tape, dropout(scores), value, value.numel)

    def attention(x: Array) -> Array:
        parts = [linear(tape, x, tokens, h) for _ in range(3)]
        attended = tape.checkpoint(core, *parts) if recompute == "selective" else core(*parts)
        return dropout(linear(tape, attended, tokens, h))

    def mlp(x: Array) -> Array:
        return dropout(linear(tape, unary(tape, linear(tape, x, tokens, 4 * h), keeps_input=True), tokens, h))

    def block(x: Array) -> Array:
        x = add(tape, x, attention(norm(x)))
        return add(tape, x, mlp(norm(x)))

    return tape.checkpoint(block, x) if recompute == "full" else block(x)


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize(("s", "b", "h", "a"), [(2048, 4, 6144, 64), (128, 1, 64, 4), (96, 3, 160, 5)])
def test_the_paper_s_equations_equal_the_simulation(s: int, b: int, h: int, a: int, recompute: Recompute) -> None:
    tape = Tape(grad=True)
    x = tape.new(s * b * h, HALF)
    x.edge = Edge(Operation(1, (), (), lambda gradients: []))
    out = gpt_block(tape, x, s, b, h, a, recompute)
    kept = tape.live - out.size.bytes
    assert kept == activation_bytes_per_layer(s, b, h, a, recompute=recompute)


def test_none_by_hand() -> None:
    """sbh (34 + 5as/h) at s = h = 64, a = 4, b = 1: 4096 x (34 + 20)."""
    assert activation_bytes_per_layer(64, 1, 64, 4) == 4096 * 54


# Layers, hidden size, heads; t, p, m; micro-batch; GiB kept without recomputation, and with selective recomputation
# and sequence parallelism: tables 3 and 5 and figure 7 of the paper, recomputed from its equations.
MODELS = {
    "22B": (48, 6144, 64, 8, 1, 1, 4, Fraction("59.25"), Fraction("9.5625")),
    "175B": (96, 12288, 96, 8, 8, 3, 1, Fraction("66.84375"), Fraction(34 * 2048 * 12288 * 12 * 31, 24 * GIB)),
}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
def test_first_stage_of_the_paper_s_models(model: tuple[int, int, int, int, int, int, int, Fraction, Fraction]) -> None:
    layers, hidden, heads, t, p, m, batch, none, selective = model
    run = (2048, batch, hidden, heads)
    pipeline = {"pipeline_parallel": p, "interleave": m}
    plain = activation_bytes_per_layer(*run, tensor_parallel=t)
    assert first_stage_activation_bytes(plain, layers, **pipeline) == none * GIB
    present = activation_bytes_per_layer(*run, tensor_parallel=t, sequence_parallel=True, recompute="selective")
    assert first_stage_activation_bytes(present, layers, **pipeline) == selective * GIB
    assert float(selective) == pytest.approx({59.25: 9.5625, 66.84375: 12.3516}[float(none)], abs=5e-5)


def test_full_recomputation_is_not_split() -> None:
    """2sbh, the layer's input, however many devices share the layer (table 2)."""
    assert activation_bytes_per_layer(64, 1, 64, 4, tensor_parallel=8, recompute="full") == 2 * 64 * 64


def test_a_pipeline_without_interleaving_keeps_as_many_layers_as_the_model_has() -> None:
    """p micro-batches of L / p layers (§4.2.3)."""
    assert first_stage_activation_bytes(Fraction(10), 96, pipeline_parallel=8) == 960


def test_states_of_the_22b_model() -> None:
    assert state_bytes(48, 6144, tensor_parallel=8) == Fraction("45.5625") * GIB
