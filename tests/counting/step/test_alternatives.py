"""Variants of a step, by formula and simulation, against measured steps with these settings."""

from typing import Any

import msgspec
import pytest

from counting.analysis import Analysis, analyze
from counting.setup import MOST_CHUNKS, Setup
from counting.step.fit import Fit
from counting.step.memory import Alternative
from tests.shrunken import FAMILIES, LLAMA
from torch_models.fields.config import spec_from_fields
from torch_models.spec import ModelRecompute

LENGTH = 1100  # more than one chunk of 1,024


def alternatives_of(fields: dict[str, Any], setup: Setup) -> tuple[Alternative, ...]:
    memory = analyze(spec_from_fields(fields, "shrunken"), setup).memory
    assert memory is not None
    return memory.alternatives


def ways(alternatives: tuple[Alternative, ...]) -> set[tuple[ModelRecompute, int | None]]:
    """Of the only kernels that there are."""
    found = {(other.kernels, other.recompute, other.loss_chunk) for other in alternatives}
    assert len(found) == len(alternatives)
    assert len({kernels for kernels, _, _ in found}) == 1
    return {way[1:] for way in found}


@pytest.mark.parametrize("kernels", ["fused", "eager"])
@pytest.mark.parametrize("family", ["llama", "deepseek_v3", "gpt_oss", "gemma2"])
def test_an_alternative_is_what_a_step_run_so_measures(family: str, kernels: Any) -> None:
    check_against_measured(FAMILIES[family], Setup(sequence_length=LENGTH, kernels=kernels))


@pytest.mark.parametrize("precision", ["mixed-fp32-gradients", "bf16", "fp32", "fp8"])
def test_in_each_precision(precision: str) -> None:
    check_against_measured(FAMILIES["deepseek_v3"], Setup(sequence_length=LENGTH, precision=precision))


def test_without_mtp_and_with_another_optimiser() -> None:
    check_against_measured(FAMILIES["deepseek_v3"], Setup(sequence_length=LENGTH, mtp=False, optimizer="sgd"))


def check_against_measured(fields: dict[str, Any], setup: Setup) -> None:
    alternatives = alternatives_of(fields, setup)
    assert alternatives
    for other in alternatives:
        run_so = msgspec.structs.replace(
            setup, kernels=other.kernels, recompute=other.recompute, loss_chunk=other.loss_chunk
        )
        measured = analyze(spec_from_fields(fields, "shrunken"), run_so)
        assert measured.memory is not None
        assert measured.training is not None
        assert measured.memory.peak_bytes == other.peak_bytes, other
        assert measured.training.recomputed_flops == other.recomputed_flops, other


def test_which_alternatives_there_are() -> None:
    """Every other way but the step's own; chunks only where there is more than one."""
    setup = Setup(sequence_length=LENGTH)
    again = {("per_op", None), ("per_op", 1024), ("full", None), ("full", 1024)}
    assert ways(alternatives_of(LLAMA, setup)) == {("none", 1024), *again}
    eager = msgspec.structs.replace(setup, kernels="eager", recompute="selective")
    assert ways(alternatives_of(LLAMA, eager)) == {
        ("none", None),
        ("none", 1024),
        ("selective", 1024),
        ("full", None),
        ("full", 1024),
    }
    one_in_two = msgspec.structs.replace(setup, recompute=2)
    assert ways(alternatives_of(LLAMA, one_in_two)) == {("none", None), ("none", 1024), *again}
    once = {("per_op", None), ("full", None)}
    assert ways(alternatives_of(LLAMA, Setup(sequence_length=1024))) == once
    for chunk in (512, 1024):
        found = alternatives_of(LLAMA, Setup(sequence_length=LENGTH, loss_chunk=chunk))
        assert ways(found) == {("per_op", chunk), ("full", chunk)}
    assert ways(alternatives_of(LLAMA, Setup(sequence_length=LENGTH, loss_chunk=1050))) == {
        ("none", 1024),
        ("per_op", 1050),
        ("per_op", 1024),
        ("full", 1050),
        ("full", 1024),
    }
    found = alternatives_of(LLAMA, Setup(sequence_length=64, recompute="full"))
    assert ways(found) == {("none", None), ("per_op", None)}


