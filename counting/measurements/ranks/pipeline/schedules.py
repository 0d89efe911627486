"""The order of passes on a rank of pp, and the messages alive at each of them: torch's schedule over empty stages.

Torch's own stage and schedule run; only the module of a stage is replaced by one that returns a tensor of the right
shape and keeps nothing. So what is alive between two passes are the messages alone.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from counting.measurements.live_bytes import LiveBytes
from counting.measurements.ranks.fake_world import fake_world
from counting.measurements.ranks.pipeline.stand_ins import pipeline_stand_ins
from counting.ranks.pipeline import Found, PassKind
from counting.ranks.profile import Traffic, Traffics
from torch_models.layout import Layout
from torch_models.parallel.pipeline import build_schedule, messages_of, pipeline_stage
from torch_models.stages import Stage


class Ran(NamedTuple):
    """A pass in the order of a schedule."""

    kind: PassKind
    stage: int
    found: Found
    micro_batch: int | None
    messages: int  # bytes alive between stages when it begins


class Order(NamedTuple):
    """The passes of one rank of pp in a step, and what it sends and receives."""

    passes: list[Ran]
    messages_after: int
    traffic: Traffics


class StageStates:
    """What a stage has when a pass begins: its gathered parameters and its gradients.

    With `sharded`, fully_shard is applied; with `converts`, it reduces gradients in another format than that of the
    gathered parameters. With `let_go`, gradients are freed when they are complete.
    """

    def __init__(self, *, is_first: bool, sharded: bool, converts: bool, let_go: bool) -> None:
        self._is_first, self._sharded, self._converts, self._let_go = is_first, sharded, converts, let_go
        self.gathered = self.accumulated = self.pending = False

    def found(self, kind: PassKind) -> Found:
        """What a pass of this kind finds; gradients only where it may change them."""
        if kind in ("backward", "input_backward", "weight_backward", "reduction"):
            if self.pending:
                return "both" if self.accumulated else "pending"
            if self.accumulated:
                return "gradients"
        return "parameters" if self.gathered else "nothing"

    def run(self, kind: PassKind) -> None:
        """Go on to what is there after a pass of this kind."""
        if kind in ("forward", "wait"):
            self.gathered = self._sharded
        elif kind in ("reduction", "reshard"):
            self.gathered = False
            if kind == "reduction":
                self.accumulated = self.pending = False
        elif kind == "weight_backward" and not self._is_first and self._converts:
            self.pending = True
        elif kind in ("backward", "weight_backward"):
            self.accumulated, self.pending = not self._let_go, False
        elif kind == "input_backward" and not self._is_first and self.pending:
            self.accumulated, self.pending = True, False

    def state(self) -> tuple[bool, bool, bool]:
        """All of it."""
        return self.gathered, self.accumulated, self.pending

    def set(self, state: tuple[bool, bool, bool]) -> None:
        """Go to a state that `state` has returned."""
        self.gathered, self.accumulated, self.pending = state


StatesOf = Callable[[Stage], StageStates]


def run_order(
    own: Sequence[Stage],
    layout: Layout,
    pipeline_rank: int,
    micro_batch: tuple[int, int],
    number: int,
    dtype: torch.dtype,
    states_of: StatesOf,
    shares_embedding: Callable[[Stage], bool],
) -> Order:
    """Run torch's schedule for `number` micro-batches as one rank of pp, which has the stages `own`.

    `micro_batch` is (B, S), and `dtype` that of the residual stream. The process must not have a process group.
    """
    device = torch.device("meta")
    recorder = PassRecorder()
    with pipeline_stand_ins(), fake_world(layout.pp, pipeline_rank):
        stages = []
        for stage in own:
            given, returned = messages_of(stage, layout, micro_batch, dtype)
            module = EmptyStage(stage, returned, recorder)
            if layout.is_sharded:
                module.__class__ = ShardedEmptyStage
            of_torch = pipeline_stage(module, stage, layout, (given, returned), device, None)
            recorder.follow(of_torch, states_of(stage))
            stages.append(of_torch)
        schedule = build_schedule(stages, layout, number)
        batch = torch.zeros(number * micro_batch[0], micro_batch[1], dtype=torch.long, device=device)
        args = [batch] if any(stage.is_first for stage in own) else []
        target = {"target": batch} if any(stage.is_last for stage in own) else {}
        with _Live([batch]) as live:
            recorder.messages = lambda: live.live - batch.nbytes
            losses: list[Tensor] = []  # it keeps them until the step has ended
            schedule.step(*args, return_outputs=False, **target, **({"losses": losses} if target else {}))
            recorder.note_exchange([stage for stage in own if shares_embedding(stage)])
            losses.clear()
            after = recorder.messages()
    return Order(recorder.passes, after, recorder.traffic)


class _Live(LiveBytes):
    """Live bytes, without the worst moment."""

    def watch(self) -> None:
        """Do nothing."""


class PassRecorder:
    """Notes what torch's schedule does with the stages of this rank."""

    def __init__(self) -> None:
        self.passes: list[Ran] = []
        self.traffic: Traffics = {}
        self.messages: Callable[[], int] = int
        self._states: dict[int, StageStates] = {}

    def follow(self, stage: Any, states: StageStates) -> None:
        """Note each pass of a stage of torch from now on, and each message that it sends or receives."""
        self._states[stage.stage_index] = states
        forward, weights = stage.forward_one_chunk, stage.backward_weight_one_chunk
        backward: Callable[..., Any] = stage.backward_one_chunk
        sharded = isinstance(stage.submod, FSDPModule)

        def forward_one_chunk(micro_batch: int, *args: Any, **kwargs: Any) -> Any:
            self.note("forward", stage.stage_index, micro_batch)
            return forward(micro_batch, *args, **kwargs)

        def backward_one_chunk(micro_batch: int, *args: Any, full_backward: bool = True, **kwargs: Any) -> Any:
            self.note("backward" if full_backward else "input_backward", stage.stage_index, micro_batch)
            return backward(micro_batch, *args, full_backward=full_backward, **kwargs)

        def backward_weight_one_chunk(micro_batch: int, *args: Any, **kwargs: Any) -> Any:
            self.note("weight_backward", stage.stage_index, micro_batch)
            return weights(micro_batch, *args, **kwargs)

        def perform_reduce_grad(factor: int) -> None:
            if sharded:
                self.note("reduction", stage.stage_index, None)

        for function in (forward_one_chunk, backward_one_chunk, backward_weight_one_chunk, perform_reduce_grad):
            setattr(stage, function.__name__, function)
        for name, phase in (("fwd", "forward"), ("bwd", "backward")):
            for direction, operation in (("send", "send"), ("recv", "receive")):
                self._count(stage, f"get_{name}_{direction}_ops", f"{phase} {operation} pp")

    def _count(self, stage: Any, name: str, key: str) -> None:
        """Count what torch's schedule sends or receives with the result of a method; it uses each result once."""
        plain = getattr(stage, name)

        def operations(micro_batch: int) -> Any:
            found = plain(micro_batch)
            for operation in found:
                size = operation.tensor.nbytes
                sends = "send" in name
                once = Traffic(calls=1, bytes_in=size if sends else 0, bytes_out=0 if sends else size)
                self.traffic[key] = self.traffic.get(key, Traffic()) + once
            return found

        setattr(stage, name, operations)

    def note(self, kind: PassKind, stage: int, micro_batch: int | None) -> None:
        """Note a pass that begins now."""
        states = self._states[stage]
        if kind == "reshard" and not states.gathered:
            return  # before the first pass, and after the reduction, which has freed them
        self.passes.append(Ran(kind, stage, states.found(kind), micro_batch, self.messages()))
        states.run(kind)

    def note_exchange(self, copies: Sequence[Stage]) -> None:
        """Note the exchange that follows all passes, if a stage of another rank has a copy of the embedding too."""
        if len(copies) == 1:
            self.note("exchange", copies[0].number, None)


