"""Measures a layout in this process or, if it is part of a process group, in another one."""

import contextlib
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from counting.allocator.events import Event
from counting.measurements.allocations.compiled import import_compiler
from counting.measurements.meta_device import ONE_AT_A_TIME, measuring
from counting.measurements.ranks.allocations import log_of_this_rank
from counting.measurements.ranks.context import distinct_context_ranks, of_worst
from counting.measurements.ranks.fake_world import fake_world
from counting.measurements.ranks.rank import profile_of_rank
from counting.ranks.pipeline import PipelineProfile
from counting.ranks.profile import RankProfile
from counting.ranks.shallow import Shallow, shallow
from counting.setup import Setup
from counting.work import OWN_STYLE, LayerStyle, StepWork
from torch_models.errors import UserError
from torch_models.layout import Layout
from torch_models.spec import ModelSpec
from torch_models.stages import stages_of

# The other process finds modules where this one does, whatever the working directory is by now.
_CODE = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from counting.measurements.ranks.process import answer; answer()"
)
_ROOT = Path(__file__).resolve().parents[3]


def measure_ranks(spec: ModelSpec, setup: Setup, layout: Layout) -> RankProfile:
    """What each rank of `layout` holds, sends and computes in one step of `spec`; both settings must be resolved.

    The layers of the shallow model are measured; they stand for all layers. If this process has a process group, which
    a fake one would replace, another process measures. Raises `UserError` for what cannot be divided so.
    """
    with ONE_AT_A_TIME:
        if dist.is_initialized():
            found = _in_another_process("measure_ranks", spec, setup, layout)
            assert isinstance(found, RankProfile)
            return found
        model = shallow(spec)
        ranks = [rank * layout.tp for rank in distinct_context_ranks(layout)]
        return of_worst(model, setup, [measure_model(model, setup, layout, rank) for rank in ranks])


def measure_pipeline(spec: ModelSpec, setup: Setup, layout: Layout) -> tuple[PipelineProfile, ...]:
    """What the ranks of each place in the pipeline of `layout` hold, send and compute; otherwise as `measure_ranks`."""
    # Importing it loads torch's compiler, which no other layout needs.
    from counting.measurements.ranks.pipeline.profile import profiles_of_pipeline

    with ONE_AT_A_TIME:
        if dist.is_initialized():
            profiles: tuple[PipelineProfile, ...] = _in_another_process("measure_pipeline", spec, setup, layout)
            return profiles
        with measuring():
            return profiles_of_pipeline(stages_of(spec, layout), setup, layout)


def measure_work(spec: ModelSpec, setup: Setup, layout: Layout, style: LayerStyle = OWN_STYLE) -> StepWork:
    """What the ranks of `layout` do in one step of `spec`, op by op; where it is measured is as in `measure_ranks`.

    Of the ranks of cp, which compute and send the same, the first is measured.
    """
    with ONE_AT_A_TIME:
        if dist.is_initialized():
            work = _in_another_process("measure_work", spec, setup, layout, style)
            assert isinstance(work, StepWork)
            return work
        from counting.measurements.work.styles import layers_run_as

        if layout.pp > 1:
            from counting.measurements.ranks.pipeline.work import work_of_pipeline

            with measuring(), layers_run_as(style):
                return work_of_pipeline(stages_of(spec, layout), setup, layout)
        from counting.measurements.work.rank import work_of_rank

        with fake_world(layout.ranks, 0), measuring(), layers_run_as(style):
            return work_of_rank(shallow(spec), setup, layout, torch.device("meta"))


def log_of_rank(spec: ModelSpec, setup: Setup, layout: Layout, rank: int) -> list[Event]:
    """The log of two steps of the whole model on `rank` of `layout`; where it is measured is as in `measure_ranks`."""
    with ONE_AT_A_TIME:
        if dist.is_initialized():
            events: list[Event] = _in_another_process("log_of_rank", spec, setup, layout, rank)
            return events
        if layout.pp > 1:
            from counting.measurements.ranks.pipeline.allocations import log_of_this_pipeline_rank
            from counting.measurements.ranks.pipeline.stand_ins import pipeline_stand_ins

            with pipeline_stand_ins(), fake_world(layout.ranks, rank), measuring():
                return log_of_this_pipeline_rank(spec, setup, layout, torch.device("meta"))
        if setup.execution == "compiled":
            import_compiler()
        with fake_world(layout.ranks, rank), measuring():
            return log_of_this_rank(spec, setup, layout, torch.device("meta"))


def measure_model(model: Shallow, setup: Setup, layout: Layout, rank: int = 0) -> RankProfile:
    """What `rank` holds, sends and computes in one step of `model`; the process must not have a process group."""
    # The group first: where torch's compiler seems to be loaded, torch looks for more of it to make a group.
    with ONE_AT_A_TIME, fake_world(layout.ranks, rank), measuring():
        return profile_of_rank(model, setup, layout, torch.device("meta"))


def _in_another_process(function: str, *arguments: object) -> Any:
    """The result of this function of this module in a new process. Raises what it raises there, if a `UserError`."""
    path = [str(_ROOT), *(os.path.abspath(entry) for entry in sys.path)]
    request = pickle.dumps(path) + pickle.dumps((function, arguments))
    done = subprocess.run([sys.executable, "-c", _CODE], input=request, capture_output=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"measuring in another process has failed:\n{done.stderr.decode(errors='replace')}")
    kind, message, content = pickle.loads(done.stdout)
    if kind is None:
        return content
    error = kind.__new__(kind, message)  # its constructor takes other arguments than the message
    error.__dict__.update(content)
    raise error


def answer() -> None:
    """Read a request from standard input, measure, and write the result, or a `UserError`, to standard output."""
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as out:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what is printed meanwhile is no part of the answer
        function, arguments = pickle.load(sys.stdin.buffer)
        try:
            found: tuple[object, ...] = (None, None, globals()[function](*arguments))
        except UserError as error:
            found = (type(error), str(error), vars(error))
        with contextlib.suppress(BrokenPipeError):
            pickle.dump(found, out)
