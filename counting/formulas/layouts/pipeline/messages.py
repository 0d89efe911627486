"""Tensors between the stages of a pipeline: the bytes that are alive at each pass of a rank, and what is sent.

A message is the residual stream of one micro-batch, on a rank of tp its part of it, or the gradient of the same. For
every micro-batch of a step torch allocates a buffer for what a stage receives in forward and in backward, before the
first pass, and keeps it (torch 2.13, torch/distributed/pipelining/stage.py, `_setup_forward_recv_info`). What a stage
sends it has computed in new memory:

- an output is kept until its backward pass, and the loss of the last stage until the end of the step;
- what is sent is kept as long as a variable refers to the sending. With gpipe and several stages on a rank that is the
  whole step, since all sendings are waited for at its end (schedules.py, `send_ops`, `fwd_sends_to_wait`). With 1f1b
  it is until the next of its kind; but the variable of the last output that is sent before the first backward pass is
  free again only when no forward pass is left (`send_work`);
- between two stages of one rank the tensor itself takes the buffer's place.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from counting.formulas.held import FP32
from counting.formulas.layouts.pipeline.order import Pass
from counting.formulas.layouts.traffic import Sending, counted
from counting.ranks.profile import Traffics, total_traffic
from torch_models.layout import Layout

GIVES_INPUT_GRADIENT = ("backward", "input_backward")


class Messages(NamedTuple):
    """The messages of one rank of a pipeline, of `size` bytes each."""

    layout: Layout  # resolved
    pipeline_rank: int
    size: int

    @property
    def _stages(self) -> tuple[int, ...]:
        return self.layout.stages_of_rank(self.pipeline_rank)

    def receives(self, stage: int) -> int:
        """Return how many messages a stage receives for one micro-batch, from another rank or from this one."""
        return (stage > 0) + (stage < self.layout.stages - 1)

    def _passes_on(self, stage: int) -> bool:
        """Whether the next stage is on this rank too."""
        return stage + 1 in self._stages

    def _sends_forward(self, stage: int) -> bool:
        return stage < self.layout.stages - 1 and not self._passes_on(stage)

    def _sends_backward(self, stage: int) -> bool:
        return stage > 0 and stage - 1 not in self._stages

    # --- Bytes -------------------------------------------------------------------------------------------------------

    def buffers(self) -> int:
        """Return the bytes of the buffers to receive into, of one micro-batch."""
        return self.size * sum(map(self.receives, self._stages))

    def losses(self) -> int:
        """Return the bytes of the loss of one micro-batch, on the rank of the last stage."""
        return FP32 * (self.layout.stages - 1 in self._stages)

    def after(self, passes: Sequence[Pass]) -> int:
        """Return the bytes that are alive after the step: the buffers.

        So are gradients of inputs that are computed apart from those of parameters, until the next step begins. Of one
        that is passed on to a stage of the same rank the buffer is the gradient itself.
        """
        kept = sum(each.kind == "input_backward" and self._sends_backward(each.stage) for each in passes)
        return _micro_batches(passes) * self.buffers() + kept * self.size

    def alive(self, passes: Sequence[Pass]) -> list[int]:
        """Return the bytes of messages that are alive before each of all passes of the step, and after the last."""
        buffers = _micro_batches(passes) * self.buffers()
        extra = self._of_one_forward_one_backward if self.layout.schedule == "1f1b" else self._kept_to_the_end
        return [buffers + found for found in extra(passes)]

    def _kept_to_the_end(self, passes: Sequence[Pass]) -> Iterator[int]:
        """All that was sent, and the losses."""
        kept = 0
        yield kept
        for kind, stage, _ in passes:
            if kind == "forward":
                kept += self.size * self._sends_forward(stage)
                kept += FP32 * (stage == self.layout.stages - 1)
            elif kind in GIVES_INPUT_GRADIENT:
                kept += self.size * self._sends_backward(stage)
            yield kept

    def _of_one_forward_one_backward(self, passes: Sequence[Pass]) -> Iterator[int]:
        """Outputs that wait for their backward pass, or to which a variable refers; the last gradient; the losses."""
        (stage,) = self._stages
        output = self.size if self._sends_forward(stage) else 0
        ahead = next(index for index, each in enumerate(passes) if each.kind == "backward")
        sent_last = ahead - 2  # the last output that is sent before the first backward pass; negative: there is none
        forwards = sum(each.kind == "forward" for each in passes)
        waiting: set[int] = set()
        losses = gradients = done = 0
        newest = -1
        yield 0
        for kind, _, micro_batch in passes:
            if kind == "forward":
                waiting.add(micro_batch)
                newest = micro_batch
                losses += FP32 * (stage == self.layout.stages - 1)
            else:
                waiting.discard(micro_batch)
                done += 1
                gradients = self.size * self._sends_backward(stage)
            kept = waiting | {newest}
            if sent_last >= 0 and newest >= sent_last and done <= forwards - ahead:
                kept = kept | {sent_last}
            yield output * len(kept) + gradients + losses

    # --- Traffic -----------------------------------------------------------------------------------------------------

    def traffic(self, micro_batches: int) -> Traffics:
        """Return what this rank sends to other stages' ranks and receives from them."""
        stages, size = self._stages, self.size
        ahead = sum(map(self._sends_forward, stages))
        back = sum(map(self._sends_backward, stages))
        # What a stage gets forward it gives back, and the reverse.
        forward = counted("forward", [_send(size, ahead * micro_batches), _receive(size, back * micro_batches)])
        backward = counted("backward", [_send(size, back * micro_batches), _receive(size, ahead * micro_batches)])
        return total_traffic([(forward, 1), (backward, 1)])


def _micro_batches(passes: Sequence[Pass]) -> int:
    return 1 + max(each.micro_batch for each in passes)


def _send(size: int, times: int) -> Sending:
    return Sending("send", "pp", size, 0, times)


def _receive(size: int, times: int) -> Sending:
    return Sending("receive", "pp", 0, size, times)
