"""What a witness says of one rank of a pipeline: the passes of its stages, and the order in which they run. Torch-free.

`counting.measurements.ranks` runs torch's schedules, and `counting.formulas.layouts` writes the order down by rule.
`counting.ranks.pipeline_memory` extends it to whole stages and to all micro-batches.
"""

from typing import ClassVar, Literal

import msgspec

from counting.counts import StepFlops
from counting.ranks.profile import RankLayer, RankShare, RankStretch, Traffics
from counting.recipes import ModelStates
from counting.step.profile import Stretch

# `input_backward` computes the gradients of a stage's input alone, and `weight_backward` those of its parameters: the
# two halves of `backward` in schedules without bubbles (Qi et al. 2023, arXiv 2401.10241, §2). `reduction` is that of
# the gradients, once, after the last micro-batch.
PassKind = Literal["forward", "backward", "input_backward", "weight_backward", "reduction"]


class StagePass(msgspec.Struct, frozen=True, kw_only=True):
    """One pass of one micro-batch through one stage, as stretches; `layers` in the layers' order, whatever the pass is.

    Forward: `before` is the embedding, `after` final norm, head, loss. Backward: `before` is loss, head and final norm,
    `after` the embedding. A stage without them has stretches of 0 there, or what its call does outside its layers.

    At the end of a pass there is what the stage keeps for the passes that follow, and gradients. What it hands on, its
    output and the gradient of its input, is no part of the net bytes: it is in `PipelineAction.messages`. The peaks
    have all that is alive.
    """

    before: RankStretch
    layers: tuple[RankStretch, ...]
    after: RankStretch


class StagePasses(msgspec.Struct, frozen=True, kw_only=True):
    """The passes of one kind: that of the step's first micro-batch, and any later one.

    Under fully_shard the first forward pass gathers parameters, which stay; the first backward pass makes gradients, to
    which later ones add.
    """

    first: StagePass
    later: StagePass | None = None  # None if the step has one micro-batch


class StageProfile(msgspec.Struct, frozen=True, kw_only=True):
    """One stage of the rank: its shallow model, as a `RankProfile` has it, and its passes."""

    stage: int
    layers: tuple[RankLayer, ...]
    outside_parameters: int
    outside_states: ModelStates
    buffers: int  # bytes of router correction biases, of the whole stage
    passes: dict[PassKind, StagePasses]


class PipelineAction(msgspec.Struct, frozen=True, kw_only=True):
    """One pass that the rank runs. `messages` are bytes of tensors between stages that are alive when it begins.

    These are buffers to receive into, outputs that are kept for backward or until they are sent, and gradients of
    inputs until they are sent.
    """

    kind: PassKind
    stage: int  # the number of the stage in the pipeline
    micro_batch: int
    messages: int


class PipelineProfile(msgspec.Struct, frozen=True, kw_only=True):
    """What the ranks of one coordinate of pp hold, send and compute in one step.

    `actions` are those of `micro_batches_run` micro-batches, which are all of the step or as many as show its peak. One
    more micro-batch adds `further_bytes` to what is alive all the time, and `further_traffic`, that of its passes over
    all layers and of its messages.
    """

    scope: ClassVar[str] = "rank"
    quantity: ClassVar[str] = "rank_bytes"

    pipeline_rank: int
    stages: tuple[StageProfile, ...]
    inputs: int  # bytes of token ids and labels of the micro-batches that run, and of rotary tables
    actions: tuple[PipelineAction, ...]
    micro_batches_run: int
    further_bytes: int
    messages_after: int  # bytes of tensors between stages that are alive when the optimiser runs
    message_traffic: Traffics  # sent and received between stages by the micro-batches that run
    further_traffic: Traffics
    optimizer_step: RankStretch
    flops: StepFlops  # of all stages of the rank and all micro-batches of the step
    shares: tuple[RankShare, ...]


NOTHING_RUNS = RankStretch(memory=Stretch(peak=0, net=0))
