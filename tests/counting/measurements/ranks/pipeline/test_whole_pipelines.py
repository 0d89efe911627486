"""The profiles of a pipeline, of few layers and micro-batches, against whole stages under torch's schedules on meta.

Every pass of every rank is compared: the most bytes that are alive during it.
"""

from typing import Any

import pytest

from counting.measurements.ranks import measure_pipeline
from counting.ranks.pipeline import PipelineProfile
from counting.ranks.profile import Traffics
from tests.counting.measurements.rank_runs import layout_of, resolved, shortened
from tests.counting.measurements.ranks.pipeline.pipeline_runs import composed_moments, run_whole
from tests.shrunken import FAMILIES
from torch_models.fields.config import read_spec, spec_from_fields
from torch_models.recomputed_layers import with_recompute
from torch_models.stages import stages_of

# Family, axes, settings of the step.
SMALL: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("llama", {"pp": 3}, {}),
    ("llama", {"pp": 2, "fsdp": 2, "schedule": "interleaved"}, {}),
    ("mixtral", {"pp": 2, "fsdp": 2, "ep": 2, "schedule": "dualpipev"}, {"recompute": "full", "clip_gradients": True}),
]
MATRIX: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("llama", {"pp": 4, "schedule": "gpipe"}, {}),
    ("llama", {"pp": 3}, {"precision": "mixed-fp32-gradients"}),
    ("llama", {"pp": 2, "dp": 2, "schedule": "interleaved", "stages_per_rank": 4}, {}),
    ("llama", {"pp": 2, "fsdp": 2, "tp": 2, "schedule": "dualpipev"}, {"clip_gradients": True}),
    ("olmo2", {"pp": 2, "tp": 2, "schedule": "dualpipev"}, {"recompute": 2}),
    ("gpt_oss", {"pp": 2, "fsdp": 2, "schedule": "zb"}, {"recompute": "selective"}),
    ("llama", {"pp": 2, "fsdp": 2, "schedule": "zb", "grouping": "layers"}, {}),
    ("llama", {"pp": 2, "fsdp": 2, "schedule": "zbv"}, {"precision": "fp32"}),
    ("llama", {"pp": 2, "schedule": "zbv"}, {"recompute": "full"}),
    ("mixtral", {"pp": 2, "dp": 2, "fsdp": 2, "ep": 2, "schedule": "dualpipev"}, {"loss_chunk": 16}),
    ("deepseek_v3", {"pp": 2, "fsdp": 2, "ep": 2, "schedule": "dualpipev"}, {"recompute": "full", "mtp": True}),
    ("deepseek_v3", {"pp": 4, "fsdp": 2, "ep": 2, "schedule": "dualpipev"}, {"mtp": True}),
    ("deepseek_v3", {"pp": 2}, {"recompute": "full", "mtp": True, "clip_gradients": True}),
]


def compare(family: str, axes: dict[str, Any], run: dict[str, Any], micro_batches: int, steps: int = 1) -> None:
    layout = layout_of(**{"grouping": "torchtitan", **axes})
    spec = spec_from_fields(FAMILIES[family] | {"num_hidden_layers": 9}, family)
    setup = resolved(spec, sequence_length=32, micro_batches=micro_batches, **run)
    spec = with_recompute(spec, setup.recompute)
    for profile in measure_pipeline(spec, setup, layout):
        whole = run_whole(spec, setup, layout, profile.pipeline_rank * layout.ranks_of_stage, steps)
        moments, most = composed_moments(profile, stages_of(spec, layout), micro_batches - profile.micro_batches_run)
        assert whole.peak == most
        assert whole.clipping == profile.gradient_clipping
        if profile.micro_batches_run == micro_batches:
            assert whole.moments == moments
        else:
            assert len(whole.moments) > len(moments)


@pytest.mark.parametrize(("family", "axes", "run"), SMALL)
def test_whole_stages(family: str, axes: dict[str, Any], run: dict[str, Any]) -> None:
    compare(family, axes, run, micro_batches=2 * axes["pp"])


def test_further_micro_batches_and_a_second_step() -> None:
    """Those beyond a steady round are extended; and a step finds what the one before has left."""
    compare("llama", {"pp": 2}, {}, micro_batches=9, steps=2)


@pytest.mark.sweep
@pytest.mark.parametrize("times", [2, 6])
@pytest.mark.parametrize(("family", "axes", "run"), MATRIX)
def test_whole_stages_everywhere(family: str, axes: dict[str, Any], run: dict[str, Any], times: int) -> None:
    compare(family, axes, run, micro_batches=times * axes["pp"], steps=2)


# --- Golden numbers: Llama 3 8B, 4 stages, 1F1B, sequences of 2,048 ---------------------------------------------------


def _golden(layers: int, micro_batches: int) -> tuple[PipelineProfile, ...]:
    spec = shortened(read_spec("llama_3_8b"), layers)
    layout = layout_of(pp=4)
    return measure_pipeline(spec, resolved(spec, sequence_length=2048, micro_batches=micro_batches), layout)


def test_golden_micro_batches_in_flight() -> None:
    """A stage has p - rank micro-batches between forward and backward."""
    for profile in _golden(8, 8):
        most = now = 0
        for action in profile.actions:
            now += {"forward": 1, "backward": -1}[action.kind]
            most = max(most, now)
        assert most == 4 - profile.pipeline_rank


def test_golden_layer_in_flight() -> None:
    """One micro-batch more of one layer more keeps 344,211,480 bytes.

    T = 2,048 tokens in 16 bits: the stream before each block and its norm, queries and the heads' output, 6 x 4,096;
    keys and values 2 x 1,024; gate, up, activation and product of the MLP 4 x 14,336. In fp32 a number of each norm and
    one of each of 32 heads. The random state of attention has 24 bytes.
    2 T (6 x 4,096 + 2 x 1,024 + 4 x 14,336) + 4 T (2 + 32) + 24 = 344,211,480.
    """
    tokens, hidden, keys, intermediate, heads = 2048, 4096, 1024, 14336, 32
    expected = 2 * tokens * (6 * hidden + 2 * keys + 4 * intermediate) + 4 * tokens * (2 + heads) + 24
    assert expected == 344_211_480
    (stage,) = _golden(8, 4)[1].stages
    assert stage.layers[1].held == expected


def test_golden_buffers_of_further_micro_batches() -> None:
    """8 more micro-batches: 8 x (input and gradient of the output) x 2,048 x 4,096 x 2 bytes = 268,435,456."""
    profile = _golden(8, 16)[1]
    assert profile.micro_batches_run == 8
    assert 8 * profile.further_after == 268_435_456


def test_golden_messages() -> None:
    """A stage between others sends and receives the stream of each micro-batch, and its gradient."""
    of_all = 8 * 2048 * 4096 * 2
    traffic: Traffics = _golden(8, 8)[1].message_traffic
    assert set(traffic) == {
        f"{phase} {operation} pp" for phase in ("forward", "backward") for operation in ("receive", "send")
    }
    assert {(each.calls, each.bytes_in + each.bytes_out) for each in traffic.values()} == {(8, of_all)}
