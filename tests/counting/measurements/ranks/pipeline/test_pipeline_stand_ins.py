"""Each stand-in for pipelines is needed: the tests here fail when torch does without one, which then can go."""

import contextlib
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining import PipelineStage, ScheduleInterleaved1F1B, schedules
from torch.utils._python_dispatch import TorchDispatchMode

from counting.measurements.ranks import stand_ins
from counting.measurements.ranks.fake_world import fake_world
from counting.measurements.ranks.pipeline.stand_ins import (
    before_groups,
    lowered_once,
    parameter_of,
    pipeline_stand_ins,
    prepare_stage,
    schedule_for,
)


def stage_of(number: int = 1, stages: int = 2) -> PipelineStage:
    x = torch.empty(1, 4, device="meta", requires_grad=True)
    module = nn.Linear(4, 4, device="meta")
    return PipelineStage(module, number, stages, torch.device("meta"), input_args=(x,), output_args=(x,))


def run_last_stage() -> None:
    """A step of two micro-batches as the last of two ranks."""
    schedule = schedules.Schedule1F1B(stage_of(), n_microbatches=2, loss_fn=lambda output, target: output.sum())
    schedule.step(target=torch.empty(2, 4, device="meta"), return_outputs=False)


def test_a_step_runs_with_all_of_them() -> None:
    with pipeline_stand_ins(), fake_world(2, rank=1):
        run_last_stage()


@pytest.mark.parametrize("name", ["_warmup_forward_vote", "_warmup_backward_result"])
def test_votes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = getattr(PipelineStage, name)
    with pipeline_stand_ins(), fake_world(2, rank=1), monkeypatch.context() as patch:
        patch.setattr(PipelineStage, name, plain)
        if name == "_warmup_forward_vote":
            patch.setattr(PipelineStage, "_warmup_backward_result", lambda stage, received_result: received_result)
        else:
            patch.setattr(PipelineStage, "_warmup_forward_vote", lambda *_, **__: torch.ones(1, device="meta"))
        with pytest.raises(RuntimeError, match="meta"):
            run_last_stage()


def test_messages_on_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stand_ins, "_messages_on_meta", contextlib.nullcontext)
    with fake_world(2):
        x = torch.empty(2, device="meta")
        with pytest.raises(RuntimeError, match="No backend type associated with device type meta"):
            dist.batch_isend_irecv([dist.P2POp(dist.isend, x, 1), dist.P2POp(dist.irecv, x, 1)])


def test_a_fake_send_keeps_nothing() -> None:
    """A real one keeps its tensor."""

    def is_kept() -> bool:
        x = torch.empty(2, device="meta")
        storage = weakref.ref(x.untyped_storage())
        works = schedules._batch_p2p([dist.P2POp(dist.isend, x, 1)])
        del x
        kept = storage() is not None
        del works
        assert storage() is None
        return kept

    with fake_world(2):
        assert not is_kept()
        with pipeline_stand_ins():
            assert is_kept()


def test_names_for_a_profiler_are_ops() -> None:
    class Counter(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.seen += 1
            return function(*args, **(kwargs or {}))

    with Counter() as counter, schedules.record_function("name"):
        pass
    assert counter.seen > 0


def test_every_rank_orders_the_messages_of_all() -> None:
    def order(rank: int) -> Any:
        with pipeline_stand_ins(), fake_world(2, rank):
            stages = [stage_of(number, 4) for number in (rank, rank + 2)]
            return ScheduleInterleaved1F1B(stages, 4, loss_fn=lambda *_: None).pipeline_order_with_comms

    apart = [order(rank) for rank in (0, 1)]
    assert apart[0] == apart[1]
    with lowered_once():
        together = [order(rank) for rank in (0, 1)]
    assert together[0] is together[1]
    assert together[0] == apart[0]


@pytest.mark.parametrize("kind", [schedules.Schedule1F1B, ScheduleInterleaved1F1B])
def test_a_new_schedule_prepares_its_stages(kind: Any) -> None:
    """So stages that do nothing would be asked for shapes; and one schedule runs as that of another rank."""
    of_one = kind is schedules.Schedule1F1B
    with fake_world(2):
        stages = [stage_of(number, 2 if of_one else 4) for number in ((0,) if of_one else (0, 2))]
    schedule = kind(stages[0] if of_one else stages, 2, loss_fn=lambda *_: None)
    silent: Any = SimpleNamespace(group_rank=1, has_backward=True, is_last=False, clear_runtime_states=lambda: None)
    for found in (schedule, schedule_for(schedule, [silent])):
        names = [name for name in vars(found) if name.endswith("ward_initialized")]
        assert len(names) == 2
        assert {getattr(found, name) for name in names} == {found is not schedule}
    assert (found._stage if of_one else found._stages[0]) is silent
    assert of_one or (schedule.rank, found.rank) == (0, 1)


def test_a_stage_is_prepared_by_its_schedule_alone() -> None:
    with fake_world(2, rank=1):
        stage = stage_of()
        with pytest.raises(KeyError):
            stage.forward_one_chunk(0, ())
        prepare_stage(stage, 1)
        assert stage.forward_one_chunk(0, ()).shape == (1, 4)


def test_groups_of_fully_shard_in_order() -> None:
    seen: list[nn.Module | str] = []
    with fake_world(2):
        model = nn.Sequential(nn.Linear(4, 4, device="meta"), nn.Linear(4, 4, device="meta"))
        for module in (*model, model):
            fully_shard(module, mesh=init_device_mesh("meta", (2,)))
        with before_groups(lambda modules: seen.append(modules[0]), lambda: seen.append("end")):
            for module in model:
                module.unshard()  # type: ignore[operator]
            assert list(dict.fromkeys(seen)) == list(model)
            seen.clear()
            model(torch.empty(1, 4, device="meta")).sum().backward()
    assert "end" in seen


def test_parameter_of_a_node() -> None:
    weight = nn.Parameter(torch.ones(2))
    (node, _), *_ = (weight * 1).grad_fn.next_functions  # type: ignore[union-attr]
    assert parameter_of(node) is weight
