"""The simulation of a rank broken once, function by function: one byte more, and the profile of some layout differs.

`test_every_moment_of_a_rank.py` holds the same families, over the same layouts, against what is measured.
"""

import inspect
from typing import Any

import pytest
from msgspec import structs

from counting.formulas.memory import (
    blocks,
    collectives,
    exchange,
    experts,
    layer,
    parameters,
    simulate,
    step,
    vocabulary,
)
from counting.formulas.memory.attention import block, core, grouped_queries, latents, ring, rotation
from counting.formulas.memory.tape import Array, Tape
from tests.random_specs import widened
from tests.shrunken import FAMILIES
from tests.witnesses import setup_of
from torch_models.fields.config import spec_from_fields
from torch_models.layout import Layout
from torch_models.spec import ModelSpec, runs_of

ATTENTION = (block, core, grouped_queries, latents, ring, rotation)
MODULES = (*ATTENTION, blocks, collectives, exchange, experts, layer, parameters, step, vocabulary)
OF_A_RANK = (collectives, exchange, parameters, ring, vocabulary)
FUNCTIONS = [
    name
    for module in OF_A_RANK
    for name, function in vars(module).items()
    if inspect.isfunction(function) and function.__module__ == module.__name__
] + ["divided_norm", "projection", "sum_projection"]

TP, TP_WITHOUT_SP = Layout(num_gpus=2, dp=1, tp=2), Layout(num_gpus=2, dp=1, tp=2, sequence_parallel=False)
EP = Layout(num_gpus=2, dp=1, fsdp=2, ep=2)
CP = Layout(num_gpus=2, dp=1, cp=2)
CASES = [("gpt_oss", TP), ("olmo2", TP_WITHOUT_SP), ("deepseek_v3", EP), ("llama", CP)]


def divisible(family: str) -> ModelSpec:
    spec = spec_from_fields(FAMILIES[family], "shrunken")
    runs = runs_of(widened(layer, 2) for layer in spec.layers)
    return structs.replace(spec, layer_runs=runs, mtp_layers=tuple(widened(layer, 2) for layer in spec.mtp_layers))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_forgotten_tensor_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [(divisible(family), layout) for family, layout in CASES]

    def profiles() -> list[Any]:
        return [simulate(spec, setup_of(spec), step=True, layout=layout).step_profile for spec, layout in runs]

    right = next(getattr(module, name) for module in MODULES if hasattr(module, name))
    forgotten: list[Array] = []

    def forgetful(tape: Tape, *arguments: Any, **options: Any) -> Any:
        forgotten.append(tape.new(1, 1))
        return right(tape, *arguments, **options)

    expected = profiles()
    for module in MODULES:
        if hasattr(module, name):
            monkeypatch.setattr(module, name, forgetful)
    assert profiles() != expected
