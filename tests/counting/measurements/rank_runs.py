"""Measured steps under a layout, for the tests of ranks."""

from typing import Any, NamedTuple

import msgspec

from counting.measurements.ranks.process import measure_model
from counting.ranks.memory import rank_memory
from counting.ranks.profile import RankProfile, Traffics
from counting.ranks.result import step_traffic
from counting.ranks.shallow import Shallow, shallow
from counting.setup import Setup, resolve
from counting.step.memory import StepMemory
from torch_models.layout import Layout
from torch_models.spec import ModelSpec, runs_of


class RankRun(NamedTuple):
    """What was measured of rank 0, and its extension to the whole model."""

    profile: RankProfile
    memory: StepMemory
    traffics: Traffics


def shortened(spec: ModelSpec, layers: int) -> ModelSpec:
    """The first `layers` layers of `spec`."""
    return msgspec.structs.replace(spec, layer_runs=runs_of(spec.layers[:layers]))


def whole(spec: ModelSpec) -> Shallow:
    """A model that is not shortened: each of its layers stands for itself."""
    return Shallow(spec, tuple((index, 1) for index in range(spec.num_layers)))


def resolved(spec: ModelSpec, **fields: Any) -> Setup:
    """A resolved setup; multi-token prediction is off unless it is given."""
    return resolve(Setup(**{"mtp": False if spec.mtp_layers else None, **fields}), spec)


def layout_of(**axes: Any) -> Layout:
    """A resolved layout with these axes and one group for each layer, unless `grouping` is given."""
    layout = Layout(**{"dp": 1, "grouping": "layers", **axes})
    return msgspec.structs.replace(layout, num_gpus=layout.ranks, gpus_per_node=8)


def run_layout(model: ModelSpec | Shallow, layout: Layout, rank: int = 0, **fields: Any) -> RankRun:
    """Measure a rank of `layout`, and extend the profile to all layers of `model`."""
    if not isinstance(model, Shallow):
        model = shallow(model)
    setup = resolved(model.spec, **fields)
    assert setup.micro_batches is not None
    profile = measure_model(model, setup, layout, rank)
    memory = rank_memory(model, setup, profile, profile.shares[0], "measured")
    return RankRun(profile, memory, step_traffic(model, profile, setup.micro_batches))