class EmptyStage(nn.Module):
    """Stands for the module of a stage: it returns a tensor like that of the stage, and keeps nothing."""

    def __init__(self, stage: Stage, output: Tensor, recorder: PassRecorder) -> None:
        super().__init__()
        # The output of the first stage, whose input needs no gradient, needs one because of a parameter.
        self.weight = nn.Parameter(torch.empty(0, device="meta")) if stage.is_first else None
        self.number, self.output, self.recorder = stage.number, output, recorder

    def forward(self, x: Tensor) -> Tensor:
        """The output of the stage."""
        out: Tensor = _Empty.apply(x, self.weight, self.output)  # type: ignore[no-untyped-call]
        return out


class _Empty(torch.autograd.Function):
    """A new tensor like `output`; the gradient of `x` is a new tensor like it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, output: Tensor) -> Tensor:
        ctx.like = x.shape, x.dtype
        return torch.empty(output.shape, dtype=output.dtype, device=output.device)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        shape, dtype = ctx.like
        of_x, of_weight, _ = ctx.needs_input_grad
        return (
            gradient.new_empty(shape, dtype=dtype) if of_x else None,
            gradient.new_empty(0) if of_weight else None,
            None,
        )


class ShardedEmptyStage(FSDPModule, EmptyStage):
    """An empty stage that torch's schedules take for one under fully_shard."""

    def unshard(self, async_op: bool = False) -> Any:
        """Note it; the handle notes when the schedule waits for it."""
        self.recorder.note("unshard", self.number, None)
        return _Handle(self)

    def reshard(self) -> None:
        """Note it."""
        self.recorder.note("reshard", self.number, None)

    def set_is_last_backward(self, is_last_backward: bool) -> None:
        """Do nothing."""

    def set_reshard_after_backward(self, reshard_after_backward: bool, *, recurse: bool = True) -> None:
        """Do nothing."""

    def set_requires_gradient_sync(self, requires_gradient_sync: bool, *, recurse: bool = True) -> None:
        """Do nothing."""


class _Handle(NamedTuple):
    module: ShardedEmptyStage

    def wait(self) -> None:
        """Note it."""
        self.module.recorder.note("wait", self.module.number, None)
