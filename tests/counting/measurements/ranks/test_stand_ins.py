"""Each stand-in is needed: the tests here fail when torch does without one, which then can go."""

import contextlib
import subprocess
import sys
import time
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as collectives
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp._fully_shard._fsdp_common import _chunk_with_empty
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPCommContext, FSDPParamGroup
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from counting.measurements.meta_device import measuring
from counting.measurements.ranks import live_bytes, stand_ins
from counting.measurements.ranks.fake_world import fake_world
from counting.measurements.ranks.live_bytes import RankBytes


def step_of_replicated_shards() -> None:
    """A forward and a backward pass on the meta device, with 2 replicas of 2 shards."""
    model = nn.Linear(4, 4, device="meta")
    fully_shard(model, mesh=init_device_mesh("meta", (2, 2), mesh_dim_names=("dp", "fsdp")))
    model(torch.empty(1, 4, device="meta")).sum().backward()


def test_a_step_runs_with_all_of_them() -> None:
    with fake_world(4):
        step_of_replicated_shards()


def test_streams_of_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_world(4), monkeypatch.context() as patch:
        patch.delattr(torch, "meta")
        with pytest.raises((AttributeError, RuntimeError, AssertionError)):
            step_of_replicated_shards()


def test_streams_of_fully_shard_have_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch gives them none: without the stand-in, all that they make would be of one stream."""
    seen: set[str] = set()

    def forward_and_backward() -> None:
        with RankBytes([], lambda *_: seen.add(stand_ins.current_stream())):
            step_of_replicated_shards()

    with fake_world(4):
        forward_and_backward()
    assert {"main", "all_gather_copy_in", "all_gather", "reduce_scatter", "all_reduce"} <= seen
    seen.clear()
    with fake_world(4), monkeypatch.context() as patch:
        patch.setattr(FSDPCommContext, "lazy_init", stand_ins._plain_lazy_init)
        forward_and_backward()
    assert seen == {"main"}
    assert stand_ins.current_stream() == "main"


def test_event_of_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_world(4), monkeypatch.context() as patch:
        patch.setattr(torch.meta, "Stream", torch.cpu.Stream)  # type: ignore[attr-defined]
        with pytest.raises(AssertionError, match="all_reduce_event"):
            step_of_replicated_shards()


def test_parameters_on_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = FSDPParamGroup._validate_no_meta_params
    with fake_world(4), monkeypatch.context() as patch:
        patch.setattr(FSDPParamGroup, "_validate_no_meta_params", plain)
        with pytest.raises(RuntimeError, match="materialized from meta device"):
            step_of_replicated_shards()


def test_parts_of_a_parameter() -> None:
    """Torch makes as many tensors as ranks; those that are made on access are equal."""
    for size, ranks in ((7, 3), (8, 4), (3, 8), (9, 4), (1, 2), (5, 5)):
        tensor = torch.arange(size * 2).view(size, 2)
        parts = _chunk_with_empty(tensor, ranks, 0)
        assert len(parts) == ranks
        made = stand_ins._Parts(tensor, ranks, 0)
        assert all(torch.equal(made[rank], part) for rank, part in enumerate(parts))


def test_waiting_returns_the_argument() -> None:
    """On real tensors it does; on the meta device torch makes a new one."""
    with fake_world(2):
        for device, same in (("cpu", True), ("meta", False)):
            x = torch.empty(4, device=device)
            waited = torch.ops._c10d_functional.wait_tensor(x)
            assert (waited.untyped_storage()._cdata == x.untyped_storage()._cdata) is same


def test_what_is_sent_is_held_until_its_result_is_waited_for() -> None:
    """A real collective refers to it until then; the fake one lets go of it at once, and is waited for all the same."""
    with fake_world(2):
        mesh = init_device_mesh("meta", (2,))
        with RankBytes([], lambda *op: None) as tracker:
            gathered = collectives.all_gather_single(torch.empty(4, device="meta"), 0, mesh)
            assert isinstance(gathered, collectives.AsyncCollectiveTensor)
            assert tracker.live == 4 * 4 + 8 * 4
            waited = gathered.wait()
            assert tracker.live == waited.untyped_storage().nbytes() == 8 * 4


def test_rules_of_ring_attention_import_the_compiler() -> None:
    """A module of theirs does, which nothing needs that runs here."""
    code = """
