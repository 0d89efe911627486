"""Simulated memory of a rank equals measured memory after every operation: tensor, context, expert parallelism."""

import random

import pytest
from msgspec import structs

from counting.setup import Setup, resolve
from tests.counting.formulas.memory.rank_curves import measured_curve, simulated_curve
from tests.random_specs import random_division, widened
from tests.shrunken import FAMILIES, WITHOUT_TP, shared_out
from tests.sweeps import seeds
from torch_models.fields.config import spec_from_fields
from torch_models.layout import Layout
from torch_models.spec import MixtureOfExpertsSpec, ModelSpec, Recompute, runs_of

RECOMPUTES: list[Recompute] = ["none", "selective", "per_op", "full"]


def one_of_each_layer(spec: ModelSpec) -> ModelSpec:
    return structs.replace(spec, layer_runs=runs_of(layer for layer, _ in spec.layer_groups()))


@pytest.mark.parametrize("seed", seeds(24, 400))
def test_random_models(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pick = random.Random(seed)
    spec, layout = random_division(pick, seed)
    spec = one_of_each_layer(spec)
    setup = resolve(
        Setup(
            sequence_length=layout.tp * pick.choice([1, 2, 7, 16]),
            micro_batch_size=pick.choice([1, 1, 2, 3]),
            micro_batches=1 if layout.ep > 1 else pick.choice([1, 2]),  # later ones depend on fully_shard
            recompute=pick.choice(RECOMPUTES),
            precision=pick.choice(["bf16", "fp32"]),
            kernels=pick.choice(["fused", "eager"]),
            loss_chunk=pick.choice([None, None, 7]),
        ),
        spec,
    )
    assert simulated_curve(spec, setup, layout, monkeypatch) == measured_curve(spec, setup, layout)


@pytest.mark.parametrize(("family", "recompute"), shared_out(RECOMPUTES, share=2))
def test_families_over_two_ranks(family: str, recompute: Recompute, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = one_of_each_layer(spec_from_fields(FAMILIES[family], "shrunken"))
    runs = runs_of(widened(layer, 2) for layer in spec.layers)
    spec = structs.replace(spec, layer_runs=runs, mtp_layers=tuple(widened(layer, 2) for layer in spec.mtp_layers))
    # In other recipes fully_shard converts the inputs of experts.
    setup = resolve(Setup(sequence_length=24, recompute=recompute, micro_batch_size=2, precision="bf16"), spec)
    layouts = [] if family in WITHOUT_TP else [Layout(num_gpus=2, dp=1, tp=2)]
    if any(isinstance(layer.feed_forward, MixtureOfExpertsSpec) for layer in spec.layers):
        layouts.append(Layout(num_gpus=2, dp=1, fsdp=2, ep=2))
    for layout in layouts:
        assert simulated_curve(spec, setup, layout, monkeypatch) == measured_curve(spec, setup, layout)


@pytest.mark.parametrize(
    ("family", "ranks", "recompute"),
    [("llama", 3, "none"), ("llama", 2, "per_op"), ("qwen3", 2, "selective"), ("deepseek_v3", 3, "full")],
)
def test_ring_attention(family: str, ranks: int, recompute: Recompute, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every rank of cp; each of the two kinds of kernels merges other sums of exponents."""
    spec = one_of_each_layer(spec_from_fields(FAMILIES[family], "shrunken"))
    setup = resolve(
        Setup(sequence_length=64 * ranks, micro_batch_size=2, precision="bf16", recompute=recompute, loss_chunk=50),
        spec,
    )
    layout = Layout(num_gpus=ranks, dp=1, cp=ranks)
    for rank in range(ranks):
        simulated = simulated_curve(spec, setup, layout, monkeypatch, rank)
        assert simulated == measured_curve(spec, setup, layout, rank)
