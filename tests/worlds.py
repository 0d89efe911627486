"""Processes of one gloo process group on this machine, for tests of what runs on several ranks.

    with World(2) as world:
        losses = world.run(loss_of_rank, "llama")  # [loss of rank 0, loss of rank 1]

A function that runs in a world is at the top level of a module, and its arguments and results can be pickled. It is
called as `function(*args)` on every rank, and finds its rank in `torch.distributed`. One world serves many calls: a
process group that has failed is replaced at the next call.
"""

import faulthandler
import gc
import multiprocessing
import pickle
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch

# Where processes can be forked from a server that has imported torch, the import is paid once for all worlds.
_CONTEXT: Any = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
_PRELOADED = ["torch.distributed.fsdp", "torch._dynamo", "torch._inductor.compile_fx", "functorch.compile"]

TIMEOUT_SECONDS = 120.0


class WorldError(AssertionError):
    """A rank has raised an error, has ended, or has not answered in time; the message has its traceback."""


class _Rank(NamedTuple):
    process: BaseProcess
    connection: Connection


class World:
    """`processes` ranks, started at the first call and ended with the context; each computes with one thread."""

    def __init__(self, processes: int) -> None:
        self.processes = processes
        self._ranks: list[_Rank] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def run(self, function: Callable[..., Any], *args: Any, timeout_seconds: float = TIMEOUT_SECONDS) -> list[Any]:
        """Return what `function(*args)` returns on each rank, in the order of ranks. Warnings are errors in it.

        Raises `WorldError` as soon as one rank fails, or after `timeout_seconds`; all ranks are ended then, since the
        others may wait for the one that failed.
        """
        try:
            return self._answers(pickle.dumps((function, args)), timeout_seconds)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End all processes, whatever they are doing."""
        for rank in self._ranks:
            rank.process.kill()
            rank.process.join()
            rank.connection.close()
        self._ranks = []
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _start(self) -> None:
        _CONTEXT.set_forkserver_preload(_PRELOADED)
        self._folder = tempfile.TemporaryDirectory(prefix="world_")
        store = str(Path(self._folder.name) / "store")
        for number in range(self.processes):
            ours, theirs = _CONTEXT.Pipe()
            process = _CONTEXT.Process(target=_serve, args=(theirs, store, number, self.processes), daemon=True)
            process.start()
            theirs.close()
            self._ranks.append(_Rank(process, ours))

    def _answers(self, request: bytes, timeout_seconds: float) -> list[Any]:
        if not self._ranks:
            self._start()
        for number, rank in enumerate(self._ranks):
            try:
                rank.connection.send_bytes(request)
            except BrokenPipeError:
                raise self._ended(number) from None
        deadline = time.monotonic() + timeout_seconds
        answers: dict[int, Any] = {}
        while len(answers) < self.processes:
            waiting = {rank.connection: n for n, rank in enumerate(self._ranks) if n not in answers}
            ready = wait(list(waiting), max(deadline - time.monotonic(), 0))
            if not ready:
                missing = ", ".join(map(str, waiting.values()))
                raise WorldError(f"no answer in {timeout_seconds:g} s from rank {missing} of {self.processes}")
            for connection in ready:
                assert isinstance(connection, Connection)
                number = waiting[connection]
                try:
                    succeeded, answer = pickle.loads(connection.recv_bytes())
                except EOFError:
                    raise self._ended(number) from None
                if not succeeded:
                    raise WorldError(f"rank {number} of {self.processes}:\n{answer}")
                answers[number] = answer
        return [answers[number] for number in range(self.processes)]

    def _ended(self, number: int) -> WorldError:
        process = self._ranks[number].process
        process.join(1)
        return WorldError(f"rank {number} of {self.processes} has ended with exit code {process.exitcode}")


def run_world(
    function: Callable[..., Any], processes: int, *args: Any, timeout_seconds: float = TIMEOUT_SECONDS
) -> list[Any]:
    """Return what `function(*args)` returns on each rank of a new world; errors are those of `World.run`."""
    with World(processes) as world:
        return world.run(function, *args, timeout_seconds=timeout_seconds)


def _serve(connection: Connection, store: str, rank: int, processes: int) -> None:
    """Answer requests until the other end is closed: (True, result), or (False, traceback)."""
    torch.set_num_threads(1)
    faulthandler.enable()  # where a rank is that the system ends
    joined = False
    while True:
        try:
            request = connection.recv_bytes()
        except EOFError:
            return
        try:
            if not joined:
                _join(store, rank, processes)
                joined = True
            function, args = pickle.loads(request)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                # torch.compile looks at the inputs of a module, and hides this warning, but not where it is an error.
                warnings.filterwarnings("ignore", r"The \.grad attribute of a Tensor that is not a leaf", UserWarning)
                # Plain pickle copies tensors; a connection's own pickle would share their memory.
                answer = pickle.dumps((True, function(*args)))
        except BaseException:
            answer = pickle.dumps((False, traceback.format_exc()))
        gc.collect()  # what this call leaves is freed before the next one begins
        connection.send_bytes(answer)


def _join(store: str, rank: int, processes: int) -> None:
    # The parent ends a world that does not answer; this limit is for a world whose parent has gone.
    torch.distributed.init_process_group(
        "gloo",
        store=torch.distributed.FileStore(store, processes),
        rank=rank,
        world_size=processes,
        timeout=timedelta(seconds=2 * TIMEOUT_SECONDS),
    )
