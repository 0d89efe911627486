"""The closed forms equal what is measured of a rank: every integer, stretch by stretch."""

import random
from typing import Any

import pytest
from msgspec import structs

from counting.formulas.layouts import ranks_by_formula
from counting.measurements.ranks import measure_ranks
from counting.reconcile import reconcile
from counting.setup import Setup
from tests.counting.formulas.layouts.cases import (
    DEEPSEEK,
    LLAMA,
    layout_of,
    random_setup,
    random_sharding,
    setup_of,
    shortened,
)
from tests.random_specs import divisible, random_layer, random_model, widened
from tests.shrunken import DEEPSEEK_V3, FAMILIES, WITHOUT_TP, shared_out
from tests.sweeps import seeds
from torch_models.errors import UserError
from torch_models.fields.config import spec_from_fields
from torch_models.layout import Layout
from torch_models.recomputed_layers import with_recompute
from torch_models.spec import (
    GroupedQueryAttentionSpec,
    LayerRun,
    LayerSpec,
    MixtureOfExpertsSpec,
    ModelRecompute,
    ModelSpec,
    runs_of,
)


def equal(spec: ModelSpec, setup: Setup, layout: Layout) -> None:
    """Raises `DisagreementError` if an integer of the two profiles differs; a layout that is refused is skipped."""
    try:
        measured = measure_ranks(spec, setup, layout)
    except UserError as refusal:
        pytest.skip(str(refusal))
    reconcile(spec.name, {"measured": measured, "formula": ranks_by_formula(spec, setup, layout)})


def varied(pick: random.Random, spec: ModelSpec) -> ModelSpec:
    """The same, or with layers of two kinds in random order."""
    layer, other = spec.layers[0], random_layer(pick)
    if other.hidden_size != layer.hidden_size:
        return spec
    return structs.replace(spec, layer_runs=runs_of(pick.choice([layer, other]) for _ in range(pick.randint(1, 5))))


def one_position_with_one_head(layer: LayerSpec, setup: Setup) -> bool:
    """The gradient of a sink is then a view of two numbers, and not a number of its own."""
    attention = layer.attention
    alone = isinstance(attention, GroupedQueryAttentionSpec) and attention.num_attention_heads == 1
    return alone and setup.tokens == 1


@pytest.mark.parametrize("seed", seeds(12, 250))
def test_random_models_sharded(seed: int) -> None:
    pick = random.Random(seed)
    spec = varied(pick, random_model(pick, random_layer(pick, indexers=True), seed))
    layout = random_sharding(pick)
    setup = random_setup(pick, spec, [1, 4, 7, 64])
    if any(one_position_with_one_head(layer, setup) for layer in spec.layers):
        setup = structs.replace(setup, sequence_length=4)
    equal(spec, setup, layout)


@pytest.mark.parametrize("seed", seeds(6, 120))
def test_random_models_with_tensors_divided(seed: int) -> None:
    pick = random.Random(seed)
    tp = pick.choice([2, 2, 4, 8])
    spec = random_model(pick, widened(divisible(random_layer(pick)), tp), seed)
    dp, fsdp = pick.choice([(1, 1), (1, 1), (1, 2), (1, 3), (2, 1), (2, 8)])
    layout = layout_of(
        dp=dp,
        fsdp=fsdp,
        tp=tp,
        zero=pick.choice([1, 2, 3]),
        sequence_parallel=pick.random() < 0.7,
        grouping=pick.choice(["layers", "torchtitan"]),
    )
    spec = structs.replace(spec, vocab_size=spec.vocab_size * tp)
    equal(spec, random_setup(pick, spec, [8, 16, 64]), layout)


@pytest.mark.parametrize("seed", seeds(6, 120))
def test_random_models_with_experts_divided(seed: int) -> None:
    pick = random.Random(seed)
    layer = random_layer(pick)
    while not isinstance(layer.feed_forward, MixtureOfExpertsSpec) or layer.feed_forward.router.num_experts % 2:
        layer = random_layer(pick)
    experts = layer.feed_forward.router.num_experts
    ep = pick.choice([ranks for ranks in (2, 4, 8, 16) if experts % ranks == 0])
    dp, fsdp = pick.choice([(1, ep), (1, 2 * ep), (2, ep), (ep, 1), (2 * ep, 1), (1, 8 * ep), (2, 3 * ep)])
    layout = layout_of(
        dp=dp,
        fsdp=fsdp,
        ep=ep,
        zero=pick.choice([1, 2, 3]),
        grouping=pick.choice(["layers", "torchtitan"]),
        expert_imbalance=pick.choice([1.0, 1.5]),
    )
    spec = random_model(pick, layer, seed)
    equal(spec, random_setup(pick, spec, [8, 16, 64]), layout)


