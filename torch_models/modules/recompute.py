"""Activation checkpointing: a training step keeps less of its forward pass and computes it again for backward.

It uses torch's own checkpointing without early stop. A checkpointed function is run again as a whole, as in torchtitan
and Megatron-LM, so full recompute costs one forward pass of every layer (Chen et al. 2016, arXiv 1604.06174).

``per_op`` is torchtitan's selective checkpointing by operation (torchtitan/distributed/activation_checkpoint.py, of
August 2026), by torch's `create_selective_checkpoint_contexts`: outputs of products and attention are kept, all others
computed again. Of products without bias (``mm``) every second one is computed again too; those with the shape of the
router's weight always are, and do not count. Batched products and those with a bias (``addmm``) are kept, as are the
experts that topk chooses, and what collectives bring that other ranks would have to send again. Grouped products of
experts are not in torchtitan's list: they are computed again. In December 2024 its list had mm, attention and
reduce-scatter alone, which is the same for a layer without experts and biases. Two kernels are added here that
torchtitan does not run: torch's flash attention on CPUs, and this project's own op.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import nn
from torch.utils.checkpoint import (
    SAC_IGNORED_OPS,
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from torch_models.recomputed_layers import check_recompute, recompute_of_layer
from torch_models.spec import LayerSpec, MixtureOfExpertsSpec, ModelRecompute, Recompute

R = TypeVar("R")
Shapes = tuple[tuple[int, int], ...]  # of weights, (in, out)

# Marks for the profiler. `fully_shard` sets them around what it does to the experts of a layer, and does less when the
# layer runs again; torch's selective checkpointing would find the two runs different.
SAC_IGNORED_OPS.update(
    (torch.ops.profiler._record_function_enter_new.default, torch.ops.profiler._record_function_exit._RecordFunction)
)

PRODUCT = "aten::mm"
KEPT = frozenset(
    (
        "aten::addmm",
        "aten::bmm",
        "aten::_scaled_dot_product_flash_attention",
        "aten::_scaled_dot_product_efficient_attention",
        "aten::_scaled_dot_product_cudnn_attention",
        "aten::_scaled_dot_product_fused_attention_overrideable",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "model_training_cost::flash_attention",
        "flex_attention",
        "inductor_compiled_code",  # FlexAttention that torch has compiled
        "aten::topk",
        "_c10d_functional::reduce_scatter_tensor",
        "_c10d_functional::all_to_all_single",
    )
)


def set_recompute(model: nn.Module, recompute: ModelRecompute) -> None:
    """Set what every layer within `model` keeps for backward.

    ``none`` keeps all tensors that backward needs. ``selective`` does not keep those of the attention core, which runs
    again from queries, keys and values (Korthikanti et al. 2022, arXiv 2205.05198, §5). ``per_op`` keeps outputs of
    products and attention, see above. ``full`` keeps only the input of each layer. A number N does so for the N-th
    layer, the 2N-th and so on, numbered as in their names, and keeps all tensors of the others. A layer whose spec says
    what is recomputed of it does that. Raises `ArgumentError` for any other value.
    """
    check_recompute(recompute)
    for name, module in model.named_modules():
        if isinstance(module, Recomputed):
            index = next((int(part) for part in reversed(name.split(".")) if part.isdigit()), 0)
            module.set_recompute(recompute_of_layer(recompute, index))


class Recomputed(nn.Module):
    """A layer that can be computed again in backward, or its attention core."""

    recompute_layer = False
    keeps_products = False  # of a layer that is computed again

    def set_recompute(self, recompute: Recompute) -> None:
        """Set what backward computes again."""
        self.recompute_layer = recompute in ("full", "per_op")
        self.keeps_products = recompute == "per_op"
        for module in self.modules():
            if hasattr(module, "recompute_core"):
                module.recompute_core = recompute == "selective"  # type: ignore[assignment]


def run(
    function: Callable[..., R], *args: Any, recompute: bool, keeps_products: Shapes | None = None, **kwargs: Any
) -> R:
    """Return `function(*args, **kwargs)`; with `recompute`, backward keeps only the arguments and runs it again.

    Unless `keeps_products` is None, it also keeps the outputs of products and attention, as ``per_op`` does; those are
    the shapes of weights whose products are computed again.
    """
    if not (recompute and torch.is_grad_enabled()):
        return function(*args, **kwargs)
    if keeps_products is not None:
        kwargs["context_fn"] = partial(_contexts, keeps_products)
    # No function draws random numbers, so their state need not be restored.
    out = checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False, early_stop=False, **kwargs)
    return cast(R, out)


def per_op_contexts(spec: LayerSpec) -> Any:
    """The contexts in which ``per_op`` runs a layer the first time and again."""
    return _contexts(router_shapes(spec))


def router_shapes(spec: LayerSpec) -> Shapes:
    """The shape of the router's weight, if the layer has one."""
    mixture = spec.feed_forward
    if not isinstance(mixture, MixtureOfExpertsSpec):
        return ()
    return ((mixture.router.hidden_size, mixture.router.num_experts),)


def _contexts(again: Iterable[tuple[int, int]]) -> Any:
    """The contexts of a first and a second run."""
    products = 0

    def policy(context: object, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        nonlocal products
        del context, kwargs
        name = op.name()
        if name == PRODUCT and tuple(args[1].shape) not in again:
            products += 1
            kept = products % 2 == 1
        else:
            kept = name in KEPT
        return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)
