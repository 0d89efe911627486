"""Two steps of a whole model, run in an `AllocationLog`."""

import contextlib
import gc
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from counting.allocator.events import Event
from counting.measurements.allocations.compiled import compile_layers, import_compiler
from counting.measurements.allocations.log import AllocationLog
from counting.measurements.allocations.workspaces import Workspaces
from counting.measurements.meta_device import measuring
from counting.measurements.optimizer import WholeUpdate, scale
from counting.measurements.parameters import trained_tensors, updated_parameters
from counting.recipes import Optimizer, Precision
from counting.setup import Setup
from torch_models.builder import build_model_with_loss
from torch_models.modules.layers import RotaryTables
from torch_models.modules.recompute import set_recompute
from torch_models.spec import ModelSpec
from torch_models.training.model import TrainingModel

STEPS = 2  # the second finds the blocks of the first, and the optimiser's states among them
MOST_MICRO_BATCHES_RUN = 2  # those after the first are alike

# Token ids, labels, and those of each multi-token-prediction layer where ranks divide the positions.
Batch = tuple[Tensor, Tensor, tuple[tuple[Tensor, Tensor], ...] | None]


def log_of_step(spec: ModelSpec, setup: Setup) -> list[Event]:
    """The log of two steps of the whole model on one device; `setup` must be resolved, and its update measurable."""
    device = torch.device("meta")
    precision = setup.precision_recipe
    if setup.execution == "compiled":
        import_compiler()
    with measuring():
        model = build_model_with_loss(
            spec,
            device=device,
            dtype=getattr(torch, precision.activation_dtype),
            kernels=setup.kernels,
            mtp=bool(setup.mtp),
            loss_chunk=setup.loss_chunk,
        )
        set_recompute(model, setup.recompute)
        if setup.execution == "compiled":
            compile_layers(model.model, setup, getattr(torch, precision.activation_dtype))
        log = AllocationLog(existing_tensors(model), device, Workspaces())
        with log:
            passes = MicroBatches(model, setup, lambda: _batch(setup, device), log.mark)
            run_steps(setup, TrainedParts([model], precision), passes, log.mark)
        return list(log.events)  # later releases go on in the log


def existing_tensors(model: nn.Module) -> list[Tensor]:
    """Parameters and buffers in the order in which `to_empty` allocates them: those of inner modules first."""
    found: list[Tensor] = []
    for child in model.children():
        found += existing_tensors(child)
    found += model.parameters(recurse=False)
    found += model.buffers(recurse=False)
    return found


Clip = Callable[[Sequence[Tensor], Sequence[Tensor]], None]


def _clip_whole(parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    """Clip gradients of whole parameters."""
    del parameters
    leaves = []
    for gradient in gradients:
        leaf = gradient.detach()
        leaf.grad = gradient
        leaves.append(leaf)
    scale(leaves)


class TrainedParts:
    """The parameters of `modules` that this device stores, with their gradients; `local` gives its part of a tensor.

    `precision` is the recipe by which they are stored. `clip` is called with all parameters and with their gradients,
    which are parts that this device stores.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        precision: Precision,
        local: Callable[[Tensor], Tensor] = lambda tensor: tensor,
        clip: Clip = _clip_whole,
    ) -> None:
        self.precision = precision
        self._local, self._clip = local, clip
        self._parameters = [parameter for module in modules for parameter in updated_parameters(module)]
        self._tensors = [tensor for module in modules for tensor in trained_tensors(module)]

    def update(self, optimizer: Optimizer) -> WholeUpdate:
        """An optimiser of all of them."""
        parts = [self._local(parameter) for parameter in self._parameters]
        shaped = [tensor._replace(shape=tuple(part.shape)) for part, tensor in zip(parts, self._tensors, strict=True)]
        return WholeUpdate(parts, shaped, self.precision, optimizer)

    def gradients(self) -> list[Tensor]:
        """The gradients, in the order of the parameters; none of a recipe that frees each one."""
        return [self._local(p.grad) for p in self._parameters if p.grad is not None]

    def clip(self, gradients: Sequence[Tensor]) -> None:
        """Clip gradients, one of each parameter, as the optimiser finds them."""
        self._clip(self._parameters, gradients)

    @contextlib.contextmanager
    def freeing_gradients(self) -> Iterator[None]:
        """Context in which each gradient is freed when it is complete, if the recipe adds it to a buffer."""
        apart = self.precision.gradients_apart
        hooks = [p.register_post_accumulate_grad_hook(_free_gradient) for p in self._parameters] if apart else []
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def free_gradients(self) -> None:
        """Free all gradients, as torch's `zero_grad` does."""
        for parameter in self._parameters:
            parameter.grad = None


def run_steps(setup: Setup, trained: TrainedParts, passes: Callable[[str], None], mark: Callable[[str], None]) -> None:
    """Run `STEPS` whole steps: the `passes` of all micro-batches, gradient clipping, the optimiser's step.

    `mark` is called with the name of each moment, `passes` with how the names of its own end. Nothing here asks for the
    device of what is trained.
    """
    with _without_collection(), trained.freeing_gradients():
        update = trained.update(setup.optimizer_recipe)
        for step in range(1, STEPS + 1):
            mark(f"start of step {step}")
            passes(f" of step {step}")
            gradients = update.gradients or trained.gradients()
            if setup.clip_gradients:
                trained.clip(gradients)
            update.step(gradients)
            del gradients
            if setup.zero_gradients == "none":
                trained.free_gradients()
            mark(f"update of step {step}")


class MicroBatches:
    """Forward and backward passes of `model` over the micro-batches of a step, at most `most` of them.

    `new_batch` makes each batch; a batch is freed when the next one is there. `before` is called with whether the
    micro-batch is the last of its step.
    """

    def __init__(
        self,
        model: TrainingModel,
        setup: Setup,
        new_batch: Callable[[], Batch],
        mark: Callable[[str], None],
        *,
        most: int = MOST_MICRO_BATCHES_RUN,
        before: Callable[[bool], None] = lambda last: None,
    ) -> None:
        assert setup.micro_batches is not None, "a resolved setup"
        self._model, self._new_batch, self._mark, self._before = model, new_batch, mark, before
        self._number = min(setup.micro_batches, most)
        self._tables: Sequence[RotaryTables] | None = None
        self._batch: Batch | None = None
        self._loss: Tensor | None = None  # stays until the next step

    def __call__(self, of_step: str) -> None:
        """Run the passes of a step; gradients then stand on the parameters."""
        self._loss = None
        for index in range(self._number):
            self._batch = self._new_batch()
            token_ids, labels, further = self._batch
            if self._tables is None:
                self._tables = self._model.model.rotary_tables(token_ids)
            self._before(index == self._number - 1)
            self._loss = self._model(token_ids, labels, tables=self._tables, further=further)
            self._mark(f"forward {index + 1}{of_step}")
            self._loss.backward()
            self._mark(f"backward {index + 1}{of_step}")


def _batch(setup: Setup, device: torch.device) -> Batch:
    token_ids, labels = (torch.zeros(*setup.micro_batch, dtype=torch.long, device=device) for _ in range(2))
    return token_ids, labels, None


def _free_gradient(parameter: Tensor) -> None:
    parameter.grad = None


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """Context without Python's garbage collection, which would free what is in a cycle at any moment."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
