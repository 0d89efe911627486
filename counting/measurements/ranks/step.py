"""The training step of a rank, run and cut into stretches.

The functions here do not ask what the process group and the tensors are: fake and without values, or real.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from counting.counts import StepFlops
from counting.measurements.dispatch import Attribution, FlopCounter, owners_in
from counting.measurements.ranks.categories import CategoryMarks, RankCut, rank_stretches
from counting.measurements.ranks.collectives import Axes, CollectiveCounter
from counting.measurements.ranks.live_bytes import RankBytes
from counting.measurements.ranks.skipped import SkippedByCausality
from counting.measurements.ranks.stand_ins import local, register_first_hook
from counting.ranks.profile import RankMicroBatch, RankStretch
from counting.setup import Setup
from counting.step.profile import Cut
from torch_models.layout import Layout
from torch_models.parallel.context import RankBatch
from torch_models.parallel.sharded import set_gradient_synchronisation
from torch_models.parallel.tensor import loss_context
from torch_models.training.model import TrainingModel

if TYPE_CHECKING:
    from counting.measurements.work.recorder import Recorder


class RankRun(NamedTuple):
    """What a step does before the optimiser's: its first, a middle and its last micro-batch."""

    micro_batches: Sequence[RankMicroBatch]
    inputs: int
    flops: StepFlops  # of all micro-batches


def run_rank(
    model: TrainingModel,
    setup: Setup,
    layout: Layout,
    axes: Axes,
    counts: Sequence[int],
    recorder: "Recorder | None" = None,
) -> RankRun:
    """Run the micro-batches of a step on this rank; gradients stay on the parameters.

    `axes` is the result of `collectives.axes_of`. `counts` says for how many layers each layer of `model` stands. A
    `recorder` has the stretches of all micro-batches afterwards, in the order of execution. Call it inside `measuring`.
    """
    assert setup.micro_batches is not None, "a resolved setup"
    number = min(setup.micro_batches, 3)
    device = local(next(model.parameters())).device
    batch = batch_of_zeros(model, setup, layout, device)
    tables = model.model.rotary_tables(batch.token_ids)
    inputs = [batch.token_ids, batch.labels, *(tensor for pair in (*tables, *(batch.further or ())) for tensor in pair)]
    apart = not layout.is_sharded and setup.precision_recipe.gradients_apart

    collectives, counters = CollectiveCounter(axes), list[tuple[FlopCounter, SkippedByCausality]]()

    def observe(*op: Any) -> None:
        for counter in counters[-1]:
            counter(*op)
        collectives(*op)
        if recorder is not None:
            recorder(*op)

    def observe_wrapped(*op: Any) -> None:
        counters[-1][1].of_all_positions(*op)

    cuts: list[RankCut] = []
    existing = [*model.parameters(), *model.buffers(), *inputs]
    with (
        Attribution() as attribution,
        RankBytes(existing, observe, observe_wrapped) as tracker,
        contextlib.nullcontext() if recorder is None else recorder.of(tracker),
    ):

        def cut() -> None:
            alive = tracker.alive()
            if recorder is not None and cuts:
                recorder.cut(alive)
            cuts.append(RankCut(Cut(tracker.at_peak, alive), collectives.take()))
            tracker.watch()

        cut()
        layers = list(model.model.layers)[: model.model.num_layers]
        with loss_context(layout), CategoryMarks(model, tracker, let_go=apart) as marks:
            hooks = [cut_before(module, cut) for module in (*layers, model.model.norm)]
            for index in range(number):
                counters.append((FlopCounter(attribution), SkippedByCausality(attribution, layout.cp)))
                set_gradient_synchronisation(model, layout, last=index == number - 1)
                collectives.phase = "forward"
                loss = model(batch.token_ids, batch.labels, tables=tables, further=batch.further)
                if index == 0:
                    marks.after_first_forward()
                collectives.phase = "backward"
                loss.backward()
                cut()
                marks.after_micro_batch()
            for hook in hooks:
                hook.remove()
            stretches = rank_stretches(cuts, marks.found())
    of_each = len(stretches) // number
    return RankRun(
        [_micro_batch(stretches[start : start + of_each], len(layers)) for start in range(0, len(stretches), of_each)],
        sum(tensor.untyped_storage().nbytes() for tensor in inputs),
        _step_flops(model, layers, counts, counters, setup.micro_batches),
    )


def batch_of_zeros(model: TrainingModel, setup: Setup, layout: Layout, device: torch.device) -> RankBatch:
    """A micro-batch of this rank's positions; its values are 0."""
    sequences, length = setup.micro_batch

    def zeros() -> Tensor:
        return torch.zeros(sequences, length // layout.cp, dtype=torch.long, device=device)

    further = tuple((zeros(), zeros()) for _ in range(model.num_mtp_layers)) if layout.cp > 1 else None
    return RankBatch(zeros(), zeros(), further)


def cut_before(module: nn.Module, cut: Callable[[], None]) -> Any:
    """Cut before all that the module's forward pass does, and when backward has completed its input's gradient.

    `fully_shard` gathers a layer's parameters in hooks: here the one in forward follows the cut. In backward the
    layer's gradients are reduced before the cut, and parameters are gathered after it for the layer before.
    """

    def before(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        cut()
        # One of the hooks that are there gathers the parameters of the module that returned this tensor.
        register_first_hook(args[0], lambda gradient: cut())

    return module.register_forward_pre_hook(before, prepend=True)


def _micro_batch(stretches: Sequence[RankStretch], layers: int) -> RankMicroBatch:
    embedding_forward, *forward = stretches[: layers + 1]
    loss, *backward, embedding_backward = stretches[layers + 1 :]
    assert len(backward) == layers
    return RankMicroBatch(
        embedding_forward=embedding_forward,
        forward=tuple(forward),
        loss=loss,
        backward=tuple(reversed(backward)),
        embedding_backward=embedding_backward,
    )


def _step_flops(
    model: TrainingModel,
    layers: Sequence[nn.Module],
    counts: Sequence[int],
    counters: Sequence[tuple[FlopCounter, SkippedByCausality]],
    micro_batches: int,
) -> StepFlops:
    """The FLOPs of all micro-batches of the whole model; a middle one stands for all between first and last."""
    owners = owners_in(model)
    for layer, count in zip(layers, counts, strict=True):
        owners |= {module: owner._replace(times=count) for module, owner in owners_in(layer).items()}
    total = StepFlops()
    for index, (counter, skipped) in enumerate(counters):
        of_one = StepFlops(
            forward=counter.of_pass("forward", owners),
            backward=counter.of_pass("backward", owners),
            recomputed=counter.of_pass("recomputed", owners),
            skipped_by_causality=skipped.counts(owners),
        )
        total += of_one * (micro_batches - 2 if index == 1 and len(counters) == 3 else 1)
    return total
