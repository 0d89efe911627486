"""Pipeline parallelism: torch's own schedules run the stages of a model on the ranks of pp.

    meshes = build_meshes(layout, "cuda")
    modules = [build_stage_model(stages_of(spec, layout)[number], ...) for number in layout.stages_of_rank(rank)]
    for module in modules:
        apply_layout(module, layout, meshes, param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    pipeline = build_pipeline(modules, layout, meshes, micro_batch=(1, 4096), micro_batches=8)
    loss = pipeline.step(token_ids, labels)

`rank` is `pipeline_rank_of(meshes)`. The schedules are torch's classes (torch.distributed.pipelining), and so are the
messages between stages.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleDualPipeV,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
    ScheduleZBVZeroBubble,
)
from torch.distributed.tensor import DTensor

from torch_models.errors import ArgumentError
from torch_models.layout import Layout, Schedule
from torch_models.parallel.mesh import Meshes
from torch_models.parallel.tensor import loss_context
from torch_models.stages import Stage
from torch_models.training.loss import LossNormalizer
from torch_models.training.stage import StageModel

SCHEDULES: dict[Schedule, Any] = {
    "gpipe": ScheduleGPipe,
    "1f1b": Schedule1F1B,
    "interleaved": ScheduleInterleaved1F1B,
    "zb": ScheduleInterleavedZeroBubble,
    "zbv": ScheduleZBVZeroBubble,
    "dualpipev": ScheduleDualPipeV,
}
ONE_STAGE = ("gpipe", "1f1b")  # schedules with one stage on each rank


def pipeline_rank_of(meshes: Meshes) -> int:
    """The place of this rank in its pipeline."""
    assert meshes.pp is not None, "a layout with pp > 1"
    return meshes.pp.get_local_rank()


class Pipeline:
    """The stages of this rank with their schedule, ready to train."""

    def __init__(self, modules: Sequence[StageModel], layout: Layout, schedule: Any, group: dist.ProcessGroup) -> None:
        self.modules = tuple(modules)
        self.schedule = schedule
        self._layout, self._group = layout, group

    def step(
        self,
        token_ids: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        normalizer: LossNormalizer | None = None,
    ) -> Tensor | None:
        """Run all micro-batches forward and backward; the gradients then stand on the parameters.

        `token_ids` and `labels` are those of all micro-batches of this rank, one after the other, (n B, S); the ranks
        with the first and the last stage need them. Returns the loss of this rank's tokens on a rank with the last
        stage, else None. Without `normalizer` it is the mean over the micro-batches, and so are the gradients; with the
        one of the whole step it is the sum of their losses, each divided by the tokens of all.
        """
        args: list[Tensor] = []
        kwargs: dict[str, Any] = {}
        losses: list[Tensor] = []
        if any(module.stage.is_first for module in self.modules):
            assert token_ids is not None, "the first stage needs token ids"
            args.append(token_ids)
        for module in self.modules:
            module.normalizer = normalizer
            if module.stage.is_last:
                assert labels is not None, "the last stage needs labels"
                kwargs |= {"labels": labels, "target": labels, "losses": losses}
                if module.num_mtp_layers:
                    kwargs["token_ids"] = token_ids
        self.schedule.scale_grads = normalizer is None
        with loss_context(self._layout):
            self.schedule.step(*args, return_outputs=False, **kwargs)
        self._add_embedding_gradients()
        if not losses:
            return None
        total = torch.stack([loss.detach() for loss in losses]).sum()
        return total if normalizer is not None else total / len(losses)

    def _add_embedding_gradients(self) -> None:
        """Let both copies of an embedding that the first and the last stage share have the sum of their gradients."""
        copies = [module for module in self.modules if module.shares_embedding]
        gradients = [gradient for copy in copies if (gradient := embedding_gradient(copy)) is not None]
        if len(gradients) == 2:
            first, last = gradients
            first += last
            last.copy_(first)
        elif gradients:
            add_gradient_of(self._layout.pp - 1 if copies[0].stage.is_first else 0, gradients[0], self._group)


def build_pipeline(
    modules: Sequence[StageModel], layout: Layout, meshes: Meshes, *, micro_batch: tuple[int, int], micro_batches: int
) -> Pipeline:
    """Return the pipeline of this rank, which has the stages `modules`; the layout must be resolved.

    Call it after `apply_layout`. `micro_batch` is (B, S), and `micro_batches` the number of them in a step. Raises
    `ArgumentError` for a number that the schedule does not run.
    """
    assert meshes.pp is not None
    device = next(modules[0].parameters()).device
    token_ids = torch.empty(micro_batch, dtype=torch.long, device=device)
    for module in modules:
        module.tables = module.model.rotary_tables(token_ids)
    stages = [
        pipeline_stage(
            module,
            module.stage,
            layout,
            messages_of(module.stage, layout, micro_batch, module.model.dtype),
            device,
            meshes.pp.get_group(),
        )
        for module in modules
    ]
    return Pipeline(modules, layout, build_schedule(stages, layout, micro_batches), meshes.pp.get_group())


def embedding_gradient(module: StageModel) -> Tensor | None:
    """This rank's part of the gradient of a stage's embedding; None if there is none."""
    gradient = module.model.embed_tokens.weight.grad
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient


def add_gradient_of(peer: int, gradient: Tensor, group: dist.ProcessGroup) -> None:
    """Send `gradient` to a rank of `group`, which sends its own, and add what is received."""
    received = torch.empty_like(gradient)
    exchange = [
        dist.P2POp(dist.isend, gradient, group=group, group_peer=peer),
        dist.P2POp(dist.irecv, received, group=group, group_peer=peer),
    ]
    for work in dist.batch_isend_irecv(exchange):
        work.wait()
    gradient += received


def messages_of(
    stage: Stage, layout: Layout, micro_batch: tuple[int, int], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The input and the output of a stage, on the meta device; `dtype` is that of the residual stream.

    `micro_batch` is (B, S). With sequence parallelism a message has the positions of this rank of tp.
    """
    sequences, length = micro_batch
    positions = length // layout.tp if layout.sequence_parallel else length
    hidden = torch.empty(sequences, positions, stage.spec.hidden_size, dtype=dtype, device="meta", requires_grad=True)
    token_ids = torch.empty(micro_batch, dtype=torch.long, device="meta")
    loss_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    loss = torch.empty((), dtype=loss_dtype, device="meta", requires_grad=True)
    return token_ids if stage.is_first else hidden, loss if stage.is_last else hidden


