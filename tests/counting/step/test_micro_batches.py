"""Several sequences in a micro-batch, several micro-batches in a step: the witnesses, and torch's own tracker."""

import itertools
import random
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch.distributed._tools.mem_tracker import MemTracker

from counting.analysis import analyze
from counting.measurements.live_bytes import LiveBytes
from counting.measurements.meta_device import measuring
from counting.setup import Setup
from tests.random_specs import random_layer, random_model
from tests.shrunken import DEEPSEEK_V3, FAMILIES
from tests.sweeps import seeds
from tests.witnesses import agreed, derived, memory_of, setup_of
from torch_models import build_training_model, set_recompute
from torch_models.fields.config import read_spec, spec_from_fields

KERNELS = ("fused", "eager")
RECOMPUTES = ("none", "selective", "full")
PRECISIONS = ("mixed", "mixed-fp32-gradients", "bf16", "fp8", "fp32")

BATCHES: list[dict[str, Any]] = [
    {"micro_batch_size": 3},
    {"micro_batches": 2},
    {"micro_batch_size": 2, "micro_batches": 3, "loss_chunk": 31},
    {"zero_gradients": "in_place"},
    {"micro_batch_size": 2, "micro_batches": 2, "zero_gradients": "in_place"},
]


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("family", FAMILIES)
def test_measured_is_formula_is_simulation(family: str, kernels: str) -> None:
    """Three of the batches for each; the families share out batches, precisions and recomputations."""
    spec = spec_from_fields(FAMILIES[family], "shrunken")
    first = list(FAMILIES).index(family)
    ways = itertools.cycle(zip(BATCHES * 3, PRECISIONS * 3, RECOMPUTES * 5, strict=True))
    for batch, precision, recompute in itertools.islice(ways, 4 * first, 4 * first + 3):
        agreed(spec, kernels=kernels, recompute=recompute, precision=precision, **batch)


@pytest.mark.parametrize("seed", seeds(10, 200))
def test_models_of_random_shape(seed: int) -> None:
    pick = random.Random(seed)
    agreed(
        random_model(pick, random_layer(pick, indexers=True), seed),
        sequence_length=pick.choice([1, 2, 7, 64]),
        micro_batch_size=pick.choice([1, 2, 5]),
        micro_batches=pick.choice([1, 2, 7]),
        zero_gradients=pick.choice(["none", "in_place"]),
        kernels=pick.choice(KERNELS),
        recompute=pick.choice(RECOMPUTES),
        precision=pick.choice(PRECISIONS),
        loss_chunk=pick.choice([None, 3]),
    )


# --- FLOPs -------------------------------------------------------------------------------------------------------


def test_flops_of_a_step_are_those_of_its_micro_batches() -> None:
    """Attention's square is of each sequence: four sequences of 16 tokens are no sequence of 64."""
    spec = spec_from_fields(DEEPSEEK_V3, "shrunken")
    one = analyze(spec, Setup(sequence_length=16))
    batch = analyze(spec, Setup(sequence_length=16, micro_batch_size=4))
    step = analyze(spec, Setup(sequence_length=16, micro_batch_size=4, micro_batches=5))
    long = analyze(spec, Setup(sequence_length=64))
    assert batch.forward_flops == step.forward_flops == 4 * one.forward_flops < long.forward_flops
    assert step.model_flops == 3 * 5 * step.forward_flops
    assert one.training is not None
    assert step.training is not None
    for field in ("model_flops", "hardware_flops", "recomputed_flops", "flash_backward_extra_flops"):
        assert getattr(step.training, field) == 20 * getattr(one.training, field)
    for field in ("model_flops_per_token", "model_flops_causal_per_token", "hardware_flops_per_token"):
        assert getattr(step.training, field) == getattr(one.training, field)


# --- Memory ------------------------------------------------------------------------------------------------------


def test_gradients_of_the_first_are_there_during_the_second() -> None:
    """The loss is the worst moment of Llama-3.2-1B at 1,024 tokens, and no gradient is there in the first one's."""
    spec = read_spec("llama_3_2_1b")
    run = {"sequence_length": 1024, "kernels": "eager", "precision": "bf16"}
    one, two, many, kept = (
        memory_of(spec, derived(spec, **run, **more), **run, **more)
        for more in ({}, {"micro_batches": 2}, {"micro_batches": 9}, {"zero_gradients": "in_place"})
    )
    assert one.peak_bytes == 14_125_006_856
    assert two.peak_bytes == many.peak_bytes == kept.peak_bytes == 14_125_006_856 + 2 * 1_235_814_400
    assert one.peak_phase == two.peak_phase == "head and loss"
    assert [phase.micro_batch for phase in one.phases] == [0, 0, 0, 0, None]
    assert [phase.micro_batch for phase in two.phases] == [1, 1, 1, 1, None]
    assert [phase.micro_batch for phase in kept.phases] == [0, 0, 0, 0, None]
    assert one.phases[0].gradients == 0
    assert {phase.gradients for phase in two.phases} == {2 * 1_235_814_400}
    assert one.phases[-1] == two.phases[-1]