import sys
import torch.distributed.tensor
from torch_models.parallel.context import ring_attention
from counting.measurements.ranks.stand_ins import stand_ins
import contextlib
with stand_ins() if sys.argv[1] == "with" else contextlib.nullcontext(), ring_attention():
    print("torch.distributed._tools" in sys.modules, "torch.distributed.tensor.debug" in sys.modules)
print("torch.distributed.tensor.debug" in sys.modules)
"""
    said = [
        subprocess.run([sys.executable, "-c", code, how], capture_output=True, text=True, check=True).stdout.split()
        for how in ("with", "without")
    ]
    assert said == [["False", "True", "False"], ["True", "True", "True"]]


def test_caches_of_dtensor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mesh of a group that is gone is taken for one that is equal but for the names of its groups."""

    def gather_on_each_rank() -> None:
        for rank in range(4):
            with fake_world(4, rank):
                mesh = init_device_mesh("meta", (2, 2), mesh_dim_names=("dp", "tp"))["tp"]
                x = DTensor.from_local(torch.empty(2, device="meta"), mesh, [Shard(0)], run_check=False)
                (x + x).redistribute(placements=[Replicate()])

    gather_on_each_rank()
    monkeypatch.setattr(stand_ins, "_clear_caches_of_dtensor", lambda: None)
    with pytest.raises(RuntimeError, match="process group"):
        gather_on_each_rank()
    monkeypatch.undo()
    gather_on_each_rank()


def test_private_names_of_what_fully_shard_keeps() -> None:
    """Gathered parameters and gradients that are added up have no public name."""
    with fake_world(2):
        model = nn.Linear(4, 4, device="meta")
        fully_shard(model, mesh=init_device_mesh("meta", (2,)))
        model.set_requires_gradient_sync(False)  # type: ignore[operator]
        model(torch.empty(1, 4, device="meta")).sum().backward()
        assert [tuple(p.shape) for p in stand_ins.gathered_parameters(model)] == [(4, 4), (4,)]
        assert stand_ins.accumulated_gradients(model) == []  # the gradients have the format in which they are reduced
        assert all(p.grad is not None for p in stand_ins.gathered_parameters(model))


def test_part_of_another_rank() -> None:
    """The rule by which torch gives shapes to ranks, against the tensors that it gives to each of them."""
    for ranks in (2, 3, 5):
        for rank in range(ranks):
            with fake_world(ranks, rank):
                mesh = init_device_mesh("meta", (ranks,))
                tensor = distribute_tensor(torch.empty(7, 3, device="meta"), mesh, [Shard(0)], src_data_rank=None)
                own = tuple(tensor.to_local().shape)
            with fake_world(ranks):
                mesh = init_device_mesh("meta", (ranks,))
                tensor = distribute_tensor(torch.empty(7, 3, device="meta"), mesh, [Shard(0)], src_data_rank=None)
                assert stand_ins.shapes_along(tensor, 0)(rank) == own


def test_first_hook() -> None:
    """Torch calls the hooks of a tensor in the order in which they were registered."""
    called: list[str] = []
    x = torch.ones(2, requires_grad=True) * 2
    x.register_hook(lambda gradient: called.append("before"))
    x.register_hook(lambda gradient: called.append("after"))
    stand_ins.register_first_hook(x, lambda gradient: called.append("first"))
    x.sum().backward()
    assert called == ["first", "before", "after"]


