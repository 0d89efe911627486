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
from torch_models.layout import HALVED, Layout
from torch_models.stages import micro_batches_of_round

# `input_backward` computes the gradients of a stage's input alone, and `weight_backward` those of its parameters: the
# two halves of `backward` in schedules without bubbles (Qi et al. 2023, arXiv 2401.10241, §2).
# The others are there where fully_shard is applied. `reduction` is that of a stage's gradients, once, after its last
# micro-batch; it frees the gathered parameters. In schedules with several stages a rank, `unshard` begins to gather the
# parameters of a stage, `wait` copies them from the buffers, right before the pass that first needs them, and `reshard`
# frees them; with one stage a rank the first forward pass gathers them.
# After all passes, `exchange` is the sum of the gradients of an embedding that the first and the last stage share, for
# multi-token prediction, where they are on two ranks.
PassKind = Literal[
    "forward", "backward", "input_backward", "weight_backward", "reduction", "unshard", "wait", "reshard", "exchange"
]

# What a stage has when a pass begins. `nothing`: no gradients, and under fully_shard no gathered parameters.
# `parameters`: under fully_shard the gathered parameters; without it no pass finds this. `gradients`: these, and
# gradients that the pass adds to. Two more occur under fully_shard where gradients are reduced in another format: a
# `weight_backward` leaves gradients in the format of the parameters (`pending`), which the next pass that ends with
# fully_shard's hooks converts and adds to those that are there (`both`: pending and others).
Found = Literal["nothing", "parameters", "gradients", "pending", "both"]


class StagePass(msgspec.Struct, frozen=True, kw_only=True):
    """One pass of one micro-batch through one stage, as stretches; `layers` in the layers' order, whatever the pass is.

    Ascending passes: `before` is the embedding, `after` final norm, head, loss. The others: `before` is loss, head and
    final norm, `after` the embedding. A stage without them has stretches of 0 there, or what its call does outside its
    layers. Ascending are `forward`, the passes of fully_shard alone, and `weight_backward` but in the first stage,
    where it is a whole backward pass: its input needs no gradient, so `input_backward` does nothing.

    At the end of a pass there is what the stage keeps for the passes that follow, and gradients. What it hands on, its
    output and the gradient of its input, is no part of the net bytes of the whole pass: it leaves them at the end of
    the last stretch, and is in `PipelineAction.messages`. The peaks have all that is alive.
    """

    before: RankStretch
    layers: tuple[RankStretch, ...]
    after: RankStretch
    ascending: bool  # whether the first layer is passed first


class StageProfile(msgspec.Struct, frozen=True, kw_only=True):
    """One stage of the rank: its shallow model, as a `RankProfile` has it, and its passes."""

    stage: int
    layers: tuple[RankLayer, ...]
    outside_parameters: int
    outside_states: ModelStates
    buffers: int  # bytes of router correction biases, of the whole stage
    passes: dict[str, StagePass] | None  # by the key of an action; None where no formula has them


class PipelineAction(msgspec.Struct, frozen=True, kw_only=True):
    """One pass that the rank runs. `messages` are bytes of tensors between stages that are alive when it begins.

    These are buffers to receive into, outputs that are kept for backward or until they are sent, gradients of inputs
    until they are sent, and losses. Each micro-batch more than those that run adds `further` to them; if all of a step
    run, it is 0. An input's gradient from `input_backward` stays with the input until the step ends.
    """

    scope: ClassVar[str] = "rank"

    kind: PassKind
    stage: int  # the number of the stage in the pipeline
    found: Found
    micro_batch: int | None  # None in passes of fully_shard alone
    messages: int
    further: int

    @property
    def key(self) -> str:
        """The key of its `StagePass`."""
        return f"{self.kind} {self.found}"


class PipelineProfile(msgspec.Struct, frozen=True, kw_only=True):
    """What the ranks of one coordinate of pp hold, send and compute in one step.

    `actions` are those of `micro_batches_run` micro-batches, which are all of the step or as many as show its peak. One
    more micro-batch adds `further_inputs` to `inputs`, and `further_traffic`, that of its passes over all layers and of
    its messages.
    """

    scope: ClassVar[str] = "rank"
    quantity: ClassVar[str] = "rank_bytes"

    pipeline_rank: int
    stages: tuple[StageProfile, ...]
    inputs: int  # bytes of token ids and labels of the micro-batches that run, and of rotary tables
    actions: tuple[PipelineAction, ...]
    micro_batches_run: int
    further_inputs: int
    messages_after: int  # bytes of tensors between stages that are alive when the optimiser runs
    further_after: int  # what one more micro-batch adds to them
    message_traffic: Traffics  # sent and received between stages by the micro-batches that run
    further_traffic: Traffics
    gradient_clipping: RankStretch | None = None  # of all stages of the rank; None: gradients are not clipped
    optimizer_step: RankStretch
    flops: StepFlops  # of all stages of the rank and all micro-batches of the step
    shares: tuple[RankShare, ...]
    peak_bound_bytes: int | None = None  # an upper bound of the peak, where no formula has the passes
    context_rank: int = 0  # the rank of cp with the largest peak, which these numbers are of


NOTHING_RUNS = RankStretch(memory=Stretch(peak=0, net=0))

ROUNDS_RUN = 3  # of a looped schedule: it has begun after the first two, so that the third is a steady one


def micro_batches_to_run(layout: Layout, micro_batches: int) -> int:
    """How many of the micro-batches of a step show its peak: the warm-up, and those of a steady round.

    `layout` is resolved and has pp > 1. The schedule accepts that number, and orders them as it orders all of them.
    """
    match layout.schedule:
        case "gpipe":  # all wait at once
            return micro_batches
        case "1f1b":  # p are under way, and an output stays until as many more are
            return min(micro_batches, 2 * layout.pp)
        case "interleaved" | "zb" if layout.is_sharded and layout.stages_per_rank != 2:
            return micro_batches  # what fully_shard does of a round does not come in equal parts for each of them
        case "interleaved" | "zb":
            return min(micro_batches, ROUNDS_RUN * micro_batches_of_round(layout.pp, micro_batches))
    return min(micro_batches, layout.stages + 2)


def micro_batches_of_extension(layout: Layout, micro_batches: int) -> int:
    """The micro-batches by which a step is longer whose order is compared, to find what each further one adds.

    It is 0 if all micro-batches of the step run; else those of a steady round.
    """
    if micro_batches_to_run(layout, micro_batches) == micro_batches:
        return 0
    return micro_batches_of_round(layout.pp, micro_batches) if layout.schedule in ("interleaved", "zb") else 1


MOST_ORDERED = 20_000  # passes of all ranks of pp, about, that are laid out in time


def micro_batches_to_order(layout: Layout, micro_batches: int) -> int:
    """How many of the micro-batches of a step have their passes in the order that is laid out in time.

    All, unless they have more than `MOST_ORDERED` passes; then as many whole rounds as have not. A further one adds to
    the step what one in the middle does. `layout` is resolved and has pp > 1. The schedule accepts that number.
    """
    halves = 3 if layout.schedule in HALVED else 2
    most = MOST_ORDERED // (halves * layout.stages)
    if micro_batches <= most:
        return micro_batches
    looped = layout.schedule in ("interleaved", "zb")
    of_round = micro_batches_of_round(layout.pp, micro_batches) if looped else 1
    rounds = max(most // of_round, ROUNDS_RUN if looped else 2 * layout.stages)
    return min(micro_batches, rounds * of_round)
