"""The passes of one stage of a pipeline, run on its modules by torch's own stage, and cut into stretches."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.pipelining import PipelineStage

from counting.counts import StepFlops
from counting.measurements.dispatch import Attribution, FlopCounter, owners_in
from counting.measurements.parameters import updated_parameters
from counting.measurements.ranks.categories import Categories, CategoryMarks, RankCut, rank_stretches
from counting.measurements.ranks.collectives import Axes, CollectiveCounter
from counting.measurements.ranks.live_bytes import RankBytes
from counting.measurements.ranks.pipeline.plans import PlannedPass
from counting.measurements.ranks.pipeline.stand_ins import before_groups, parameter_of, prepare_stage
from counting.measurements.ranks.skipped import SkippedByCausality
from counting.measurements.ranks.stand_ins import local
from counting.measurements.ranks.step import cut_before
from counting.ranks.pipeline import PassKind, StagePass
from counting.step.profile import Alive, Cut
from torch_models.layout import Layout
from torch_models.parallel.pipeline import add_gradient_of, embedding_gradient
from torch_models.parallel.tensor import loss_context
from torch_models.training.stage import StageModel

if TYPE_CHECKING:
    from counting.measurements.work.recorder import Recorder

OF_BATCHES: tuple[PassKind, ...] = ("forward", "backward", "input_backward", "weight_backward")


class PassRun(NamedTuple):
    """A pass that was run."""

    step: PlannedPass
    measured: StagePass
    flops: StepFlops


class _Marked(NamedTuple):
    """The moments of a pass: its start, and the end of each section in the order of execution.

    Section 0 stands before the layers in the model, then each layer is one, and the last stands after them.
    """

    step: PlannedPass
    start: RankCut
    moments: list[RankCut]
    messages: set[int]  # storages that are alive between stages when it begins
    newborn: set[int]  # those that it hands on
    counter: FlopCounter
    skipped: SkippedByCausality
    ascending: bool


class StageRun:
    """Runs passes of a stage, one after the other.

    `of_torch` is torch's stage of `module`. `counts` says for how many layers each layer of the module stands. With
    `let_go`, each gradient is freed when it is complete. A `recorder` has the stretches of all passes afterwards, in
    the order of execution, each pass with one before it, which is empty. Enter it inside `measuring`.
    """

    def __init__(
        self,
        module: StageModel,
        of_torch: PipelineStage,
        layout: Layout,
        axes: Axes,
        counts: Sequence[int],
        micro_batch: tuple[int, int],
        *,
        let_go: bool,
        recorder: "Recorder | None" = None,
    ) -> None:
        self._module, self._stage, self._layout, self._counts, self._let_go = module, of_torch, layout, counts, let_go
        self._collectives, self._recorder = CollectiveCounter(axes), recorder
        self._layers = list(module.model.layers)[: module.model.num_layers]
        device = local(next(module.parameters())).device
        self._token_ids, self._labels = (torch.zeros(micro_batch, dtype=torch.long, device=device) for _ in range(2))
        self._ends_with_hooks = layout.is_sharded or module.stage.is_first
        self._losses: dict[int, Tensor] = {}
        self._handles: list[Any] = []
        self._has_marks = False
        self._section_of_module = self._sections()
        self._messages: set[int] = set()
        self._moments: list[RankCut] = []
        self._section = 0

    def run(self, steps: Sequence[PlannedPass]) -> list[PassRun]:
        """Run these passes in order."""
        module, stage = self._module, self._stage
        prepare_stage(stage, sum(step.kind == "forward" for step in steps))
        buffers = [
            info.buffer
            for of_one in (*stage.args_recv_info.values(), *stage.grad_recv_info.values())
            for info in of_one
            if info.buffer is not None
        ]
        assert module.tables is not None
        tables = [table for pair in module.tables for table in pair]
        existing = [*module.parameters(), *module.buffers(), self._token_ids, self._labels, *tables, *buffers]
        found: list[_Marked] = []
        observers = self._observe, self._observe_wrapped
        with (
            Attribution() as self._attribution,
            RankBytes(existing, *observers) as self._tracker,
            contextlib.nullcontext() if self._recorder is None else self._recorder.of(self._tracker),
        ):
            self._messages = {self._tracker.serial(buffer) for buffer in buffers}
            marks = CategoryMarks(module, self._tracker, let_go=self._let_go)
            with loss_context(self._layout), marks as self._marks:
                hooks = [cut_before(each, self._cut_next) for each in self._cut_modules()]
                if not module.stage.is_last:
                    # What fully_shard does at the end of the stage is not part of its last layer.
                    hooks.append(self._layers[-1].register_forward_hook(lambda *_: self._cut_next()))
                for step in steps:
                    if step.made:
                        self._make_gradients()
                    else:
                        found.append(self._run(step))
                for hook in hooks:
                    hook.remove()
                categories = self._marks.found()
        return [PassRun(one.step, self._pass(one, categories), self._flops(one.counter, one.skipped)) for one in found]

    def _sections(self) -> dict[nn.Module, int]:
        """The section of each module: 0 for what precedes the first layer, and for the stage itself."""
        found = dict.fromkeys(self._module.modules(), 0)
        after = [*self._module.model.mtp_layers, self._module.model.norm, self._module.lm_head]
        for section, modules in (
            (self._last_section, [each for each in after if each is not None]),
            *((number, [layer]) for number, layer in enumerate(self._layers, 1)),
        ):
            found |= {inner: section for module in modules for inner in module.modules()}
        return found

    def _cut_modules(self) -> list[nn.Module]:
        return [*self._layers, *([self._module.model.norm] if self._module.stage.is_last else [])]

    # --- one pass -----------------------------------------------------------------------------------------------

    def _run(self, step: PlannedPass) -> _Marked:
        kind, stage = step.kind, self._module.stage
        whole_backward = kind == "weight_backward" and stage.is_first
        self._ascending = kind not in ("backward", "input_backward") and not whole_backward
        self._collectives.phase = "forward" if kind in ("forward", "unshard", "wait") else "backward"
        self._counter = FlopCounter(self._attribution)
        self._skipped = SkippedByCausality(self._attribution, self._layout.cp)
        if self._layout.is_sharded and step.found == "nothing" and kind in ("unshard", "forward"):
            self._free_gradients()  # the shards of those of the step before
        self._moments, self._section = [], 0 if self._ascending else self._last_section
        start = self._cut()
        if not self._ascending and not stage.is_last:
            self._end_section(len(self._layers))
        handed_on: list[Tensor] = getattr(self, f"_{kind}")(step.micro_batch)
        newborn = {self._tracker.serial(tensor) for tensor in handed_on}
        self._end_section(self._last_section if self._ascending else 0)
        self._moments.append(self._cut())
        del handed_on
        self._marks.after_pass()
        counters = self._counter, self._skipped
        marked = _Marked(step, start, self._moments, self._messages.copy(), newborn, *counters, self._ascending)
        self._messages |= newborn
        return marked

    def _forward(self, micro_batch: int) -> list[Tensor]:
        first, last = self._module.stage.is_first, self._module.stage.is_last
        kwargs = {"labels": self._labels} if last else {}
        if last and self._module.num_mtp_layers:
            kwargs["token_ids"] = self._token_ids
        args = (self._token_ids,) if first else ()
        output = self._stage.forward_one_chunk(micro_batch, args, kwargs, save_forward_output=False)
        if last:
            self._losses[micro_batch] = output
        self._after_gathering()
        return [output]

    def _after_gathering(self) -> None:
        if not self._has_marks:
            self._has_marks = True
            self._marks.after_first_forward()

    def _backward(self, micro_batch: int, *, whole: bool = True) -> list[Tensor]:
        loss = self._losses.get(micro_batch)
        self._stage.backward_one_chunk(micro_batch, loss=loss, full_backward=whole)
        return [gradient for gradient in self._stage.bwd_cache.pop(micro_batch) if gradient is not None]

    def _input_backward(self, micro_batch: int) -> list[Tensor]:
        return self._backward(micro_batch, whole=False)

    def _weight_backward(self, micro_batch: int) -> list[Tensor]:
        inputs, groups, *others = self._stage.backward_state[micro_batch]
        if groups is not None:
            self._section_of_parameter = self._sections_of_parameters()
            self._stage.backward_state[micro_batch] = (inputs, _Followed(groups, self._before_parameters), *others)
        del inputs, groups, others
        self._stage.backward_weight_one_chunk(micro_batch)
        if self._let_go:
            self._free_gradients()
        return []

    def _sections_of_parameters(self) -> dict[int, int]:
        """The section of each parameter that the modules have now, by its id."""
        return {
            id(parameter): section
            for module, section in self._section_of_module.items()
            for parameter in module.parameters(recurse=False)
        }

    def _make_gradients(self) -> None:
        """Let each gathered parameter have a gradient in its own format, as after a `weight_backward`."""
        for parameter in updated_parameters(self._module):
            parameter.grad = torch.empty_like(parameter)
        self._marks.after_pass()

    def _before_parameters(self, group: dict[str, Any]) -> None:
        """Cut where the gradients of the next layer's parameters begin; a `group` are those computed together."""
        if self._let_go:
            self._free_gradients()
        sections = {self._section_of_parameter[id(parameter_of(node))] for node in group["params"]}
        assert len(sections) == 1, "parameters of two layers in one group"
        self._end_section(sections.pop())

    def _free_gradients(self) -> None:
        for parameter in self._module.parameters():
            parameter.grad = None

    def _reduction(self, _: None) -> list[Tensor]:
        if not self._layout.is_sharded:
            self._free_gradients()  # the end of a step
            return []
        with before_groups(self._before_group, lambda: self._end_section(self._last_section)):
            self._stage.perform_reduce_grad(1)
        return []

    def _exchange(self, _: None) -> list[Tensor]:
        gradient, group = embedding_gradient(self._module), self._stage.group
        assert gradient is not None and group is not None
        add_gradient_of(dist.get_world_size(group) - 1, gradient, group)
        return []

    def _unshard(self, _: None) -> list[Tensor]:
        with before_groups(self._before_group, lambda: None):
            self._handles = [module.unshard(async_op=True) for module in self._sharded_modules()]
        return []

    def _wait(self, _: None) -> list[Tensor]:
        with before_groups(self._before_group, lambda: None):
            while self._handles:
                self._handles.pop(0).wait()
        self._after_gathering()
        return []

    def _reshard(self, _: None) -> list[Tensor]:
        for module in self._sharded_modules():
            self._before_group([module])
            module.reshard()
        return []

    def _sharded_modules(self) -> list[Any]:
        return [module for module in self._module.modules() if isinstance(module, FSDPModule)]

    # --- cuts ---------------------------------------------------------------------------------------------------

    @property
    def _last_section(self) -> int:
        return len(self._layers) + 1

    def _observe(self, *op: Any) -> None:
        self._counter(*op)
        self._skipped(*op)
        self._collectives(*op)
        if self._recorder is not None:
            self._recorder(*op)

    def _observe_wrapped(self, *op: Any) -> None:
        self._skipped.of_all_positions(*op)

    def _cut(self) -> RankCut:
        alive = self._tracker.alive()
        if self._recorder is not None:
            self._recorder.cut(alive)
        cut = RankCut(Cut(self._tracker.at_peak, alive), self._collectives.take())
        self._tracker.watch()
        return cut

    def _end_section(self, to: int) -> None:
        """End the section that runs, and all between it and section `to`, in which nothing runs."""
        step = 1 if self._ascending else -1
        assert (to - self._section) * step >= 0, "passed already"
        while self._section != to:
            self._moments.append(self._cut())
            self._section += step

    def _cut_next(self) -> None:
        if not self._ascending and self._section == 1 and not self._ends_with_hooks:
            # The input is a leaf: its gradient and those of weights are added in no order that a rule gives.
            return
        self._end_section(self._section + (1 if self._ascending else -1))

    def _before_group(self, modules: Sequence[nn.Module]) -> None:
        """Cut where fully_shard goes on to the parameters of the next layer."""
        self._end_section(max(self._section, self._section_of_module[modules[0]]))

    # --- results ------------------------------------------------------------------------------------------------

    def _pass(self, one: _Marked, categories: Categories) -> StagePass:
        def without(alive: Alive, others: set[int]) -> Alive:
            return {serial: size for serial, size in alive.items() if serial not in others}

        def relative(cut: RankCut) -> RankCut:
            return RankCut(Cut(without(cut.cut.at_peak, one.messages), without(cut.cut.now, one.messages)), cut.traffic)

        cuts = [relative(one.start), *map(relative, one.moments)]
        end = cuts[-1]
        cuts[-1] = RankCut(Cut(end.cut.at_peak, without(end.cut.now, one.newborn)), end.traffic)
        stretches = rank_stretches(cuts, categories)
        before, *layers, after = stretches
        return StagePass(
            before=before,
            layers=tuple(layers if one.ascending else reversed(layers)),
            after=after,
            ascending=one.ascending,
        )

    def _flops(self, counter: FlopCounter, skipped: SkippedByCausality) -> StepFlops:
        owners = owners_in(self._module)
        for layer, count in zip(self._layers, self._counts, strict=True):
            owners |= {module: owner._replace(times=count) for module, owner in owners_in(layer).items()}
        return StepFlops(
            forward=counter.of_pass("forward", owners),
            backward=counter.of_pass("backward", owners),
            recomputed=counter.of_pass("recomputed", owners),
            skipped_by_causality=skipped.counts(owners),
        )


class _Followed(list[dict[str, Any]]):
    """Groups of parameters whose gradients torch computes one after the other; `begin` is called before each."""

    def __init__(self, groups: Sequence[dict[str, Any]], begin: Callable[[dict[str, Any]], None]) -> None:
        super().__init__(groups)
        self._begin = begin

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for index in range(len(self)):
            self._begin(self[index])
            yield self[index]