def test_copies_for_collectives() -> None:
    """Gathering makes a copy of the shards in the other dtype, a flat buffer, and the two gathered parameters.

    Of these torch shows only the flat buffer to a hook (`set_custom_all_gather`).
    """
    with fake_world(2), measuring():
        model = nn.Linear(4, 4, device="meta")
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
        fully_shard(model, mesh=init_device_mesh("meta", (2,)), mp_policy=policy)
        with RankBytes(model.parameters(), lambda *op: None) as tracker:
            model.unshard()  # type: ignore[operator]
        assert len(tracker.made_by_fully_shard) == 4


def test_groups_among_the_arguments_of_an_op() -> None:
    """An op has its process group as a script object, which does not say that it is one."""
    seen: list[Any] = []
    with fake_world(2):
        x = torch.empty(4, device="meta")
        with RankBytes([x], lambda function, args, *_: seen.append(args)):
            dist.all_reduce(x)
        name = dist.distributed_c10d._get_default_group().group_name
    arguments = [argument for args in seen for argument in args]
    assert not any(isinstance(argument, dist.ProcessGroup) for argument in arguments)
    assert [found for found in map(stand_ins.name_of_group, arguments) if found is not None] == [name]


def test_shapes_of_divided_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """DTensor runs an op on fake tensors first, which dispatch modes see as if they were tensors of the model."""

    def tensors_seen() -> int:
        with fake_world(2), measuring():
            mesh = init_device_mesh("meta", (2,))
            x = DTensor.from_local(torch.empty(3, device="meta"), mesh, [Shard(0)], run_check=False)
            with RankBytes([x], lambda *op: None) as tracker:
                x + x
            return tracker.born

    assert tensors_seen() == 2  # x and the sum
    monkeypatch.setattr(live_bytes, "propagates_shapes", lambda: False)
    assert tensors_seen() > 2


def norms_of_many(number: int) -> tuple[float, list[Any], Any]:
    """Norms of tensors of two shapes, divided in two ways, and the tensors scaled: seconds, and how each is divided."""
    mesh = init_device_mesh("meta", (2, 2), mesh_dim_names=("fsdp", "tp"))
    ways = [(Shard(0), Replicate()), (Shard(0), Shard(1))]
    tensors = [
        DTensor.from_local(torch.empty(2, 2 + index % 2, device="meta"), mesh, ways[index % 3 == 0], run_check=False)
        for index in range(number)
    ]
    begin = time.process_time()
    norms = torch._foreach_norm(tensors)
    torch._foreach_mul_(tensors, torch.empty((), device="meta"))
    seconds = time.process_time() - begin
    return seconds, [(norm.shape, norm.placements) for norm in norms], [tensor.placements for tensor in tensors]


def test_equal_tensors_of_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked once, they are divided as if each were asked for, in less than half of the time."""
    with fake_world(4), measuring():
        seconds, *found = norms_of_many(60)
    with monkeypatch.context() as patch:
        patch.setattr(stand_ins, "_equal_tensors_of_lists_once", contextlib.nullcontext)
        with fake_world(4), measuring():
            plain, *expected = norms_of_many(60)
    assert found == expected
    assert seconds < plain / 2
    assert "propagate_op_sharding_non_cached" not in vars(DTensor._op_dispatcher.sharding_propagator)


def sum_over_two_dimensions() -> None:
    mesh = init_device_mesh("meta", (2, 2), mesh_dim_names=("fsdp", "tp"))
    DTensor.from_local(torch.empty(2, device="meta"), mesh, [Partial(), Partial()], run_check=False).full_tensor()


def test_advice_on_meshes(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stand_ins._redistribute.logger, "propagate", True)
    with fake_world(4):
        sum_over_two_dimensions()
    assert not caplog.records
    monkeypatch.setattr(stand_ins, "_without_advice_on_meshes", contextlib.nullcontext)
    monkeypatch.setattr(stand_ins._redistribute, "_warned_flatten_issues", set())
    with fake_world(4):
        sum_over_two_dimensions()
    assert "While redistributing" in caplog.text
