"""Layouts of shrunken and of published models, for the tests of the closed forms."""

import random
from typing import Any

from msgspec import structs

from counting.formulas.layouts import ranks_by_formula
from counting.ranks.profile import RankProfile, Traffics
from counting.ranks.result import RankAnalysis, rank_classes, step_traffic
from counting.ranks.shallow import shallow
from counting.setup import Setup, resolve
from torch_models.fields.config import read_spec
from torch_models.layout import Layout
from torch_models.spec import ModelSpec, runs_of

LLAMA = read_spec("llama_3_8b")
DEEPSEEK = read_spec("deepseek_v3")


def layout_of(**axes: Any) -> Layout:
    """A resolved layout with these axes, and one group for each layer unless `grouping` is given."""
    layout = Layout(**{"dp": 1, "grouping": "layers", **axes})
    return structs.replace(layout, num_gpus=layout.ranks, gpus_per_node=8)


def shortened(spec: ModelSpec, layers: int) -> ModelSpec:
    """The first `layers` layers of `spec`."""
    return structs.replace(spec, layer_runs=runs_of(spec.layers[:layers]))


def setup_of(spec: ModelSpec, **fields: Any) -> Setup:
    """A resolved setup, without multi-token prediction unless it is given."""
    return resolve(Setup(**{"mtp": False if spec.mtp_layers else None, **fields}), spec)


def first_class(spec: ModelSpec, layout: Layout, **fields: Any) -> RankAnalysis:
    """The first class of ranks, from the closed forms, extended to all layers."""
    setup = setup_of(spec, **fields)
    return rank_classes(shallow(spec), setup, ranks_by_formula(spec, setup, layout), "formula")[0]


def traffic_of(spec: ModelSpec, setup: Setup, profile: RankProfile) -> Traffics:
    """The traffic of a step of all layers."""
    assert setup.micro_batches is not None
    return step_traffic(shallow(spec), profile, setup.micro_batches)


def random_setup(pick: random.Random, spec: ModelSpec, lengths: list[int]) -> Setup:
    """A resolved setup of a short step."""
    length, sequences = pick.choice(lengths), pick.choice([1, 2])
    return resolve(
        Setup(
            sequence_length=length,
            micro_batch_size=sequences,
            micro_batches=pick.choice([1, 1, 2, 3, 5]),
            kernels=pick.choice(["fused", "fused", "eager"]),
            recompute=pick.choice(["none", "selective", "per_op", "full"]),
            precision=pick.choice(["mixed", "mixed", "mixed-fp32-gradients", "bf16", "fp32"]),
            optimizer=pick.choice(["adamw", "adamw-foreach", "sgd", "sgd-momentum"]),
            loss_chunk=pick.choice([None, None, length * sequences // 3 + 1]),  # a few chunks, the last one shorter
            mtp=pick.choice([None, False]),
            clip_gradients=pick.random() < 0.3,
        ),
        spec,
    )


def random_sharding(pick: random.Random) -> Layout:
    """A layout of dp, fsdp and zero alone."""
    dp, fsdp = pick.choice([(1, 2), (1, 3), (1, 8), (1, 100), (1, 4096), (2, 1), (3, 1), (2, 2), (2, 8), (4, 100)])
    return layout_of(dp=dp, fsdp=fsdp, zero=pick.choice([1, 2, 3, 3]), grouping=pick.choice(["layers", "torchtitan"]))
