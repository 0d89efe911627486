"""The order of all passes of a step on every rank of pp: torch's schedules, over stages that do nothing.

`schedules` runs them with messages, whose bytes it follows. Here nothing is sent and no tensor is made, so that a step
of many micro-batches takes little time.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from counting.measurements.ranks.pipeline.schedules import (
    EmptyStage,
    PassRecorder,
    Ran,
    ShardedEmptyStage,
    StatesOf,
)
from counting.measurements.ranks.pipeline.stand_ins import schedule_for, unnamed_actions
from counting.work import OrderedPass
from torch_models.layout import Layout
from torch_models.parallel.pipeline import build_schedule
from torch_models.stages import Stage

StepOrder = tuple[OrderedPass, ...]


def step_orders(
    stages: Sequence[Stage],
    layout: Layout,
    number: int,
    states_of: StatesOf,
    shares_embedding: Callable[[Stage], bool],
) -> list[StepOrder]:
    """The passes of each rank of pp in a step of `number` micro-batches, in the order in which torch runs them.

    `stages` are those of the whole pipeline. Raises `ArgumentError` for a number that the schedule does not run.
    """
    recorders = [PassRecorder() for _ in range(layout.pp)]
    own = [[stages[index] for index in layout.stages_of_rank(rank)] for rank in range(layout.pp)]
    silent = [
        [_SilentStage(stage, layout, rank, recorder) for stage in own[rank]] for rank, recorder in enumerate(recorders)
    ]
    target = torch.zeros(number, device="meta")
    schedule: Any = build_schedule(silent[0], layout, number)  # type: ignore[arg-type]
    for rank, recorder in enumerate(recorders):
        for stage, one in zip(own[rank], silent[rank], strict=True):
            recorder.follow(one, states_of(stage))
        with unnamed_actions():
            schedule_for(schedule, silent[rank]).step(target=target, return_outputs=False)
        recorder.note_exchange([stage for stage in own[rank] if shares_embedding(stage)])
    return [tuple(_ordered(one) for one in recorder.passes) for recorder in recorders]


def _ordered(one: Ran) -> OrderedPass:
    return OrderedPass(kind=one.kind, key=f"{one.kind} {one.found}", stage=one.stage, micro_batch=one.micro_batch)


class _SilentStage:
    """What torch's schedules call of a stage, without tensors."""

    def __init__(self, stage: Stage, layout: Layout, pipeline_rank: int, recorder: PassRecorder) -> None:
        self.submod = EmptyStage(stage, torch.empty(0, device="meta"), recorder)
        if layout.is_sharded:
            self.submod.__class__ = ShardedEmptyStage
        self.stage_index, self.num_stages = stage.number, layout.stages
        self.group_rank, self.group_size = pipeline_rank, layout.pp
        self.is_first, self.is_last = stage.is_first, stage.is_last
        self.has_backward = True
        self.stage_index_to_group_rank: dict[int, int] = {}

    def nothing(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing."""

    def no_messages(self, micro_batch: int) -> list[Any]:
        """Send and receive nothing."""
        return []

    clear_runtime_states = forward_one_chunk = backward_one_chunk = backward_weight_one_chunk = nothing
    set_local_fwd_input = set_local_bwd_input = get_local_bwd_output = nothing
    get_fwd_send_ops = get_fwd_recv_ops = get_bwd_send_ops = get_bwd_recv_ops = no_messages
