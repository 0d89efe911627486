"""Gradient clipping and the optimiser's update: against torch on real tensors of the whole model, and by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from counting.measurements.live_bytes import LiveBytes
from counting.recipes import OPTIMIZERS
from counting.step.memory import StepMemory
from tests.shrunken import DEEPSEEK_V3, FAMILIES, GEMMA2, LLAMA
from tests.witnesses import agreed, derived, measured, memory_of
from torch_models import build_training_model
from torch_models.fields.config import read_spec, spec_from_fields
from torch_models.modules.moe import RoutedExperts
from torch_models.spec import ModelSpec

IN_TORCH = [optimizer.name for optimizer in OPTIMIZERS if optimizer.measurable]
OTHERS = ("embed_tokens", "lm_head")


def trained(spec: ModelSpec, dtype: torch.dtype) -> list[tuple[str, nn.Module, nn.Parameter]]:
    """Every parameter of a real model, with random values and gradients, its name and its module."""
    torch.manual_seed(1)
    found, seen = [], set()
    model = build_training_model(spec, dtype=dtype)
    for name, parameter in model.named_parameters():
        assert parameter not in seen
        seen.add(parameter)
        parameter.grad = torch.randn_like(parameter)
        found.append((name, model.get_submodule(name.rpartition(".")[0]), parameter))
    return found


def optimizers_of(name: str, parameters: list[tuple[str, nn.Module, nn.Parameter]]) -> list[torch.optim.Optimizer]:
    """The optimisers that a user makes."""
    every = [parameter for _, _, parameter in parameters]
    if name == "adamw":
        return [torch.optim.AdamW(every, fused=True)]
    if name == "adamw-foreach":
        return [torch.optim.AdamW(every, foreach=True)]
    if name == "adafactor":
        return [torch.optim.Adafactor(every)]
    if name in ("sgd", "sgd-momentum"):
        return [torch.optim.SGD(every, momentum=0.9 if name == "sgd-momentum" else 0, foreach=False)]
    matrices: list[Tensor] = []
    others: list[Tensor] = []
    for full_name, module, parameter in parameters:
        of_experts = isinstance(module, RoutedExperts)
        if parameter.dim() == 1 + of_experts or any(part in full_name for part in OTHERS):
            others.append(parameter)
        elif of_experts:
            assert parameter.grad is not None
            for weight, gradient in zip(parameter.detach(), parameter.grad, strict=True):
                weight.grad = gradient
                matrices.append(weight)
        else:
            matrices.append(parameter)
    return [torch.optim.Muon(matrices), torch.optim.AdamW(others, fused=True)]


def moments_of(optimizers: list[torch.optim.Optimizer]) -> list[Tensor]:
    states = [state for optimizer in optimizers for state in optimizer.state.values()]
    return [x for state in states for name, x in state.items() if name != "step"]


FOUR = ["llama", "gemma2", "gpt_oss", "deepseek_v3"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", IN_TORCH)
@pytest.mark.parametrize("family", FOUR)
def test_the_update_of_a_real_model(family: str, name: str, precision: str) -> None:
    """One optimiser over all parameters of all layers: its moments, and the peak of its second step."""
    spec = spec_from_fields(FAMILIES[family] | {"num_hidden_layers": 5}, "shrunken")
    parameters = trained(spec, torch.float32 if precision == "fp32" else torch.bfloat16)
    before = [parameter.detach().clone() for _, _, parameter in parameters]
    optimizers = optimizers_of(name, parameters)
    for optimizer in optimizers:
        optimizer.step()
    for (full_name, _, parameter), old in zip(parameters, before, strict=True):
        assert precision == "bf16" or not torch.equal(parameter, old), full_name  # bf16 may round the update away
    counters = [x["step"] for optimizer in optimizers for x in optimizer.state.values() if "step" in x]
    existing = [x for _, _, p in parameters for x in (p, p.grad) if x is not None]
    with LiveBytes([*existing, *moments_of(optimizers), *counters]) as tracker:
        start = tracker.live
        tracker.watch()
        for optimizer in optimizers:
            optimizer.step()
    profile = derived(spec, precision=precision, optimizer=name).step_profile
    assert profile is not None
    assert profile.optimizer_step == tracker.peak - start
    states = memory_of(spec, measured(spec, precision=precision, optimizer=name), precision=precision).states
    assert states.moments == sum(x.untyped_storage().nbytes() for x in moments_of(optimizers))
    assert states.weights == sum(parameter.nbytes for _, _, parameter in parameters)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("family", FOUR)
def test_clipping_of_a_real_model(family: str, precision: str) -> None:
    spec = spec_from_fields(FAMILIES[family] | {"num_hidden_layers": 5}, "shrunken")
    parameters = [p for _, _, p in trained(spec, torch.float32 if precision == "fp32" else torch.bfloat16)]
    with LiveBytes([x for p in parameters for x in (p, p.grad) if x is not None]) as tracker:
        start = tracker.live
        tracker.watch()
        norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        del norm
    profile = derived(spec, precision=precision, clip_gradients=True).step_profile
    assert profile is not None
    assert profile.gradient_clipping == tracker.peak - start


# --- By hand -------------------------------------------------------------------------------------------------------


def update_of(spec: ModelSpec, **options: Any) -> StepMemory:
    return memory_of(spec, agreed(spec, **options), **options)


def transients(spec: ModelSpec, **options: Any) -> int:
    phase = update_of(spec, **options).phases[-1]
    assert phase.name == "optimiser step"
    return phase.transients


LLAMA_7B = 6_738_415_616
VOCABULARY = 32000 * 4096  # its largest tensor


def test_one_more_copy_of_the_parameters() -> None:
    """foreach: the roots of all second moments; with master weights also all gradients in fp32."""
    spec = read_spec("llama_7b")
    run: dict[str, Any] = {"optimizer": "adamw-foreach"}
    assert transients(spec, precision="bf16", **run) == 2 * LLAMA_7B
    assert transients(spec, precision="fp32", **run) == 4 * LLAMA_7B
    assert transients(spec, precision="mixed-fp32-gradients", **run) == 4 * LLAMA_7B
    assert transients(spec, precision="mixed", **run) == 8 * LLAMA_7B


@pytest.mark.parametrize("optimizer", ["adamw", "adamw-8bit", "sgd", "sgd-momentum"])
def test_in_place_but_for_converted_gradients(optimizer: str) -> None:
    spec = read_spec("llama_7b")
    assert transients(spec, precision="mixed", optimizer=optimizer) == 4 * VOCABULARY
    assert transients(spec, precision="bf16", optimizer=optimizer) == 0


def test_muon_orthogonalises_in_16_bits() -> None:
    """Of 4096 x 11008: the momentum, two copies in 16 bits, and the square of 4096 x 4096 twice."""
    spec, matrix, square = read_spec("llama_7b"), 4096 * 11008, 4096 * 4096
    assert transients(spec, precision="bf16", optimizer="muon") == 2 * matrix + 2 * 2 * (matrix + square)
    assert transients(spec, precision="fp32", optimizer="muon") == 4 * matrix + 2 * 2 * (matrix + square)
    converted = 4 * matrix
    of_matrix = converted + 4 * matrix + 2 * 2 * (matrix + square)
    assert transients(spec, precision="mixed", optimizer="muon") == max(of_matrix, 4 * VOCABULARY)


def test_adafactor_holds_the_updates_of_two_parameters() -> None:
    """Without master weights that of up is there until down's is; with them, each is freed with its gradient."""
    spec = spec_from_fields(LLAMA | {"hidden_size": 64, "intermediate_size": 1024, "vocab_size": 16}, "wide")
    matrix, sums = 64 * 1024, 64 + 1024
    vectors = 64  # the squared gradient of the norm before
    mean = 1
    assert transients(spec, precision="fp32", optimizer="adafactor") == 4 * (2 * matrix + sums + mean + vectors)
    assert transients(spec, precision="mixed", optimizer="adafactor") == 4 * (2 * matrix + sums + mean)
    assert transients(spec, precision="mixed-fp32-gradients", optimizer="adafactor") == 4 * (matrix + sums + mean)


