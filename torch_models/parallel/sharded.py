"""Fully sharded data parallelism: which parameters torch's `fully_shard` gathers, frees and reduces together."""

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Shard

from torch_models.layout import Layout
from torch_models.modules.moe import MixtureOfExperts, RoutedExperts
from torch_models.parallel.mesh import Meshes
from torch_models.training.model import TrainingModel


def shard(model: TrainingModel, layout: Layout, meshes: Meshes, policy: MixedPrecisionPolicy) -> None:
    """Apply `fully_shard` to the groups of `layout.grouping`, the inner ones first."""
    # None: torch frees the parameters of every group after its forward pass but those of the root.
    reshard = None if layout.zero == 3 else False
    options: dict[str, Any] = {"mesh": meshes.data, "mp_policy": policy}
    for layer in model.model.layers:
        experts = layer.mlp.experts if isinstance(layer.mlp, MixtureOfExperts) else None
        placement = None if experts is None else _placement(experts, layout)
        if experts is not None and meshes.experts is not None:
            of_experts = options | {"mesh": meshes.experts}
            fully_shard(experts, reshard_after_forward=reshard, shard_placement_fn=placement, **of_experts)
            _divide_gradients(experts, layout)
        fully_shard(layer, reshard_after_forward=reshard, shard_placement_fn=placement, **options)
    if layout.grouping == "torchtitan":
        ends: list[nn.Module] = [model.model.norm, model.lm_head]
        if model.spec.tie_word_embeddings:
            ends.insert(0, model.model.embed_tokens)
        else:
            fully_shard(model.model.embed_tokens, reshard_after_forward=reshard, **options)
        # Backward begins with them, so they would be gathered again at once.
        fully_shard(ends, reshard_after_forward=False, **options)
    fully_shard(model, reshard_after_forward=reshard, **options)


def _placement(experts: RoutedExperts, layout: Layout) -> Callable[[nn.Parameter], Shard | None] | None:
    """Return the dimension by which `fully_shard` divides each parameter; None stands for the first of all.

    Stacks of experts are divided by their second dimension where ranks outnumber experts: by the first, whole experts
    would be gathered that are only padding. Torch needs equal parts of any dimension but the first.
    """
    own = list(experts.parameters())
    if layout.expert_fsdp * layout.ep <= experts.num_experts or layout.tp > 1:
        return None
    if any(parameter.shape[1] % layout.expert_fsdp for parameter in own):
        return None
    stacks = {id(parameter) for parameter in own}
    return lambda parameter: Shard(1) if id(parameter) in stacks else None


def _divide_gradients(experts: nn.Module, layout: Layout) -> None:
    """Divide the sums of gradients by the number of ranks with different data: an expert has rows of all of them."""
    assert isinstance(experts, FSDPModule)
    experts.set_gradient_divide_factor(layout.data_ranks)
    if layout.expert_fsdp > 1:
        # Else torch multiplies while it reduces, which gloo cannot. With one shard torch 2.13 would divide twice.
        experts.set_force_sum_reduction_for_comms(True)


def set_gradient_synchronisation(model: nn.Module, layout: Layout, *, last: bool) -> None:
    """Say before each micro-batch whether it is the `last` of its step; a layout with `zero` = 1 then reduces.

    With `zero` = 1 each rank adds up whole gradients over the micro-batches of a step, and they are reduced in the
    backward pass of the last one. Any other layout reduces the gradients of each micro-batch.
    """
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last or layout.zero != 1)
