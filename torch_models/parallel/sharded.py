"""Fully sharded data parallelism: which parameters torch's `fully_shard` gathers, frees and reduces together."""

from typing import Any

from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from torch_models.layout import Layout
from torch_models.parallel.mesh import Meshes
from torch_models.training.model import TrainingModel


def shard(model: TrainingModel, layout: Layout, meshes: Meshes, policy: MixedPrecisionPolicy) -> None:
    """Apply `fully_shard` to the groups of `layout.grouping`, the inner ones first."""
    # None: torch frees the parameters of every group after its forward pass but those of the root.
    reshard = None if layout.zero == 3 else False
    options: dict[str, Any] = {"mesh": meshes.data, "mp_policy": policy}
    for layer in model.model.layers:
        fully_shard(layer, reshard_after_forward=reshard, **options)
    if layout.grouping == "torchtitan":
        ends: list[nn.Module] = [model.model.norm, model.lm_head]
        if model.spec.tie_word_embeddings:
            ends.insert(0, model.model.embed_tokens)
        else:
            fully_shard(model.model.embed_tokens, reshard_after_forward=reshard, **options)
        # Backward begins with them, so they would be gathered again at once.
        fully_shard(ends, reshard_after_forward=False, **options)
    fully_shard(model, reshard_after_forward=reshard, **options)


def set_gradient_synchronisation(model: nn.Module, layout: Layout, *, last: bool) -> None:
    """Say before each micro-batch whether it is the `last` of its step; a layout with `zero` = 1 then reduces.

    With `zero` = 1 each rank adds up whole gradients over the micro-batches of a step, and they are reduced in the
    backward pass of the last one. Any other layout reduces the gradients of each micro-batch.
    """
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last or layout.zero != 1)