def test_clipping_needs_two_numbers_for_each_tensor_and_one_more() -> None:
    """Llama-7B has nine tensors in each of 32 layers, embedding, norm and head: norms in the gradients' format."""
    spec = read_spec("llama_7b")
    for precision, width in (("mixed", 2), ("mixed-fp32-gradients", 4), ("fp32", 4), ("fp8", 4)):
        memory = update_of(spec, precision=precision, clip_gradients=True)
        *_, clipping, update = memory.phases
        assert (clipping.name, update.name) == ("gradient clipping", "optimiser step")
        assert clipping.transients == width * (2 * (32 * 9 + 3) + 1)
        assert clipping.gradients == memory.states.gradients
        assert clipping.optimizer_state == memory.states.masters + memory.states.moments


def test_only_the_phase_of_clipping_is_new() -> None:
    for fields in (GEMMA2, DEEPSEEK_V3):
        spec = spec_from_fields(fields, "shrunken")
        plain, clipped = update_of(spec), update_of(spec, clip_gradients=True)
        assert [phase for phase in clipped.phases if phase.name != "gradient clipping"] == list(plain.phases)
        assert len(clipped.phases) == len(plain.phases) + 1
        (note,) = set(clipped.notes) - set(plain.notes)
        assert note.startswith("Gradients are clipped")


@pytest.mark.parametrize("zero_gradients", ["none", "in_place"])
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_what_follows_backward_is_the_same_for_all_batches(micro_batches: int, zero_gradients: str) -> None:
    spec = spec_from_fields(DEEPSEEK_V3, "shrunken")
    run: dict[str, Any] = {"optimizer": "adafactor", "precision": "bf16", "clip_gradients": True}
    plain = update_of(spec, **run).phases[-2:]
    run |= {"micro_batches": micro_batches, "zero_gradients": zero_gradients}
    assert update_of(spec, **run).phases[-2:] == plain


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda optimizer: optimizer.name)
def test_the_states_say_where_they_are_from(optimizer: Any) -> None:
    spec = spec_from_fields(LLAMA, "shrunken")
    memory = update_of(spec, optimizer=optimizer.name)
    by_recipe = "activations measured = simulated, states by recipe"
    assert memory.proof == ("measured = simulated" if optimizer.measurable else by_recipe)
    assert (optimizer.note is None) or optimizer.note in memory.notes