def test_gradients_apart_do_not_care_for_micro_batches() -> None:
    """Their buffers are there from the start; only the loss of the micro-batch before is more, 4 bytes."""
    spec = read_spec("llama_7b")
    run = {"precision": "mixed-fp32-gradients"}
    one, two = (memory_of(spec, derived(spec, micro_batches=n, **run), **run, micro_batches=n) for n in (1, 2))
    assert [after.peak_bytes - before.peak_bytes for before, after in zip(one.phases, two.phases, strict=True)] == [
        4,
        0,
        0,
        0,
        0,
    ]


@pytest.mark.parametrize("zero_gradients", ["none", "in_place"])
@pytest.mark.parametrize("precision", ["mixed", "mixed-fp32-gradients"])
@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("family", ["llama", "deepseek_v3", "gpt_oss", "gemma2"])
def test_a_step_that_is_not_cut(family: str, kernels: Any, precision: str, zero_gradients: str) -> None:
    """The whole model on meta, every layer and three micro-batches one after the other: the same worst moment."""
    spec = spec_from_fields(FAMILIES[family] | {"num_hidden_layers": 4}, "shrunken")
    run: dict[str, Any] = {
        "sequence_length": 40,
        "micro_batch_size": 2,
        "micro_batches": 3,
        "kernels": kernels,
        "precision": precision,
        "zero_gradients": zero_gradients,
        "recompute": "selective",
    }
    extended, setup = memory_of(spec, derived(spec, **run), **run), setup_of(spec, **run)
    how: Any = {"device": "meta", "dtype": torch.bfloat16, "kernels": kernels}
    model = build_training_model(spec, **how)
    set_recompute(model, "selective")
    parameters = list(model.parameters())
    apart = setup.precision_recipe.gradients_apart
    for parameter in parameters:
        if apart:
            parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
        elif zero_gradients == "in_place":
            parameter.grad = torch.empty_like(parameter)
    token_ids, labels = (torch.empty(2, 40, dtype=torch.long, device="meta") for _ in range(2))
    tables = model.model.rotary_tables(token_ids)
    held = [*parameters, *model.buffers(), token_ids, labels]
    held += [table for pair in tables for table in pair] + [p.grad for p in parameters if p.grad is not None]
    with measuring(), LiveBytes(held) as tracker:
        for _ in range(3):
            loss = model(token_ids, labels, tables=tables)
            loss.backward()
    states = extended.states
    beside = states.masters + states.moments + (states.gradients if apart else 0)
    assert max(phase.peak_bytes for phase in extended.phases[:-1]) == tracker.peak + beside


# --- torch's own tracker -----------------------------------------------------------------------------------------


def tracked_peaks(config: str, run: Mapping[str, Any]) -> tuple[int, int]:
    """Peak bytes by torch's MemTracker after one micro-batch and after two, without the update; all layers, on meta.

    The states are there from the start; AdamW's step counters, which are on the CPU, are not in the figure.
    """
    model = build_training_model(config, device="meta", dtype=torch.bfloat16, kernels=run["kernels"], mtp=False)
    set_recompute(model, run["recompute"])
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()  # makes its states
    optimizer.zero_grad()
    shape = (run["micro_batch_size"], run["sequence_length"])
    token_ids, labels = (torch.empty(*shape, dtype=torch.long, device="meta") for _ in range(2))
    tables = model.model.rotary_tables(token_ids)
    tracker = MemTracker()
    tracker.track_external(model, optimizer, token_ids, labels, *(table for pair in tables for table in pair))
    peaks = []
    with measuring(), tracker:
        for _ in range(2):
            tracker.reset_mod_stats()
            loss = model(token_ids, labels, tables=tables)
            loss.backward()
            peaks.append(tracker.get_tracker_snapshot("peak")[torch.device("meta")]["Total"])
    return peaks[0], peaks[1]


@pytest.mark.parametrize(
    ("config", "changes", "peaks"),
    [
        ("llama_3_2_1b", {}, (14_125_006_856, 16_596_635_656)),
        ("llama_3_2_1b", {"micro_batch_size": 2, "recompute": "full", "kernels": "fused"}, None),
        pytest.param("llama_3_2_1b", {"micro_batch_size": 3, "recompute": "selective"}, None, marks=pytest.mark.sweep),
        pytest.param("smollm2_135m", {}, None, marks=pytest.mark.sweep),  # half a minute each
        pytest.param("smollm2_135m", {"micro_batch_size": 4, "kernels": "fused"}, None, marks=pytest.mark.sweep),
        pytest.param("llama_3_8b", {}, None, marks=pytest.mark.sweep),
    ],
)
def test_torch_s_tracker_says_the_same(config: str, changes: dict[str, Any], peaks: tuple[int, int] | None) -> None:
    spec = read_spec(config)
    run = {
        "sequence_length": 1024,
        "micro_batch_size": 1,
        "kernels": "eager",
        "recompute": "none",
        "precision": "bf16",
        **changes,
    }
    memories = [memory_of(spec, derived(spec, **run, micro_batches=n), **run, micro_batches=n) for n in (1, 2)]
    ours = tuple(
        max(phase.peak_bytes for phase in memory.phases if phase.micro_batch is not None) for memory in memories
    )
    assert tracked_peaks(config, run) == ours
    assert peaks in (None, ours)
