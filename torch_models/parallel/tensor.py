"""Tensor parallelism: the ranks of tp divide the heads, the intermediate sizes and the vocabulary.

The residual stream between blocks is a plain tensor, with sequence parallelism of this rank's positions (Korthikanti et
al. 2022, arXiv 2205.05198, §4.2.2). A block's input is gathered once, every rank computes a term of the block's output,
and the terms are summed once. Backward gathers the gradient of the output, and sums that of the input.
The legend of dimension letters is in modules/layers.py.
"""

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import ParallelStyle, loss_parallel, parallelize_module
from torch.distributed.tensor.placement_types import Placement, _StridedShard

from torch_models.errors import ArgumentError
from torch_models.layout import Layout
from torch_models.modules.attention.grouped_queries import GroupedQueryAttention
from torch_models.modules.decoder import MultiTokenPredictionLayer
from torch_models.modules.layers import MLP, GatedMLP, LayerNorm, RMSNorm
from torch_models.modules.moe import ClampedExperts, MixtureOfExperts
from torch_models.parallel.block import Block
from torch_models.parallel.context import ring_attention
from torch_models.parallel.norm import DividedNorm
from torch_models.parallel.parameters import (
    ADDED,
    COLUMNS,
    LINEAR_COLUMNS,
    ROWS,
    SUMMED,
    WHOLE,
    LocalParameters,
    Part,
)
from torch_models.parallel.vocabulary import DividedEmbedding, DividedHead
from torch_models.training.model import TrainingModel

Plan = dict[str, ParallelStyle]

LINEAR_ROWS = {"weight": COLUMNS, "bias": ADDED}
LINEAR_WHOLE = {"weight": SUMMED, "bias": SUMMED}

# gate is stacked above up: a rank has rows of both.
STACKED = {"gate_up_proj": Part(_StridedShard(1, split_factor=2)), "down_proj": Part(Shard(2))}
# gate and up alternate along the columns.
ALTERNATING = {
    "gate_up_proj": Part(Shard(2)),
    "gate_up_proj_bias": Part(Shard(1)),
    "down_proj": Part(Shard(1)),
    "down_proj_bias": ADDED,
}


def divide_tensors(model: TrainingModel, layout: Layout, mesh: DeviceMesh) -> None:
    """Divide the model over the ranks of `mesh`, those of tp. No part of it may be uneven."""
    stream: Placement = Shard(1) if layout.sequence_parallel else Replicate()
    for layer in model.model.layers:
        _apply(layer, mesh, _layer_plan(layer, stream))
    # Every rank adds an equal share of the table of positions to its term of the embedded tokens.
    positions = LocalParameters({"weight": ADDED})
    ends: Plan = {"model.embed_tokens": DividedEmbedding(stream), "model.norm": _norm(stream)}
    _apply(model, mesh, ends | {"model.embed_tokens.positions": positions})
    model.tie_weights()
    _apply(model, mesh, {"lm_head": DividedHead(stream)})
    if layout.sequence_parallel:
        model.register_forward_pre_hook(partial(_check_length, layout.tp))


@contextlib.contextmanager
def loss_context(layout: Layout) -> Iterator[None]:
    """Return the context in which both the forward and the backward pass run.

    Where the ranks of tp divide the vocabulary, torch's cross-entropy of divided logits needs one; where those of cp
    divide the positions, torch's ring attention.
    """
    with contextlib.ExitStack() as contexts:
        if layout.tp > 1:
            contexts.enter_context(loss_parallel())
        if layout.cp > 1:
            contexts.enter_context(ring_attention())
        yield


def _check_length(ranks: int, module: nn.Module, args: tuple[Any, ...]) -> None:
    del module
    if args and isinstance(args[0], Tensor) and args[0].dim() == 2 and args[0].shape[1] % ranks:
        rule = f"must be a multiple of tp ({ranks}), which divides the positions"
        raise ArgumentError("sequence_length", args[0].shape[1], rule)


def _apply(module: nn.Module, mesh: DeviceMesh, plan: Plan) -> None:
    there = {name for name, _ in module.named_modules()}  # a stage of a pipeline lacks some
    parallelize_module(module, mesh, {name: style for name, style in plan.items() if name in there}, src_data_rank=None)


def _norm(stream: Placement) -> LocalParameters:
    """A norm of the residual stream: of this rank's positions, or the same on every rank."""
    return LocalParameters(dict.fromkeys(("weight", "bias"), SUMMED if stream.is_shard() else WHOLE))


def _layer_plan(layer: nn.Module, stream: Placement) -> Plan:
    norms = (RMSNorm, LayerNorm)
    plan: Plan = {name: _norm(stream) for name, module in layer.named_children() if isinstance(module, norms)}
    if isinstance(layer, MultiTokenPredictionLayer):
        plan["shared_head.norm"] = _norm(stream)
        # Every rank joins and projects the positions of its residual stream.
        plan["eh_proj"] = LocalParameters({"weight": SUMMED if stream.is_shard() else WHOLE})
    for name in ("self_attn", "mlp"):
        block = layer.get_submodule(name)
        of_block = _attention_plan(block) if name == "self_attn" else _feed_forward_plan(block)
        own = {"sinks": ROWS} if isinstance(block, GroupedQueryAttention) else {}
        plan |= {f"{name}.{inner}": style for inner, style in of_block.items()}
        plan[name] = Block(own, stream)
    return plan


def _attention_plan(attention: nn.Module) -> Plan:
    """The queries, keys and values of some heads on each rank. Latents have no heads: every rank computes all."""
    divided = ("q_proj", "k_proj", "v_proj", "q_b_proj", "kv_b_proj")
    whole = ("q_a_proj", "kv_a_proj_with_mqa", "q_a_layernorm", "kv_a_layernorm", "q_norm", "k_norm")
    plan: Plan = {"o_proj": LocalParameters(LINEAR_ROWS)}
    for name, _ in attention.named_children():
        if name in divided:
            plan[name] = LocalParameters(LINEAR_COLUMNS)
        elif name in ("q_norm", "k_norm") and getattr(attention, "norm_over_width", False):
            plan[name] = DividedNorm()
        elif name in whole:
            plan[name] = LocalParameters(LINEAR_WHOLE)
        else:
            assert name in ("o_proj", "qk_norm", "v_norm"), name  # these norms have no weights
    return plan


def _feed_forward_plan(feed_forward: nn.Module) -> Plan:
    """Some columns of each MLP, and of each expert, on each rank. Every rank routes all tokens, and gates all."""
    if isinstance(feed_forward, GatedMLP | MLP):
        return _mlp_plan()
    assert isinstance(feed_forward, MixtureOfExperts)
    experts = ALTERNATING if isinstance(feed_forward.experts, ClampedExperts) else STACKED
    plan: Plan = {feed_forward.router_name: LocalParameters(LINEAR_WHOLE), "experts": LocalParameters(experts)}
    if feed_forward.has_shared_experts:
        plan |= {f"{feed_forward.shared_name}.{name}": style for name, style in _mlp_plan().items()}
    if feed_forward.shared_expert_gate is not None:
        plan["shared_expert_gate"] = LocalParameters(LINEAR_WHOLE)
    return plan


def _mlp_plan() -> Plan:
    columns = LocalParameters(LINEAR_COLUMNS)
    # Those that a feed-forward without a gate lacks are left out where the plan is applied.
    return {"gate_proj": columns, "up_proj": columns, "down_proj": LocalParameters(LINEAR_ROWS)}
