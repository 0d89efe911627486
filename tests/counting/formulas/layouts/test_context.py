"""Ranks of context parallelism: golden figures, sums by hand, and what is measured of each rank."""

import random
from typing import Any

import pytest
from msgspec import structs

from counting.formulas.flops import attention_core, training_flops
from counting.formulas.layouts import rank_cost, ranks_by_formula
from counting.formulas.layouts.search import distinct_context_ranks
from counting.measurements.ranks import measure_ranks
from counting.measurements.ranks.process import measure_model
from counting.ranks.profile import RankProfile
from counting.ranks.result import RankAnalysis, RankCollective, rank_classes
from counting.ranks.shallow import shallow
from counting.reconcile import reconcile
from counting.setup import Setup
from tests.counting.formulas.layouts.cases import (
    DEEPSEEK,
    LLAMA,
    first_class,
    layout_of,
    random_setup,
    setup_of,
    shortened,
)
from tests.random_specs import random_layer, random_model, widened
from tests.shrunken import FAMILIES
from tests.sweeps import seeds
from torch_models.fields.config import spec_from_fields
from torch_models.layout import Layout
from torch_models.parallel.checks import without_ring_attention
from torch_models.recomputed_layers import with_recompute
from torch_models.spec import (
    GroupedQueryAttentionSpec,
    LayerSpec,
    MixtureOfExpertsSpec,
    ModelSpec,
    runs_of,
)


def called(of: RankAnalysis, phase: str, operation: str, axis: str) -> RankCollective:
    """The only collective of this kind."""
    (found,) = (each for each in of.collectives if (each.phase, each.op, each.axis) == (phase, operation, axis))
    return found


def attention_flops(spec: ModelSpec, layout: Layout, length: int) -> tuple[int, int]:
    """FLOPs of the cores of attention in one forward pass of a rank, as the kernels are called, and those skipped."""
    setup = setup_of(spec, sequence_length=length)
    found = ranks_by_formula(spec, setup, layout).flops
    projections = sum(
        training_flops(spec, setup).forward.attention - attention_core(layer.attention, length, 1).as_run * count
        for layer, count in spec.layer_groups()
    )
    assert len(spec.layer_groups()) == 1
    return found.forward.attention - projections // layout.cp, found.skipped_by_causality.attention


# --- Golden figures --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context_rank", range(4))
def test_two_layers_on_four_ranks(context_rank: int) -> None:
    """Llama-3-8B at 8,192 tokens: a rank has 2,048 positions with 2 x 8 x 128 numbers of keys and values each.

    A layer gathers 2 x 8,192 x 2,048 = 33,554,432 bytes, and passes 4 x 2,048 x 2,048 bytes on four times. The full
    square is 4 x 8,192^2 x 4,096 FLOPs, of which a rank computes 5 / 32 in each of the two layers.
    """
    spec, layout = shortened(LLAMA, 2), layout_of(cp=4)
    setup = setup_of(spec, sequence_length=8192)
    profile = ranks_by_formula(spec, setup, layout, context_rank)
    (found, *_) = rank_classes(shallow(spec), setup, profile, "formula")
    gathered = called(found, "forward", "all_gather", "cp")
    again = called(found, "backward", "all_gather", "cp")
    passed = called(found, "backward", "all_to_all", "cp")
    assert (gathered.count, gathered.bytes_in, gathered.bytes_out) == (2, 16_777_216, 67_108_864)
    assert (again.count, again.bytes_in, again.bytes_out) == (2, 16_777_216, 67_108_864)
    assert (passed.count, passed.bytes_in, passed.bytes_out) == (8, 134_217_728, 134_217_728)
    assert attention_flops(spec, layout, 8192)[0] == 343_597_383_680


@pytest.mark.parametrize("context_rank", [0, 1, 3])
def test_what_a_layer_keeps_by_hand(context_rank: int) -> None:
    """As of 2,048 tokens on one device; all ranks but the last keep the output of attention in two orders."""
    inputs_and_norms = 4 * (2 * 2048 * 4096) + 2 * (4 * 2048)
    queries_and_output = 2 * (2 * 2048 * 4096)
    keys_and_values = 2 * (2 * 2048 * 1024)
    core = 4 * 32 * 2048 + 24
    mlp = 4 * (2 * 2048 * 14_336)
    in_token_order = 2 * 2048 * 4096 if context_rank < 3 else 0
    profile = ranks_by_formula(LLAMA, setup_of(LLAMA, sequence_length=8192), layout_of(cp=4), context_rank)
    held = inputs_and_norms + queries_and_output + keys_and_values + core + mlp + in_token_order
    assert [layer.held for layer in profile.layers] == [held] * len(profile.layers)