def pipeline_stage(
    module: nn.Module,
    stage: Stage,
    layout: Layout,
    messages: tuple[Tensor, Tensor],
    device: torch.device,
    group: dist.ProcessGroup | None,
) -> PipelineStage:
    """Torch's stage of `module`; `messages` is the result of `messages_of`, and `group` has the ranks of pp."""
    given, returned = messages
    return PipelineStage(
        module, stage.number, layout.stages, device, input_args=(given,), output_args=(returned,), group=group
    )


def build_schedule(stages: Sequence[PipelineStage], layout: Layout, micro_batches: int) -> Any:
    """Torch's schedule of the stages of this rank.

    Raises `ArgumentError` for a number of micro-batches that it does not run.
    """
    assert layout.schedule is not None
    kind = SCHEDULES[layout.schedule]
    given: Any = stages[0] if layout.schedule in ONE_STAGE else list(stages)
    try:
        return kind(given, n_microbatches=micro_batches, loss_fn=_loss_of)
    except ValueError as error:
        rule = f"is refused by torch's {kind.__name__}: {' '.join(str(error).split())}"
        raise ArgumentError("micro_batches", micro_batches, rule) from None


def _loss_of(output: Tensor, labels: Tensor) -> Tensor:
    """The output of the last stage, which is the loss already: so it is under fully_shard as the rest of the model."""
    del labels
    return output
