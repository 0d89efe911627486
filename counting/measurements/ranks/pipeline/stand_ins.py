"""All that is replaced in torch's pipelines, or taken from their private interfaces, so that they run on meta tensors.

Each was tried with torch 2.13.0, and `test_pipeline_stand_ins.py` has a test for each that fails when it is no longer
needed.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup
from torch.distributed.fsdp._fully_shard._fsdp_state import FSDPState
from torch.distributed.pipelining import PipelineStage, schedules
from torch.distributed.pipelining._utils import InferenceMode

from counting.measurements.ranks.stand_ins import replaced


@contextlib.contextmanager
def pipeline_stand_ins() -> Iterator[None]:
    """Context in which torch's pipeline schedules run in a group without other processes. Undoes everything on exit.

    Stages vote with messages on whether the shapes of their inputs are known: here they are. A real send keeps its
    tensor until its work is let go; a fake one keeps nothing, so here the works keep it.
    """
    plain = schedules._batch_p2p

    def batch_p2p(operations: list[Any], desc: str | None = None) -> list[Any]:
        works = plain(operations, desc)
        return [_Held(works, [operation.tensor for operation in operations])] if works else []

    def vote(stage: PipelineStage, *_: object, **__: object) -> Tensor:
        return torch.ones(1, dtype=torch.int32)

    with (
        replaced(schedules, "_batch_p2p", batch_p2p),
        unnamed_actions(),
        replaced(PipelineStage, "_warmup_forward_vote", vote),
        replaced(PipelineStage, "_warmup_backward_result", vote),
    ):
        yield


@contextlib.contextmanager
def lowered_once() -> Iterator[None]:
    """Context in which torch orders the messages of a schedule once: each rank of pp has those of all ranks."""
    runtime = schedules._PipelineScheduleRuntime
    plain = runtime._prepare_schedule_with_comms
    known: dict[Any, Any] = {}

    def prepare(schedule: Any, actions: Any, *args: Any) -> None:
        key = type(schedule), schedule._n_microbatches, schedule.pp_group_size, schedule._num_stages
        if key in known:
            schedule._validate_and_set_stage_mapping(actions)
            schedule.pipeline_order_with_comms = known[key]
        else:
            plain(schedule, actions, *args)
            known[key] = schedule.pipeline_order_with_comms

    with replaced(runtime, "_prepare_schedule_with_comms", prepare):
        yield


def schedule_for(schedule: Any, stages: Sequence[Any]) -> Any:
    """A new schedule of torch as it is on the rank that has these `stages`; each rank finds the order of all ranks.

    It takes the stages for prepared: it makes no buffers for messages, and asks for no shapes.
    """
    found = copy.copy(schedule)
    if isinstance(found, schedules.PipelineScheduleMulti):
        found._stages, found.rank = list(stages), stages[0].group_rank
        found._stages_forward_initialized = found._stages_backward_initialized = True
    else:
        (found._stage,) = stages
        found._stage_forward_initialized = found._stage_backward_initialized = True
    return found


@contextlib.contextmanager
def unnamed_actions() -> Iterator[None]:
    """Context in which torch's schedules name nothing for a profiler, which takes most of their time."""
    with replaced(schedules, "record_function", contextlib.nullcontext):
        yield


class _Held(NamedTuple):
    """Works of one batch of messages, with the tensors that they read or write."""

    works: list[Any]
    tensors: list[Tensor]

    def wait(self) -> None:
        """Wait for all of them."""
        for work in self.works:
            work.wait()


def prepare_stage(stage: Any, micro_batches: int) -> None:
    """Let a stage of torch be ready for passes, as a schedule does: with buffers for messages, of shapes it knows."""
    stage.has_backward = True
    stage._inference_mode = InferenceMode.STATIC
    stage._prepare_forward_infra(micro_batches, (), has_backward=True)
    stage._prepare_backward_infra(micro_batches)


def parameter_of(node: Any) -> Tensor:
    """The parameter to whose gradient an autograd node adds."""
    variable: Tensor = node.variable
    return variable


@contextlib.contextmanager
def before_groups(begin: Callable[[Sequence[nn.Module]], None], end: Callable[[], None]) -> Iterator[None]:
    """Context that calls `begin` with its modules before `fully_shard` gathers, copies or reduces each group.

    `end` is called before it waits for all reductions.
    """

    def wrapped(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(group: FSDPParamGroup, *args: Any, **kwargs: Any) -> Any:
            begin(group.modules)
            return method(group, *args, **kwargs)

        return call

    plain = FSDPState._root_post_backward_final_callback

    def final(state: FSDPState) -> None:
        end()
        plain(state)

    with contextlib.ExitStack() as stack:
        for name in ("unshard", "wait_for_unshard", "post_backward"):
            stack.enter_context(replaced(FSDPParamGroup, name, wrapped(getattr(FSDPParamGroup, name))))
        stack.enter_context(replaced(FSDPState, "_root_post_backward_final_callback", final))
        yield