def test_no_more_chunks_than_may_be() -> None:
    long = 1024 * MOST_CHUNKS + 1
    alternatives = alternatives_of(LLAMA | {"num_hidden_layers": 1}, Setup(sequence_length=long))
    again = {("per_op", None), ("per_op", 1025), ("full", None), ("full", 1025)}
    assert ways(alternatives) == {("none", 1025), *again}


def test_compiled_layers_have_the_alternatives_of_a_step_op_by_op() -> None:
    memory = analyze(
        spec_from_fields(LLAMA, "shrunken"), Setup(sequence_length=LENGTH, execution="compiled"), reserved=True
    ).memory
    assert memory is not None
    assert memory.alternatives == alternatives_of(LLAMA, Setup(sequence_length=LENGTH))


def test_alternatives_do_not_depend_on_which_layers_the_step_recomputes() -> None:
    """A step with one recomputed layer in two has layers of two kinds; that of the alternatives has one."""
    one_in_two, none = (alternatives_of(LLAMA, Setup(sequence_length=LENGTH, recompute=way)) for way in (2, "none"))
    assert set(none) <= set(one_in_two)


@pytest.mark.parametrize("kernels", ["fused", "eager"])
def test_the_cheapest_comes_first(kernels: Any) -> None:
    alternatives = alternatives_of(LLAMA, Setup(sequence_length=LENGTH, kernels=kernels))
    flops = [other.recomputed_flops for other in alternatives if other.kernels == kernels]
    assert flops == sorted(flops)
    assert len(set(flops)) == len(flops)


def test_fused_kernels_leave_selective_recompute_nothing_but_logarithms() -> None:
    """4 bytes for each head and token, and 24 of the random state, of 3 layers of 8 heads."""
    spec = spec_from_fields(LLAMA, "shrunken")
    held = []
    for recompute in ("none", "selective"):
        memory = analyze(spec, Setup(sequence_length=LENGTH, recompute=recompute)).memory
        assert memory is not None
        (loss,) = [phase for phase in memory.phases if phase.name == "head and loss"]
        held.append(loss.activations)
    assert held[0] - held[1] == 3 * (8 * 4 * LENGTH + 24)


def test_what_a_step_holds_beside_the_states() -> None:
    """The worst moment is another than the step's where the optimiser's is that one."""
    memory = analyze("llama_7b", Setup(sequence_length=2048)).memory
    assert memory is not None
    assert memory.peak_phase == "optimiser step"
    beside = [phase.activations + phase.logits_and_loss + phase.transients for phase in memory.phases]
    assert memory.beside_states_bytes == max(beside) == 10_895_794_952 > beside[-1]


def test_what_comes_and_goes_is_beside_the_states() -> None:
    """With eager kernels and all activations made again, the worst moment is within a layer's way back."""
    setup = Setup(sequence_length=4096, kernels="eager", recompute="full", loss_chunk=1024)
    memory = analyze("llama_7b", setup).memory
    assert memory is not None
    (backward,) = [phase for phase in memory.phases if phase.name == "backward of a layer"]
    assert (backward.activations, backward.logits_and_loss, backward.transients) == (68_222_984, 0, 6_694_125_568)
    assert memory.beside_states_bytes == 68_222_984 + 6_694_125_568


def test_an_analysis_has_no_fits_until_gpus_are_asked_about() -> None:
    analysis = analyze(spec_from_fields(LLAMA, "shrunken"), Setup(sequence_length=64))
    assert analysis.fits is None
    fit = Fit(
        gpu="X",
        fits=True,
        kernels="fused",
        allocated_bytes=5,
        context_bytes=2,
        needed_bytes=7,
        capacity_bytes=10,
        basis="allocated",
        remedies=(),
    )
    assert fit.spare_bytes == 3
    known = msgspec.structs.replace(analysis, fits=(fit,))
    assert msgspec.json.decode(msgspec.json.encode(known), type=Analysis) == known
