"""The simulation broken once, operation by operation: one byte more, and it differs from what is measured."""

import inspect
from typing import Any

import pytest

from counting.analysis import analyze
from counting.formulas.memory import blocks, experts, layer, operations, optimizer, simulate, step
from counting.formulas.memory.attention import block, core, grouped_queries, latents, rotation
from counting.formulas.memory.tape import Array, Tape
from counting.formulas.tensors import tensors
from counting.reconcile import DisagreementError
from counting.setup import Setup
from tests.shrunken import DEEPSEEK_V3, FAMILIES, GPT_OSS, LLAMA
from tests.witnesses import setup_of
from torch_models.fields.config import spec_from_fields

DEEPSEEK_SPEC = spec_from_fields(DEEPSEEK_V3, "shrunken")
LLAMA_SPEC = spec_from_fields(LLAMA, "shrunken")
GPT_OSS_SPEC = spec_from_fields(GPT_OSS, "shrunken")

MEMORY_BLOCKS = [
    (grouped_queries, "rotate", LLAMA_SPEC, "eager"),
    (latents, "norm", DEEPSEEK_SPEC, "fused"),
    (blocks, "norm", LLAMA_SPEC, "fused"),
    (blocks, "norm", LLAMA_SPEC, "eager"),
    (block, "grouped_projections", LLAMA_SPEC, "fused"),
    (block, "latent_projections", DEEPSEEK_SPEC, "fused"),
    (block, "fused_core", LLAMA_SPEC, "fused"),
    (block, "eager_core", LLAMA_SPEC, "eager"),
    (layer, "gated_mlp", LLAMA_SPEC, "fused"),
    (experts, "_router", DEEPSEEK_SPEC, "fused"),
    (experts, "_routed_experts", DEEPSEEK_SPEC, "fused"),
    (experts, "_gated_experts", DEEPSEEK_SPEC, "fused"),
    (experts, "_clamped_experts", GPT_OSS_SPEC, "fused"),
    (experts, "_shared_experts", DEEPSEEK_SPEC, "fused"),
    (core, "_hidden_positions", LLAMA_SPEC, "eager"),
]


@pytest.mark.parametrize(
    ("module", "block", "spec", "kernels"), MEMORY_BLOCKS, ids=[f"{b}-{k}" for _, b, _, k in MEMORY_BLOCKS]
)
def test_a_forgotten_tensor_is_found(
    module: Any, block: str, spec: Any, kernels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One byte more that a block keeps, and the peak is wrong."""
    right = getattr(module, block)
    forgotten: list[Array] = []

    def forgetful(tape: Tape, *arguments: Any, **options: Any) -> Any:
        forgotten.append(tape.new(1, 1))
        return right(tape, *arguments, **options)

    monkeypatch.setattr(module, block, forgetful)
    with pytest.raises(DisagreementError, match="peak_memory"):
        analyze(spec, Setup(sequence_length=512, kernels=kernels), step=False)


UPDATES: list[tuple[str, dict[str, Any]]] = [
    ("_adafactor", {"optimizer": "adafactor"}),
    ("_adafactor", {"optimizer": "adafactor", "precision": "bf16"}),
    ("_muon", {"optimizer": "muon"}),
    ("_update", {"optimizer": "adamw-foreach"}),
    ("_update", {"optimizer": "sgd", "precision": "bf16"}),
]


@pytest.mark.parametrize(("part", "recipe"), UPDATES, ids=[f"{part}-{'-'.join(of.values())}" for part, of in UPDATES])
def test_a_forgotten_tensor_of_an_update_is_found(
    part: str, recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = getattr(optimizer, part)

    def forgetful(tape: Tape, *arguments: Any) -> None:
        forgotten = tape.new(1, 1)
        right(tape, *arguments)
        del forgotten

    monkeypatch.setattr(optimizer, part, forgetful)
    with pytest.raises(DisagreementError, match="optimizer_step"):
        analyze(DEEPSEEK_SPEC, Setup(sequence_length=8, **recipe))


def test_a_tensor_that_clipping_forgets_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizer, "tensors", lambda spec: tensors(spec)[1:])
    with pytest.raises(DisagreementError, match="gradient_clipping"):
        analyze(DEEPSEEK_SPEC, Setup(sequence_length=8, clip_gradients=True))


OPERATIONS = [
    name
    for name, function in vars(operations).items()
    if inspect.isfunction(function) and function.__module__ == operations.__name__ and name != "first"
]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_gradient_of_another_size_is_found(operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One byte more that an operation's backward makes, and a step's memory differs from the measured one."""
    leaks: list[Array] = []

    def leaking(tape: Tape, *arguments: Any, **options: Any) -> Any:
        before = tape.position
        out = right(tape, *arguments, **options)
        for made in tape._operations[before:]:
            derive = made.derive

            def derive_and_leak(gradients: Any, derive: Any = derive) -> Any:
                leaks.append(tape.new(1, 1))
                return derive(gradients)

            made.derive = derive_and_leak
        return out

    right = getattr(operations, operation)
    cases = [
        (spec_from_fields(FAMILIES[family], "shrunken"), kernels)
        for family in ("deepseek_v3", "gpt_oss", "gemma2", "gemma4")
        for kernels in ("fused", "eager")
    ]
    runs = [(spec, setup_of(spec, kernels=kernels, loss_chunk=7)) for spec, kernels in cases]
    expected = [simulate(*run, step=True) for run in runs]
    for module in (operations, blocks, block, core, grouped_queries, latents, rotation, experts, layer, step):
        if hasattr(module, operation):
            monkeypatch.setattr(module, operation, leaking)
    assert [simulate(*run, step=True) for run in runs] != expected
