"""The rules of a pipeline: what is filled in, what is refused, and what torch's schedules themselves refuse."""

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from counting.layout import resolve_layout
from counting.pipeline_rules import SCHEDULE_RULES
from counting.setup import Setup, resolve
from tests.shrunken import LLAMA
from torch_models import ArgumentError, read_spec
from torch_models.fields.config import spec_from_fields
from torch_models.layout import SEVERAL_STAGES, V_SHAPED, Layout
from torch_models.spec import ModelSpec
from torch_models.stages import micro_batches_of_round

LLAMA_3 = read_spec("llama_3_8b")  # 32 layers
SMALL = spec_from_fields(LLAMA, "small")
DEEPSEEK = read_spec("deepseek_v3")  # 61 layers


def resolved(layout: Layout, spec: ModelSpec = LLAMA_3, *, micro_batches: int = 64, **setup: Any) -> Layout:
    return resolve_layout(layout, spec, resolve(Setup(micro_batches=micro_batches, **setup), spec))


def refusal(layout: Layout, spec: ModelSpec = LLAMA_3, **setup: Any) -> tuple[str, object, str]:
    with pytest.raises(ArgumentError) as caught:
        resolved(layout, spec, **setup)
    return caught.value.field, caught.value.value, caught.value.rule


@pytest.mark.parametrize(
    ("given", "stage_layers"),
    [
        (Layout(pp=4), (8, 8, 8, 8)),
        (Layout(pp=5), (7, 7, 6, 6, 6)),
        (Layout(pp=4, schedule="interleaved"), (4,) * 8),
        (Layout(pp=3, schedule="zbv"), (6, 6, 5, 5, 5, 5)),
        (Layout(pp=2, schedule="zb", stages_per_rank=3), (6, 6, 5, 5, 5, 5)),
        (Layout(pp=4, stage_layers=(7, 9, 9, 7)), (7, 9, 9, 7)),
        (Layout(), None),
    ],
)
def test_layers_are_spread_evenly_and_the_first_stages_have_the_spare_ones(
    given: Layout, stage_layers: tuple[int, ...] | None
) -> None:
    layout = resolved(given)
    assert layout.stage_layers == stage_layers
    assert layout.zero == (3 if stage_layers is None else 1)
    assert layout.schedule == (None if stage_layers is None else given.schedule or "1f1b")
    assert resolved(layout) == layout


def test_ranks_are_those_of_all_stages() -> None:
    layout = resolved(Layout(num_gpus=2048, pp=16, fsdp=128, ep=64, zero=1, schedule="dualpipev"), DEEPSEEK)
    assert (layout.replicas, layout.stages, layout.stages_per_rank) == (1, 32, 2)
    assert layout.stage_layers == (2,) * 29 + (1,) * 3


# --- The schedule ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULE_RULES)
@pytest.mark.parametrize("each", [1, 2, 3])
def test_the_stages_of_a_rank_are_those_of_the_schedule(schedule: Any, each: int) -> None:
    layout = Layout(pp=2, schedule=schedule, stages_per_rank=each)
    takes = each == 2 if schedule in V_SHAPED else each > 1 if schedule in SEVERAL_STAGES else each == 1
    if takes:
        assert resolved(layout).stages == 2 * each
        return
    field, value, rule = refusal(layout)
    assert (field, value) == ("stages_per_rank", each)
    assert f"with schedule {schedule}: leave it out" in rule


@pytest.mark.parametrize("fields", [{"schedule": "gpipe"}, {"stages_per_rank": 1}, {"stage_layers": (16, 16)}])
def test_a_pipeline_of_one_rank_is_none(fields: dict[str, Any]) -> None:
    field, value, rule = refusal(Layout(fsdp=2, **fields))
    assert field == next(iter(fields))
    assert value == ("16,16" if field == "stage_layers" else fields[field])
    assert rule == "is of a pipeline, and pp is 1: leave it out, or give pp"


class Stage:
    """What torch's schedules ask of a stage when they are made."""

    has_backward = True
    submod = None
    device = "cpu"

    def __init__(self, index: int, layout: Layout) -> None:
        self.stage_index, self.num_stages = index, layout.stages
        self.group_size, self.group_rank = layout.pp, 0
        self.is_first, self.is_last = index == 0, index == layout.stages - 1


def torch_schedule(layout: Layout, micro_batches: int) -> Any:
    """Torch's schedule of rank 0."""
    from torch.distributed.pipelining import schedules

    assert layout.schedule is not None
    torch_class = getattr(schedules, SCHEDULE_RULES[layout.schedule].torch_class)
    stages: Any = [Stage(index, layout) for index in layout.stages_of_rank(0)]
    if issubclass(torch_class, schedules.PipelineScheduleSingle):
        (stages,) = stages
    return torch_class(stages, n_microbatches=micro_batches, loss_fn=lambda output, _: output)


