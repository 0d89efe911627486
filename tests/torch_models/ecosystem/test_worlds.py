"""The processes in which other tests run: they answer in order, and no failure of a rank is silent or hangs."""

import os
import time
import warnings

import pytest
import torch
import torch.distributed as dist

from tests.worlds import World, WorldError, run_world


def sum_of_ranks(added: int) -> tuple[int, int, int]:
    total = torch.tensor(dist.get_rank() + added)
    dist.all_reduce(total)
    return dist.get_rank(), int(total), torch.get_num_threads()


def process_id() -> int:
    return os.getpid()


def fail_on_last_rank() -> None:
    if dist.get_rank() == 1:
        raise ValueError("a reason")
    dist.barrier()


def warn() -> None:
    warnings.warn("a warning", stacklevel=1)


def end() -> None:
    os._exit(3)


def sleep() -> None:
    time.sleep(600)


def bits() -> torch.Tensor:
    return torch.tensor([1.5, float("nan")], dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def world() -> World:
    with World(2) as world:
        yield world


def test_a_world_of_its_own_answers_in_the_order_of_ranks() -> None:
    assert run_world(sum_of_ranks, 3, 10) == [(0, 33, 1), (1, 33, 1), (2, 33, 1)]


def test_one_world_serves_many_calls(world: World) -> None:
    assert world.run(sum_of_ranks, 1) == [(0, 3, 1), (1, 3, 1)]
    assert world.run(process_id) == world.run(process_id)
    for tensor in world.run(bits):
        torch.testing.assert_close(tensor, bits(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (fail_on_last_rank, r"rank 1 of 2:\n(?s:.*)in fail_on_last_rank\n(?s:.*)ValueError: a reason"),
        (warn, r"rank \d of 2:\n(?s:.*)UserWarning: a warning"),
        (end, r"rank \d of 2 has ended with exit code 3"),
        (os.abort, r"rank \d of 2 has ended with exit code -6"),
    ],
    ids=["error", "warning", "end", "crash"],
)
def test_a_failure_is_reported_and_the_next_call_works(world: World, function: object, message: str) -> None:
    before = world.run(process_id)
    with pytest.raises(WorldError, match=message):
        world.run(function)
    after = world.run(process_id)
    assert set(before).isdisjoint(after)


def test_a_world_that_does_not_answer_is_ended(world: World) -> None:
    processes = world.run(process_id)
    began = time.monotonic()
    with pytest.raises(WorldError, match=r"no answer in 0\.5 s from rank 0, 1 of 2"):
        world.run(sleep, timeout_seconds=0.5)
    assert time.monotonic() - began < 30
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)
