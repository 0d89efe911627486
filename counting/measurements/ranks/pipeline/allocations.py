"""Every allocation and release of a rank of a pipeline, in order: whole stages under torch's own schedule."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from counting.allocator.events import Event
from counting.measurements.allocations.steps import TrainedParts, existing_tensors, run_steps
from counting.measurements.allocations.workspaces import Workspaces
from counting.measurements.ranks.allocations import RankAllocationLog
from counting.measurements.ranks.clipping import clip_parts
from counting.measurements.ranks.optimizer import stored_precision
from counting.measurements.ranks.rank import apply_to
from counting.measurements.ranks.stand_ins import local
from counting.ranks.pipeline import micro_batches_to_run
from counting.setup import Setup
from torch_models.builder import build_stage_model
from torch_models.layout import Layout
from torch_models.parallel.clipping import copied_embeddings
from torch_models.parallel.mesh import build_meshes
from torch_models.parallel.pipeline import ONE_STAGE, build_pipeline, messages_of, pipeline_rank_of
from torch_models.spec import ModelSpec
from torch_models.stages import stages_of
from torch_models.training.stage import StageModel


def log_of_this_pipeline_rank(spec: ModelSpec, setup: Setup, layout: Layout, device: torch.device) -> list[Event]:
    """The log of two steps of all stages of the rank that this process is.

    Of many micro-batches, those of the warm-up and of one steady round are run; each of the others adds its token ids,
    its labels and the messages that a step keeps. The process group has the ranks of `layout`. Call it
    inside `measuring` and `pipeline_stand_ins`. Raises `UserError` for what cannot be divided so.
    """
    assert setup.micro_batches is not None, "a resolved setup"
    meshes = build_meshes(layout, device.type)
    all_stages = stages_of(spec, layout)
    own = layout.stages_of_rank(pipeline_rank_of(meshes))
    modules: list[StageModel] = []
    for number in own:
        module = build_stage_model(
            all_stages[number],
            device=device,
            dtype=getattr(torch, stored_precision(setup, layout).activation_dtype),
            kernels=setup.kernels,
            mtp=bool(setup.mtp),
            loss_chunk=setup.loss_chunk,
        )
        apply_to(module, setup, layout, meshes)
        modules.append(module)
    existing = [local(tensor) for module in modules for tensor in existing_tensors(module)]
    number = micro_batches_to_run(layout, setup.micro_batches)
    micro_batch = setup.micro_batch.sequences, setup.micro_batch.length // layout.cp
    log = RankAllocationLog(existing, device, Workspaces())
    with log:
        pipeline = build_pipeline(modules, layout, meshes, micro_batch=micro_batch, micro_batches=number)
        of_others = [
            torch.empty_like(message)
            for _ in range(number, setup.micro_batches)
            for module in modules
            for message in _messages(module, layout, micro_batch, own)
        ]
        batch = _Batch(modules, micro_batch, setup.micro_batches, number, device)

        def passes(of_step: str) -> None:
            pipeline.step(*batch())
            log.mark(f"passes{of_step}")

        clip = clip_parts(meshes, copied_embeddings(modules))
        run_steps(setup, TrainedParts(modules, stored_precision(setup, layout), local, clip), passes, log.mark)
        del of_others
    return list(log.events)  # later releases go on in the log


def _messages(module: StageModel, layout: Layout, micro_batch: tuple[int, int], own: Sequence[int]) -> list[Tensor]:
    """What a step keeps of a micro-batch: what a stage receives and, with several stages on a rank, what it sends.

    A stage receives its input and the gradient of its output, which has the same size, and sends its output and the
    gradient of its input. Torch's schedules of several stages refer to what they send until the step ends. To a stage
    of the same rank, of those with the numbers `own`, nothing is sent.
    """
    stage = module.stage
    given, returned = messages_of(stage, layout, micro_batch, module.model.dtype)
    kept = [returned] if stage.is_last else []  # the loss
    for message, neighbour in ((given, stage.number - 1), (returned, stage.number + 1)):
        if 0 <= neighbour < layout.stages:
            sends = layout.schedule not in ONE_STAGE and neighbour not in own
            kept += [message] * (1 + sends)
    return kept


class _Batch:
    """Token ids and labels of all micro-batches of a step, those that the stages of this rank need."""

    def __init__(
        self, modules: Sequence[StageModel], micro_batch: tuple[int, int], whole: int, run: int, device: torch.device
    ) -> None:
        sequences, length = micro_batch
        self._run = run * sequences
        self._new: Callable[[], Tensor] = lambda: torch.zeros(
            whole * sequences, length, dtype=torch.long, device=device
        )
        self._reads_ids = any(module.stage.is_first or module.num_mtp_layers for module in modules)
        self._reads_labels = any(module.stage.is_last for module in modules)
        self._held: tuple[Tensor | None, Tensor | None] = (None, None)

    def __call__(self) -> tuple[Tensor | None, Tensor | None]:
        """Those of the micro-batches that are run, of a new batch, which stays until the next one is there."""
        self._held = self._new() if self._reads_ids else None, self._new() if self._reads_labels else None
        token_ids, labels = (None if each is None else each[: self._run] for each in self._held)
        return token_ids, labels