def torch_takes(layout: Layout, micro_batches: int) -> bool:
    """Whether torch makes the schedule of rank 0."""
    try:
        torch_schedule(layout, micro_batches)
    except ValueError:
        return False
    return True


# --- What the page on layouts says of schedules ----------------------------------------------------------------------

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "layouts.md").read_text(encoding="utf-8")
SCHEDULE_ROWS = re.findall(
    r"^\| `(\w+)`(?: \(default\))? \| `(\w+)` \| ([\w ]+) \| (.+) \| (.+) \|$", PAGE, re.MULTILINE
)


def in_flight(schedule: Any, rank: int) -> int:
    """The most forward passes of a rank that wait for all of their backward pass."""
    from torch.distributed.pipelining.schedules import BACKWARD_WEIGHT, FORWARD, FULL_BACKWARD

    most = now = 0
    for action in filter(None, schedule.pipeline_order[rank]):
        for part in action.sub_actions or (action,):
            now += (part.computation_type == FORWARD) - (part.computation_type in (FULL_BACKWARD, BACKWARD_WEIGHT))
            most = max(most, now)
    return most


def test_every_schedule_is_on_the_page() -> None:
    assert {row[0]: row[1] for row in SCHEDULE_ROWS} == {
        name: rule.torch_class for name, rule in SCHEDULE_RULES.items()
    }


@pytest.mark.parametrize(("schedule", "of_a_rank", "passes"), [(row[0], row[2], row[4]) for row in SCHEDULE_ROWS])
@pytest.mark.parametrize("pp", [2, 4, 8])
def test_passes_in_flight_are_those_of_torch(schedule: Any, of_a_rank: str, passes: str, pp: int) -> None:
    if schedule not in SEVERAL_STAGES:
        assert of_a_rank == "1"
        return  # torch writes no order down for them
    for each in (2, 3) if of_a_rank == "2 or more" else (2,):
        for number in (8 * pp, 4 * pp - 1) if of_a_rank == "2 or more" else (8 * pp,):
            if not torch_takes(Layout(pp=pp, schedule=schedule, stages_per_rank=each), number):
                continue
            found = torch_schedule(Layout(pp=pp, schedule=schedule, stages_per_rank=each), number)
            of_a_round = micro_batches_of_round(pp, number)
            for rank in range(pp):
                assert in_flight(found, rank) == eval(passes, {"p": pp, "r": rank, "v": each, "m": of_a_round})


@pytest.mark.parametrize("schedule", SCHEDULE_RULES)
@pytest.mark.parametrize("pp", [2, 3, 5])
@pytest.mark.parametrize("each", [1, 2, 3])
def test_micro_batches_are_refused_where_torch_refuses_them(schedule: Any, pp: int, each: int) -> None:
    layout = Layout(pp=pp, schedule=schedule, stages_per_rank=each)
    try:
        resolved(layout, micro_batches=60)
    except ArgumentError:
        return  # a schedule with other numbers of stages, which `torch_takes` could not make
    for micro_batches in range(1, 25):
        taken = torch_takes(layout, micro_batches)
        assert SCHEDULE_RULES[schedule].takes(micro_batches, layout) == taken
        if taken:
            assert resolved(layout, micro_batches=micro_batches).stages == pp * each
        else:
            assert refusal(layout, micro_batches=micro_batches)[:2] == ("micro_batches", micro_batches)


@pytest.mark.parametrize(
    ("layout", "micro_batches", "rule"),
    [
        (
            Layout(pp=4),
            3,
            "torch's Schedule1F1B needs at least as many as stages (4): give 4 or more, or global_batch_tokens of 400 "
            "or more",
        ),
        (
            Layout(pp=4, dp=2, fsdp=3, schedule="dualpipev"),
            7,
            "torch's ScheduleDualPipeV needs at least as many as stages (8): give 8 or more, or global_batch_tokens of "
            "4800 or more",
        ),
        (
            Layout(pp=4, schedule="zb"),
            13,
            "torch's ScheduleInterleavedZeroBubble runs them in 3 equal rounds of pp (4) or more: give 12 or 15, or "
            "global_batch_tokens of 1200 or 1500",
        ),
    ],
)
def test_numbers_of_micro_batches_that_do(layout: Layout, micro_batches: int, rule: str) -> None:
    found = refusal(layout, sequence_length=100, micro_batches=micro_batches)
    assert found == ("micro_batches", micro_batches, rule)


