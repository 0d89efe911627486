"""Every allocation and release of a rank's training, in order, each with its stream."""

import torch

from counting.allocator.events import Event
from counting.measurements.allocations.compiled import compile_layers
from counting.measurements.allocations.log import AllocationLog
from counting.measurements.allocations.steps import (
    MOST_MICRO_BATCHES_RUN,
    MicroBatches,
    TrainedParts,
    existing_tensors,
    run_steps,
)
from counting.measurements.allocations.workspaces import Workspaces
from counting.measurements.ranks.clipping import clip_parts
from counting.measurements.ranks.live_bytes import RankBytes
from counting.measurements.ranks.optimizer import stored_precision
from counting.measurements.ranks.rank import divided_model
from counting.measurements.ranks.stand_ins import current_stream, local
from counting.measurements.ranks.step import batch_of_zeros
from counting.setup import Setup
from torch_models.layout import Layout
from torch_models.parallel.mesh import build_meshes
from torch_models.parallel.sharded import set_gradient_synchronisation
from torch_models.parallel.tensor import loss_context
from torch_models.spec import ModelSpec


class RankAllocationLog(AllocationLog, RankBytes):
    """The log of a rank: also of storages that are resized, of DTensors, and of `fully_shard`'s own streams."""

    def stream(self) -> str:
        """The stream in which an op runs now."""
        return current_stream()


def log_of_this_rank(spec: ModelSpec, setup: Setup, layout: Layout, device: torch.device) -> list[Event]:
    """The log of two steps of the whole model as the rank that this process is.

    The process group has the ranks of `layout`. Call it inside `measuring`. Raises `UserError` for what cannot be
    divided so.
    """
    meshes = build_meshes(layout, device.type)
    model = divided_model(spec, setup, layout, meshes, device)
    if setup.execution == "compiled":
        compile_layers(model.model, setup, getattr(torch, setup.precision_recipe.activation_dtype))
    trained = TrainedParts([model], stored_precision(setup, layout), local, clip_parts(meshes, ()))
    log = RankAllocationLog([local(tensor) for tensor in existing_tensors(model)], device, Workspaces())
    with loss_context(layout), log:
        passes = MicroBatches(
            model,
            setup,
            lambda: batch_of_zeros(model, setup, layout, device),
            log.mark,
            # Where gradients are reduced after the last micro-batch, one between is not like it.
            most=MOST_MICRO_BATCHES_RUN + (layout.zero == 1 and layout.is_sharded),
            before=lambda last: set_gradient_synchronisation(model, layout, last=last),
        )
        run_steps(setup, trained, passes, log.mark)
    return list(log.events)  # later releases go on in the log