@pytest.mark.parametrize(("family", "recompute"), shared_out(("per_op", "full", 2)))
def test_families(family: str, recompute: ModelRecompute) -> None:
    """Every family, sharded unevenly over replicas, with two micro-batches and recomputation."""
    spec = with_recompute(spec_from_fields(FAMILIES[family], "shrunken"), recompute)
    setup = setup_of(spec, sequence_length=24, micro_batches=2, recompute=recompute, mtp=None)
    equal(spec, setup, layout_of(dp=2, fsdp=3, grouping="torchtitan"))


PRODUCTS: dict[str, dict[str, Any]] = {
    "fsdp-tp": {"fsdp": 2, "tp": 2},
    "dp-fsdp-tp": {"dp": 2, "fsdp": 3, "tp": 2, "sequence_parallel": False},
    "fsdp-ep": {"fsdp": 4, "ep": 2},
}
DIVIDED = [family for family in FAMILIES if family not in WITHOUT_TP]
WITH_EXPERTS = [family for family, fields in FAMILIES.items() if any("expert" in name for name in fields)]


# Three neighbours are of three products.
WAYS: list[tuple[ModelRecompute, str]] = [
    (recompute, product) for recompute in ("none", "per_op", 2) for product in PRODUCTS
]


@pytest.mark.parametrize(
    ("family", "recompute", "product"),
    [
        (family, recompute, product)
        for family, (recompute, product) in shared_out(WAYS, share=len(PRODUCTS))
        if family in (WITH_EXPERTS if "ep" in product else DIVIDED)
    ],
)
def test_families_over_several_axes(family: str, recompute: ModelRecompute, product: str) -> None:
    spec = spec_from_fields(FAMILIES[family], "shrunken")
    runs = tuple(LayerRun(layer=widened(run.layer, 2), count=run.count) for run in spec.layer_runs)
    spec = structs.replace(spec, layer_runs=runs, mtp_layers=tuple(widened(layer, 2) for layer in spec.mtp_layers))
    spec = with_recompute(spec, recompute)
    setup = setup_of(spec, sequence_length=24, mtp=None, recompute=recompute)
    layout = layout_of(**PRODUCTS[product], grouping="torchtitan")
    measured, formula = measure_ranks(spec, setup, layout), ranks_by_formula(spec, setup, layout)
    reconcile(family, {"measured": measured, "formula": formula})


PRECISIONS = ("mixed", "bf16")


@pytest.mark.parametrize("grouping", ["layers", "torchtitan"])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("micro_batches", [1, 2, 3])
def test_whole_gradients_with_multi_token_prediction(grouping: Any, precision: str, micro_batches: int) -> None:
    """ZeRO 1: the head of a prediction depth is undone before that of the main model, whose group is reduced twice."""
    spec = spec_from_fields(DEEPSEEK_V3 | {"num_nextn_predict_layers": 2}, "shrunken")
    setup = setup_of(spec, sequence_length=24, micro_batches=micro_batches, precision=precision, mtp=True)
    equal(spec, setup, layout_of(fsdp=4, zero=1, grouping=grouping))


@pytest.mark.parametrize(
    ("spec", "axes"),
    [
        (shortened(LLAMA, 3), {"fsdp": 64}),
        (shortened(LLAMA, 3), {"fsdp": 4096, "zero": 2}),
        (shortened(LLAMA, 3), {"fsdp": 2, "tp": 4}),
        (shortened(DEEPSEEK, 5), {"fsdp": 2048, "ep": 64}),
    ],
    ids=["fsdp", "zero2", "fsdp-tp", "fsdp-ep"],
)
def test_published_models(spec: ModelSpec, axes: dict[str, Any]) -> None:
    """Wide layers and large vocabularies, whose peaks are at other moments than those of small ones."""
    equal(spec, setup_of(spec, sequence_length=2048, recompute="full"), layout_of(**axes, grouping="torchtitan"))