def test_latent_keys_and_values_by_hand() -> None:
    """DeepSeek-V3, cp 2, 4,096 tokens: of each of 2,048 positions 128 heads have keys of 192 and values of 128."""
    spec = shortened(DEEPSEEK, 2)
    found = first_class(spec, layout_of(cp=2), sequence_length=4096)
    numbers = 2048 * 128 * (192 + 128)
    gathered = called(found, "forward", "all_gather", "cp")
    passed = called(found, "backward", "all_to_all", "cp")
    assert (gathered.count, gathered.bytes_in, gathered.bytes_out) == (2, 2 * 2 * numbers, 2 * 2 * 2 * numbers)
    assert (passed.count, passed.bytes_in, passed.bytes_out) == (4, 4 * 4 * numbers, 4 * 4 * numbers)


@pytest.mark.parametrize("cp", [2, 3, 4, 16])
def test_flops_of_the_full_square(cp: int) -> None:
    """A rank computes (c + 1) / (2 c^2) of the full square, and skips the rest of its share, 1 / c."""
    spec, length = shortened(LLAMA, 2), 2 * 480
    computed, skipped = attention_flops(spec, layout_of(cp=cp), length)
    square = 2 * attention_core(spec.layers[0].attention, length, 1).as_run
    assert computed * 2 * cp**2 == square * (cp + 1)
    assert (computed + skipped) * cp == square


@pytest.mark.parametrize("recompute", ["none", "selective", "per_op", "full"])
@pytest.mark.parametrize("axes", [{"cp": 4}, {"cp": 2, "fsdp": 3}, {"cp": 2, "dp": 2, "ep": 4}], ids=str)
def test_ranks_add_up_to_the_undivided_model(axes: dict[str, Any], recompute: str) -> None:
    """But for what causality skips, and the blocks of backward and recomputation that go with it."""
    layout = layout_of(**axes)
    setup = setup_of(DEEPSEEK, sequence_length=4096, recompute=recompute, mtp=True)
    of_rank, undivided = ranks_by_formula(DEEPSEEK, setup, layout).flops, training_flops(DEEPSEEK, setup)
    cp, skipped = layout.cp, of_rank.skipped_by_causality
    assert of_rank.full_forward * cp == undivided.forward
    assert (of_rank.model, of_rank.forward + skipped) == (undivided.model // cp, of_rank.full_forward)
    cores = recompute in ("selective", "full")
    assert (of_rank.recomputed + skipped * cores) * cp == undivided.recomputed
    # Of 320 channels in forward there are 3 x 192 + 2 x 128 = 832 in backward.
    assert (of_rank.backward.attention * 320 + skipped.attention * 832) * cp == undivided.backward.attention * 320


# --- Which ranks differ ----------------------------------------------------------------------------------------------

CONTEXTS: list[dict[str, Any]] = [
    {},
    {"recompute": "full", "micro_batch_size": 2},
    {"recompute": "selective", "precision": "bf16"},
    {"recompute": "per_op", "precision": "fp32"},
]


@pytest.mark.parametrize("fields", CONTEXTS, ids=str)
@pytest.mark.parametrize("family", ["llama", "deepseek_v3"])
def test_ranks_between_first_and_last_are_alike(family: str, fields: dict[str, Any]) -> None:
    """And those of a kind hold, at their peak, no less than the first or the last."""
    spec = spec_from_fields(FAMILIES[family], "shrunken")
    layout, setup = layout_of(cp=6), setup_of(spec, **{"sequence_length": 384} | fields)
    profiles = [ranks_by_formula(spec, setup, layout, rank) for rank in range(6)]
    passes = [structs.replace(each, context_rank=0) for each in profiles]
    assert distinct_context_ranks(layout) == (0, 1, 5)
    assert passes[1] == passes[2] == passes[3] == passes[4]
    peaks = [rank_classes(shallow(spec), setup, each, "formula")[0].memory.peak_bytes for each in profiles]
    assert max(peaks) == peaks[1] == rank_cost(spec, setup, layout).peak_bytes
    assert ranks_by_formula(spec, setup, layout).context_rank == peaks.index(max(peaks))


def test_first_last_and_those_between_differ() -> None:
    spec = spec_from_fields(FAMILIES["llama"], "shrunken")
    layout, setup = layout_of(cp=3), setup_of(spec, sequence_length=192)
    profiles = [ranks_by_formula(spec, setup, layout, rank) for rank in range(3)]
    first, between, last = (structs.replace(each, context_rank=0) for each in profiles)
    assert first != between
    assert between != last
    assert last != first


def test_two_ranks_have_none_between() -> None:
    assert distinct_context_ranks(layout_of(cp=2)) == (0, 1)
    assert distinct_context_ranks(layout_of()) == (0,)


# --- What is measured ------------------------------------------------------------------------------------------------


def passes_of(profile: RankProfile) -> list[Any]:
    """All that depends on the place of a rank in cp, and what is equal on all."""
    return [
        profile.context_rank,
        [layer.held for layer in profile.layers],
        profile.inputs,
        profile.first_micro_batch,
        profile.middle_micro_batch,
        profile.last_micro_batch,
        profile.flops,
        profile.shares,
    ]


def every_rank_is_as_measured(spec: ModelSpec, setup: Setup, layout: Layout) -> None:
    for rank in range(layout.cp):
        measured = measure_model(shallow(spec), setup, layout, rank * layout.tp)
        assert passes_of(ranks_by_formula(spec, setup, layout, rank)) == passes_of(measured)


PRODUCTS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"cp": 3}),
    ("qwen3", {"cp": 2, "fsdp": 2, "zero": 1}),
    ("olmo2", {"cp": 2, "dp": 2, "tp": 2}),
    ("gpt2", {"cp": 2, "dp": 2, "tp": 2}),
    ("mixtral", {"cp": 2, "fsdp": 2, "ep": 2}),
    ("deepseek_v3", {"cp": 2, "tp": 2}),
    ("glm4_moe", {"cp": 2, "fsdp": 2, "ep": 4}),
]


