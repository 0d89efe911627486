"""Fully sharded data parallelism: which parameters torch's `fully_shard` gathers, frees and reduces together."""

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Shard

from torch_models.layout import Layout
from torch_models.modules.moe import RoutedExperts, experts_of
from torch_models.parallel.checks import by_second_dimension
from torch_models.parallel.mesh import Meshes
from torch_models.training.model import TrainingModel


def shard(model: TrainingModel, layout: Layout, meshes: Meshes, policy: MixedPrecisionPolicy) -> None:
    """Apply `fully_shard` to the groups of `layout.grouping`, the inner ones first."""
    # None: torch frees the parameters of every group after its forward pass but those of the root.
    reshard = None if layout.zero == 3 else False
    options: dict[str, Any] = {"mesh": meshes.data, "mp_policy": policy}
    for layer in model.model.layers:
        experts = experts_of(layer)
        if meshes.experts is not None and experts is not None:
            _shard_experts(experts, layout, reshard, options | {"mesh": meshes.experts})
        fully_shard(layer, reshard_after_forward=reshard, **options)
    if layout.grouping == "torchtitan":
        # A stage of a pipeline has some of them.
        ends: list[nn.Module] = [end for end in (model.model.norm, model.lm_head) if end is not None]
        if model.spec.tie_word_embeddings:
            ends.insert(0, model.model.embed_tokens)
        elif model.model.has_embedding:
            fully_shard(model.model.embed_tokens, reshard_after_forward=reshard, **options)
        if ends:
            # Backward begins with them, so they would be gathered again at once.
            fully_shard(ends, reshard_after_forward=False, **options)
    fully_shard(model, reshard_after_forward=reshard, **options)


def _shard_experts(experts: RoutedExperts, layout: Layout, reshard: bool | None, options: dict[str, Any]) -> None:
    """Apply `fully_shard` to a stack of experts, over the ranks that have the same ones.

    Where ranks outnumber the experts, the second dimension is divided: of the first, most ranks would have padding
    alone.
    """
    ranks = layout.expert_fsdp
    placement: Callable[[nn.Parameter], Shard] | None = None
    if by_second_dimension(experts.num_experts, layout):
        placement = _by_second_dimension
    module = fully_shard(experts, reshard_after_forward=reshard, shard_placement_fn=placement, **options)
    # An expert has rows of all ranks with different data, also of those that are not in this mesh.
    module.set_gradient_divide_factor(layout.token_ranks)
    if ranks > 1:
        # Else torch multiplies while it reduces, which gloo cannot. With one shard torch 2.13 would divide twice.
        module.set_force_sum_reduction_for_comms(True)


def _by_second_dimension(parameter: nn.Parameter) -> Shard:
    del parameter
    return Shard(1)


def set_gradient_synchronisation(model: nn.Module, layout: Layout, *, last: bool) -> None:
    """Say before each micro-batch whether it is the `last` of its step; a layout with `zero` = 1 then reduces.

    With `zero` = 1 each rank adds up whole gradients over the micro-batches of a step, and they are reduced in the
    backward pass of the last one. Any other layout reduces the gradients of each micro-batch.
    """
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last or layout.zero != 1)