def test_very_many_micro_batches_are_refused_at_once() -> None:
    rule = refusal(Layout(pp=32, schedule="zb"), LLAMA_3, sequence_length=1, micro_batches=10**9 - 1)[2]
    assert rule.startswith("makes 64 stages with 2 on each rank, and llama_3_8b has 32 layers")
    rule = refusal(Layout(pp=16, schedule="zb"), LLAMA_3, sequence_length=1, micro_batches=10**9 - 1)[2]
    assert "give 999999984 or 1000000000" in rule


# --- The model -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zero", [2, 3])
def test_a_pipeline_reduces_gradients_once(zero: Any) -> None:
    field, value, rule = refusal(Layout(pp=4, fsdp=2, zero=zero))
    assert (field, value) == ("zero", zero)
    assert rule.startswith("must be 1 with pp: torch's schedules reduce gradients once a step")


def test_a_head_that_is_the_embedding_is_in_two_stages() -> None:
    tied = read_spec("llama_3_2_1b")
    field, value, rule = refusal(Layout(pp=2), tied)
    assert (field, value) == ("pp", 2)
    assert rule.startswith("is refused for llama_3_2_1b, whose head is its embedding")
    untied = msgspec.structs.replace(tied, tie_word_embeddings=False)
    assert resolved(Layout(pp=2), untied).stage_layers == (8, 8)


@pytest.mark.parametrize(
    ("layout", "rule"),
    [
        (
            Layout(pp=33),
            "makes 33 stages, and llama_3_8b has 32 layers, of which each stage needs one: give at most 32",
        ),
        (
            Layout(pp=2**20),
            "makes 1048576 stages, and llama_3_8b has 32 layers, of which each stage needs one: give at most 32",
        ),
        (
            Layout(pp=17, schedule="zbv"),
            "makes 34 stages with 2 on each rank, and llama_3_8b has 32 layers, of which each stage needs one: give at "
            "most 16",
        ),
    ],
)
def test_fewer_layers_than_stages(layout: Layout, rule: str) -> None:
    assert refusal(layout) == ("pp", layout.pp, rule)


def test_no_pipeline_has_so_few_layers() -> None:
    assert SMALL.num_layers == 3
    assert refusal(Layout(pp=2, schedule="zbv"), SMALL)[2].endswith("of which each stage needs one: leave it out")


@pytest.mark.parametrize(
    ("layout", "shown", "rule"),
    [
        (
            Layout(pp=4, stage_layers=(8, 8, 16)),
            "8,8,16",
            "has the layers of 3 stages, and there must be pp (4): leave it out for 8,8,8,8",
        ),
        (
            Layout(pp=2, schedule="zbv", stage_layers=(16, 16)),
            "16,16",
            "has the layers of 2 stages, and there must be pp x stages_per_rank = 2 x 2 = 4: leave it out for 8,8,8,8",
        ),
        (
            Layout(pp=3, stage_layers=(10, 11, 12)),
            "10,11,12",
            "are 33 layers together, and llama_3_8b has 32: leave it out for 11,11,10",
        ),
        (Layout(pp=32, stage_layers=(32,)), "32", "has the layers of 1 stages, and there must be pp (32)"),
    ],
)
def test_layers_of_stages_that_are_not_those_of_the_model(layout: Layout, shown: str, rule: str) -> None:
    assert refusal(layout) == ("stage_layers", shown, rule)


@pytest.mark.parametrize("value", [(8, 0, 16), (8, -1, 16), (True, 1), (), [8, 8], (8.0, 24), 32])
def test_what_is_no_number_of_layers(value: Any) -> None:
    with pytest.raises(ArgumentError) as caught:
        Layout(pp=2, stage_layers=value)
    assert caught.value.field == "stage_layers"


@pytest.mark.parametrize("schedule", ["zb", "zbv", "dualpipev"])
def test_selective_checkpointing_takes_no_halves(schedule: Any) -> None:
    field, value, rule = refusal(Layout(pp=2, schedule=schedule), recompute="per_op")
    assert (field, value) == ("recompute", "per_op")
    assert f"is refused with schedule {schedule}, which runs backward in two halves" in rule
    assert resolved(Layout(pp=2, schedule="interleaved"), recompute="per_op").pp == 2


@pytest.mark.parametrize("schedule", ["zb", "zbv"])
def test_halves_of_prediction_layers_are_not_reduced_in_mixed_precision(schedule: Any) -> None:
    layout = Layout(pp=2, fsdp=2, schedule=schedule)
    field, value, rule = refusal(layout, DEEPSEEK, sequence_length=64)
    assert (field, value) == ("mtp", True)
    assert f"is refused with schedule {schedule} and fsdp in mixed precision" in rule
    assert resolved(layout, DEEPSEEK, sequence_length=64, mtp=False).pp == 2
    assert resolved(layout, DEEPSEEK, sequence_length=64, precision="bf16").pp == 2
    assert resolved(Layout(pp=2, fsdp=2, schedule="dualpipev"), DEEPSEEK, sequence_length=64).pp == 2