@pytest.mark.parametrize(("family", "axes"), PRODUCTS, ids=str)
def test_families(family: str, axes: dict[str, Any]) -> None:
    spec = spec_from_fields(FAMILIES[family], "shrunken")
    spec = wider(spec, 2)
    setup = setup_of(spec, sequence_length=64 * axes["cp"], mtp=None, micro_batches=2, micro_batch_size=2)
    layout = layout_of(**axes, grouping="torchtitan")
    measured, formula = measure_ranks(spec, setup, layout), ranks_by_formula(spec, setup, layout)
    reconcile(family, {"measured": measured, "formula": formula})
    assert formula.context_rank == measured.context_rank


@pytest.mark.parametrize(
    ("family", "recompute"),
    [("llama", "selective"), ("llama", "per_op"), ("llama", 2), ("deepseek_v3", "per_op"), ("deepseek_v3", "full")],
)
def test_recomputation(family: str, recompute: Any) -> None:
    spec = with_recompute(spec_from_fields(FAMILIES[family], "shrunken"), recompute)
    setup = setup_of(spec, sequence_length=128, mtp=None, recompute=recompute, loss_chunk=40)
    every_rank_is_as_measured(spec, setup, layout_of(cp=2))


@pytest.mark.parametrize("seed", seeds(6, 150))
def test_random_models(seed: int) -> None:
    pick = random.Random(seed)
    cp, tp = pick.choice([2, 2, 3, 4]), pick.choice([1, 1, 2])
    layer = random_layer(pick)
    while not has_ring(layer):
        layer = random_layer(pick)
    spec = random_model(pick, widened(layer, tp), seed)
    spec = structs.replace(spec, vocab_size=spec.vocab_size * tp)
    dp, fsdp = pick.choice([(1, 1), (1, 2), (2, 1), (2, 3)])
    divides = isinstance(mixture := layer.feed_forward, MixtureOfExpertsSpec) and mixture.router.num_experts % cp == 0
    layout = layout_of(
        dp=dp,
        fsdp=fsdp,
        cp=cp,
        tp=tp,
        ep=cp if divides and tp == 1 else 1,
        zero=pick.choice([1, 2, 3]),
        sequence_parallel=pick.random() < 0.7,
        grouping=pick.choice(["layers", "torchtitan"]),
    )
    every_rank_is_as_measured(spec, fused(random_setup(pick, spec, [64 * cp, 128 * cp])), layout)


def has_ring(layer: LayerSpec) -> bool:
    """Whether torch's ring attention has what attention is made of."""
    return without_ring_attention(layer) is None


def fused(setup: Setup) -> Setup:
    return structs.replace(setup, kernels="fused")


def wider(spec: ModelSpec, ranks: int) -> ModelSpec:
    runs = runs_of(widened(layer, ranks) for layer in spec.layers)
    return structs.replace(spec, layer_runs=runs, mtp_layers=tuple(widened(each, ranks) for each in spec.mtp_layers))


@pytest.mark.parametrize(("heads", "key_heads", "sequences"), [(1, 1, 1), (1, 1, 2), (4, 1, 1), (4, 4, 2)])
def test_few_heads(heads: int, key_heads: int, sequences: int) -> None:
    """Positions of one head are in the same order by head and by token."""
    spec = spec_from_fields(FAMILIES["llama"], "shrunken")
    layer = spec.layers[0]
    assert isinstance(layer.attention, GroupedQueryAttentionSpec)
    attention = structs.replace(layer.attention, num_attention_heads=heads, num_key_value_heads=key_heads)
    spec = structs.replace(spec, layer_runs=runs_of([structs.replace(layer, attention=attention)]))
    every_rank_is_as_measured(spec, setup_of(spec, sequence_length=12, micro_batch_size=sequences), layout_of(cp=3))
