"""Measured training step: FLOPs and bytes of forward and backward passes of the modules on the meta device.

One layer of each kind is run, on the first micro-batch and on a later one; `counting.step.memory` extends the result to
the whole model and to all micro-batches.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from counting.counts import StepFlops
from counting.measurements.dispatch import Attribution, FlopCounter, Owner, owners_in
from counting.measurements.live_bytes import LiveBytes
from counting.measurements.meta_device import measuring
from counting.measurements.parameters import buffer_bytes, updated_parameters
from counting.measurements.probe import Probe, build_probe
from counting.measurements.update import runs_of_probe, states_by_recipe, trained_groups, with_update
from counting.setup import Setup
from counting.step.course import Change, Course, OfKind, courses_between
from counting.step.profile import Cut, LayerProfile, Passes, StepProfile, passes_of, stretches_between
from torch_models.modules.recompute import set_recompute
from torch_models.spec import ModelSpec

if TYPE_CHECKING:
    from counting.measurements.work.recorder import Recorder


class Step(NamedTuple):
    """Measured FLOPs and memory of one step; `by_recipe` has the states of formats that torch does not run, or None."""

    flops: StepFlops
    memory: StepProfile
    by_recipe: StepProfile | None


class PassesRun(NamedTuple):
    """The passes of the first micro-batch and, if there are more, of a later one; the FLOPs are of all.

    `courses` are those of all stretches in the order of execution, if they were asked for.
    """

    passes: Sequence[Passes]
    loss_held: int
    inputs: int
    flops: StepFlops
    courses: Sequence[Course] = ()


class ToRun(Protocol):
    """A model with one layer of each kind, whose step can be run on the meta device.

    Its layers run in the order of `kinds`, which has the name of each and how many the whole model has. `inputs` are
    alive during the whole step.
    """

    module: nn.Module
    kinds: Sequence[tuple[str, int]]
    inputs: Sequence[Tensor]

    def loss(self) -> Tensor:
        """Run the forward pass of one micro-batch, and return its loss."""

    def cut_at_layers(self, cut: Callable[[], None]) -> list[RemovableHandle]:
        """Have `cut` called before and after each layer, forward and backward. Returns the hooks that do."""

    def owners(self) -> dict[nn.Module, Owner]:
        """The owner of each module that multiplies."""


class ProbeToRun:
    """A probe as `run_passes` takes it. `setup` must be resolved."""

    def __init__(self, probe: Probe, setup: Setup) -> None:
        assert (probe.model.num_mtp_layers > 0) == bool(setup.mtp and probe.spec.mtp_layers), "a probe of this setup"
        self._probe = probe
        self.module: nn.Module = probe.model
        self.kinds: Sequence[tuple[str, int]] = [(spec.kind, count) for spec, count in probe.groups]
        set_recompute(probe.model, setup.recompute)
        probe.model.lm_head.loss_chunk = setup.loss_chunk
        self._token_ids, self._labels = (
            torch.empty(*setup.micro_batch, dtype=torch.long, device="meta") for _ in range(2)
        )
        self._tables = probe.model.model.rotary_tables(self._token_ids)
        self.inputs: Sequence[Tensor] = [
            self._token_ids,
            self._labels,
            *(table for pair in self._tables for table in pair),
        ]

    def loss(self) -> Tensor:
        """The loss of token ids and labels without numbers."""
        loss: Tensor = self._probe.model(self._token_ids, self._labels, tables=self._tables)
        return loss

    def cut_at_layers(self, cut: Callable[[], None]) -> list[RemovableHandle]:
        """Cut where the decoder calls a layer or the final norm, and where the gradient of its input is complete."""

        def cut_before(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            cut()
            args[0].register_hook(lambda gradient: cut())

        parts = (*self._probe.layers, self._probe.model.model.norm)
        return [module.register_forward_pre_hook(cut_before) for module in parts]

    def owners(self) -> dict[nn.Module, Owner]:
        """The owners of all modules, those of a layer as often as the model has it."""
        owners = owners_in(self._probe.model)
        for layer, (_, count) in zip(self._probe.layers, self._probe.groups, strict=True):
            owners |= {module: owner._replace(times=count) for module, owner in owners_in(layer).items()}
        return owners


def run_step(probe: Probe, setup: Setup) -> Step:
    """Run and measure one step. `setup` must be resolved. Gradients stay on the parameters.

    Call it inside `measuring`.
    """
    run = run_passes(ProbeToRun(probe, setup), setup)
    buffers = [buffer_bytes(layer) * n for layer, (_, n) in zip(probe.layers, probe.groups, strict=True)]
    memory = profile_of(run, sum(buffers) + sum(map(buffer_bytes, probe.model.model.mtp_layers)))
    precision, optimizer = setup.precision_recipe, setup.optimizer_recipe
    return Step(
        run.flops,
        *with_update(
            memory,
            trained_groups(probe, precision),
            runs_of_probe(probe),
            setup,
            lambda: states_by_recipe(probe, precision, optimizer),
        ),
    )


def profile_of(run: PassesRun, buffers: int) -> StepProfile:
    """The memory of the passes of a step, without that of an update; `buffers` are the bytes of all buffers."""
    first, *later = run.passes
    return StepProfile(
        layers=tuple(
            LayerProfile(kind=layer.kind, count=layer.count, held=layer.forward.net) for layer in first.layers
        ),
        embedding_held=first.embedding_forward.net,
        loss_held=run.loss_held,
        first_micro_batch=first,
        later_micro_batch=later[0] if later else None,
        inputs=run.inputs,
        buffers=buffers,
    )


def run_passes(
    model: ToRun, setup: Setup, recorder: "Recorder | None" = None, history: list[Change] | None = None
) -> PassesRun:
    """Run forward and backward of the first micro-batch and of a later one, with a cut before and after each layer.

    Gradients stay on the parameters. A `recorder` has the stretches of both afterwards, in the order of execution. With
    an empty `history`, to which every allocation and release is added, the result has the courses. Call it inside
    `measuring`.
    """
    assert setup.micro_batches is not None, "a resolved setup"
    cuts, places = list[Cut](), list[int]()
    parameters = list(model.module.parameters())
    trained = updated_parameters(model.module)
    if setup.zero_gradients == "in_place" and not setup.precision_recipe.gradients_apart:
        for parameter in trained:
            parameter.grad = torch.empty_like(parameter)  # as the step before left it
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    existing = [*parameters, *model.module.buffers(), *model.inputs, *gradients]

    counters: list[FlopCounter] = []  # of each micro-batch

    def observe(*op: Any) -> None:
        counters[-1](*op)
        if recorder is not None:
            recorder(*op)

    with (
        Attribution() as attribution,
        LiveBytes(existing, observe, history) as tracker,
        contextlib.nullcontext() if recorder is None else recorder.of(tracker),
    ):

        def cut() -> None:
            alive = tracker.alive()
            if recorder is not None and cuts:
                recorder.cut(alive)
            cuts.append(Cut(tracker.at_peak, alive))
            places.append(len(history or ()))
            tracker.watch()

        cut()
        hooks = model.cut_at_layers(cut)
        if setup.precision_recipe.gradients_apart:
            hooks += [p.register_post_accumulate_grad_hook(_let_go) for p in trained]
        try:
            for index in range(min(setup.micro_batches, 2)):
                counters.append(FlopCounter(attribution))
                loss = model.loss()
                if index == 0:
                    loss_held = tracker.live - sum(cuts[-1].now.values())
                loss.backward()
                cut()
        finally:  # a model that fails may be run again
            for hook in hooks:
                hook.remove()

    owners = model.owners()
    of_each = [
        StepFlops(
            forward=counter.of_pass("forward", owners),
            backward=counter.of_pass("backward", owners),
            recomputed=counter.of_pass("recomputed", owners),
        )
        for counter in counters
    ]
    kept = {tracker.serial(p.grad) for p in parameters if p.grad is not None}
    stretches = stretches_between(cuts, kept)
    number = len(stretches) // len(counters)
    return PassesRun(
        [passes_of(stretches[start : start + number], model.kinds) for start in range(0, len(stretches), number)],
        loss_held,
        sum(tensor.untyped_storage().nbytes() for tensor in model.inputs),
        of_each[0] + of_each[-1] * (setup.micro_batches - 1),
        courses_between([cut.now for cut in cuts], places, history, OfKind(kept)) if history else (),
    )


def _let_go(parameter: Tensor) -> None:
    """Free the gradient, as a recipe does after adding it to a buffer of another format."""
    parameter.grad = None


class MeasuredCourses(NamedTuple):
    """The courses of the first micro-batch and, if there are more, of a later one, in the order of execution.

    They are those of the embedding, of one layer of each kind, of the loss, of the layers in reverse order, and of the
    embedding. `inputs` are the bytes of token ids, labels and rotary tables.
    """

    micro_batches: list[Sequence[Course]]
    inputs: int


def measure_courses(spec: ModelSpec, setup: Setup) -> MeasuredCourses:
    """Run the passes of a step once more, with every allocation and release written down; `setup` must be resolved."""
    history: list[Change] = []
    with measuring():
        dtype = getattr(torch, setup.precision_recipe.activation_dtype)
        run = run_passes(
            ProbeToRun(build_probe(spec, setup.kernels, dtype, mtp=bool(setup.mtp)), setup), setup, history=history
        )
    number = len(run.courses) // len(run.passes)
    return MeasuredCourses(
        [run.courses[start : start + number] for start in range(0, len(run.courses), number)], run.inputs
    )