def test_further_tokens_of_positions_of_other_ranks() -> None:
    """The last stage would need them."""
    layout = Layout(cp=2, pp=2)
    field, value, rule = refusal(layout, DEEPSEEK, sequence_length=4096, mtp=True)
    assert (field, value) == ("mtp", True)
    assert rule.startswith("is not measured with cp (2) and pp (2) together: ")
    assert resolved(layout, DEEPSEEK, sequence_length=4096, mtp=False).cp == 2


@pytest.mark.parametrize("schedule", ["zb", "zbv", "dualpipev"])
def test_what_tp_sends_in_the_second_half_has_a_formula(schedule: Any) -> None:
    layout, norms = Layout(pp=2, tp=2, schedule=schedule), read_spec("olmo2_7b")
    assert refusal(layout, loss_chunk=1024)[:2] == ("loss_chunk", 1024)
    assert refusal(layout, norms)[:2] == ("tp", 2)
    assert resolved(layout).tp == resolved(Layout(pp=2, tp=2, schedule="interleaved"), norms).tp == 2


def test_predictions_of_halves_over_tp_are_not_recomputed() -> None:
    layout = Layout(pp=2, tp=2, fsdp=2, schedule="dualpipev")
    assert refusal(layout, DEEPSEEK, recompute="full", sequence_length=64)[:2] == ("mtp", True)
    assert resolved(layout, DEEPSEEK, sequence_length=64).tp == 2


@pytest.mark.parametrize("schedule", ["zb", "zbv", "dualpipev"])
def test_experts_of_halves_are_in_16_bits(schedule: Any) -> None:
    layout, experts = Layout(pp=2, schedule=schedule), read_spec("mixtral_8x7b")
    field, value, rule = refusal(layout, experts, precision="fp32")
    assert (field, value) == ("precision", "fp32")
    assert rule.startswith(f"is refused for experts with schedule {schedule}")
    assert resolved(layout, precision="fp32").pp == resolved(layout, experts).pp == 2
    assert resolved(Layout(pp=2, schedule="interleaved"), experts, precision="fp32").pp == 2


@pytest.mark.parametrize("schedule", ["zb", "zbv", "dualpipev"])
def test_attention_with_sinks_is_not_recomputed_in_halves(schedule: Any) -> None:
    layout, sinks = Layout(pp=2, schedule=schedule), read_spec("gpt_oss_20b")
    field, value, rule = refusal(layout, sinks, recompute="selective")
    assert (field, value) == ("recompute", "selective")
    assert rule.startswith(f"is refused for attention with sinks and schedule {schedule}")
    assert resolved(layout, recompute="selective").pp == resolved(layout, sinks).pp == 2
    assert resolved(layout, sinks, recompute="selective", kernels="eager").pp == 2
    assert resolved(Layout(pp=2, schedule="interleaved"), sinks, recompute="selective").pp == 2


def test_gpipe_has_a_limit_of_micro_batches() -> None:
    field, value, rule = refusal(Layout(pp=2, schedule="gpipe"), micro_batches=257)
    assert (field, value) == ("micro_batches", 257)
    assert "must be at most 256 with schedule gpipe" in rule
    assert resolved(Layout(pp=2, schedule="gpipe"), micro_batches=256).pp == 2


def test_several_prediction_layers_take_no_halves() -> None:
    two = msgspec.structs.replace(DEEPSEEK, mtp_layers=DEEPSEEK.mtp_layers * 2)
    layout = Layout(pp=2, fsdp=2, schedule="dualpipev")
    field, value, rule = refusal(layout, two, sequence_length=64)
    assert (field, value) == ("mtp", True)
    assert "for 2 prediction layers" in rule
    assert resolved(msgspec.structs.replace(layout, schedule="interleaved"), two, sequence_length=64).pp == 2


def test_gradients_of_another_format_are_not_exchanged() -> None:
    run: dict[str, Any] = {"sequence_length": 64, "precision": "mixed-fp32-gradients"}
    assert refusal(Layout(pp=2), DEEPSEEK, **run)[:2] == ("mtp", True)
    assert resolved(Layout(pp=2, fsdp=2), DEEPSEEK, **run).pp == resolved(Layout(pp=2), DEEPSEEK, mtp=False, **run).pp
