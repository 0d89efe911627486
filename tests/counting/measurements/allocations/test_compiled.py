"""Layers as torch's compiler runs them: what they keep for backward, and what they allocate on the way."""

from typing import Any

import pytest
import torch

from counting.allocator.events import Allocate, Event, Free, Mark
from counting.measurements.allocations import log_of_step
from counting.measurements.allocations.compiled import import_compiler, traced_layer
from counting.measurements.meta_device import measuring
from counting.setup import Setup, resolve
from tests.shrunken import COVERED, FAMILIES
from torch_models.fields.config import read_spec, spec_from_fields
from torch_models.modules.layers import rotary_tables
from torch_models.spec import LayerSpec, Recompute

LLAMA = read_spec("llama_3_8b").layers[0]


def graphs_of(layer: LayerSpec, recompute: Recompute, length: int) -> Any:
    import_compiler()
    setup = Setup(sequence_length=length, execution="compiled", recompute=recompute)
    with measuring():
        tables = rotary_tables(layer.attention.rotary, length, torch.device("meta"), torch.bfloat16)
        return traced_layer(layer, recompute, setup, tables, torch.bfloat16)


def kept(layer: LayerSpec, recompute: Recompute, length: int) -> int:
    """Bytes of what forward makes and backward is given."""
    found = graphs_of(layer, recompute, length).backward.inputs[:-1]
    values = [node.meta["val"] for node in found if not node.name.startswith(("primals", "rng_state"))]
    return sum(value.numel() * value.dtype.itemsize for value in values)


def test_what_a_layer_of_llama_keeps() -> None:
    """S = 1024, 16 bits, D = 4096, 32 heads of 128 and 8 key heads, F = 14336.

    By operation: queries and values before rotation, gate, attended values, and the log-sum-exp with 24 bytes of state.
    The output of down, which eager execution keeps too, no gradient needs. Full recompute keeps the input alone.
    """
    assert kept(LLAMA, "per_op", 1024) == 1024 * (2 * (4096 + 1024 + 14336 + 4096) + 4 * 32) + 24
    assert kept(LLAMA, "full", 1024) == 0


def test_an_elementwise_chain_is_not_stored() -> None:
    """Full recompute, forward: two normed inputs, seven products, rotated queries and keys, attention; nothing else.

    Activated and multiplied gate is read by down, and stored in place of gate or up. The output takes down's place.
    """
    graph = graphs_of(LLAMA, "full", 1024).forward
    names = [str(node.target).split(".")[1] for step in graph._steps for node in step.nodes if step.generated]
    assert names.count("cat") == 2
    assert not {"neg", "exp", "rsqrt", "pow", "mean", "sub"} & set(names)
    products = [node for step in graph._steps for node in step.nodes if "mm" in str(node.target)]
    assert len(products) == 7


def bytes_alive(events: list[Event], until: str) -> int:
    """The bytes alive at a mark."""
    alive: dict[int, int] = {}
    for event in events:
        match event:
            case Allocate(key=key, bytes=size):
                alive[key] = size
            case Free(key=key):
                del alive[key]
            case Mark(name=name) if name == until:
                return sum(alive.values())
    raise AssertionError(until)


@pytest.mark.parametrize(("recompute", "less"), [("per_op", 4 * 256 * 64 * 2), ("full", 0)])
def test_what_a_step_keeps_less_than_op_by_op(recompute: Recompute, less: int) -> None:
    """By operation, the outputs of the last product of four layers, 256 tokens of 64 channels; after it nothing."""
    spec = spec_from_fields(FAMILIES["llama"] | {"num_hidden_layers": 4}, "shrunken")
    logs = [
        log_of_step(spec, resolve(Setup(sequence_length=256, execution=execution, recompute=recompute), spec))
        for execution in ("eager", "compiled")
    ]
    eager, compiled = (bytes_alive(events, "forward 1 of step 1") for events in logs)
    assert eager - compiled == less
    eager, compiled = (bytes_alive(events, "update of step 1") for events in logs)
    assert eager == compiled


@pytest.mark.parametrize(
    "family", [pytest.param(family, marks=[pytest.mark.sweep] * (family in COVERED)) for family in FAMILIES]
)
def test_every_family(family: str) -> None:
    """Gradients of all parameters, in their shapes and formats; the second micro-batch adds to those of the first."""
    spec = spec_from_fields(FAMILIES[family], "shrunken")
    setup = Setup(sequence_length=64, execution="compiled", recompute="per_op", micro_batches=2)
    assert bytes_alive(log_of_step(spec, resolve(setup, spec)), "update of step 2") > 0
