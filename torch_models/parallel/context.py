"""Context parallelism: the ranks of cp divide the positions of each sequence, and attention visits those of all ranks.

A sequence is cut into 2 c equal chunks for c ranks. Rank r has the chunks r and 2c - 1 - r, so that causal attention is
the same work on every rank. Attention is torch's ring attention over DTensor: each rank gathers the keys and values of
all ranks once, and calls the kernel for one rank's keys at a time, as in a ring (Liu et al. 2023, arXiv 2310.01889).
Causality leaves out half of the keys of lower ranks, and half of the queries for those of higher ranks; the outputs are
merged by their sums of exponents. In backward the gradients of keys and values go round the ranks in fp32. All else in
a model works on single positions, and sees those of this rank.

Torch runs the ring with CUDA's kernels alone. The legend of dimension letters is in modules/layers.py.
"""

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.experimental import _attention as ring

from torch_models.errors import ArgumentError
from torch_models.modules.attention.grouped_queries import GroupedQueryAttention
from torch_models.modules.attention.latents import MultiHeadLatentAttention
from torch_models.parallel.checks import context_length_unit
from torch_models.spec import Kernels, LayerSpec
from torch_models.training.batch import IGNORED, check_shapes
from torch_models.training.loss import one_further
from torch_models.training.model import TrainingModel

POSITIONS = 2  # the dimension of queries, keys and values, (B, H, S, C), that the ranks divide


class RankBatch(NamedTuple):
    """A batch as one rank gives it to the model: ``model(batch.token_ids, batch.labels, further=batch.further)``.

    `further` are the token ids and labels of each multi-token-prediction layer. They are those of positions that
    another rank may have, so they are cut from the whole sequence. It is None if ranks do not divide the positions.
    """

    token_ids: Tensor
    labels: Tensor
    further: tuple[tuple[Tensor, Tensor], ...] | None = None


def batch_of_rank(
    token_ids_BS: Tensor, labels_BS: Tensor, mesh: DeviceMesh | None, *, mtp_layers: int = 0
) -> RankBatch:
    """The part of a batch of whole sequences that this rank of `mesh` has, (B, S) -> (B, S / c) each.

    `mesh` is that of cp (`Meshes.cp`), and None without it: the batch is not cut then. All ranks of cp give the same
    batch. `mtp_layers` is the number of multi-token-prediction layers that the model trains. Raises `ArgumentError` for
    another shape or dtype than the model takes, and for a length that is no multiple of 2 c.
    """
    check_shapes(token_ids_BS, labels_BS)
    if mesh is None:
        return RankBatch(token_ids_BS, labels_BS)
    of_depths = [(token_ids_BS, labels_BS)]
    for _ in range(mtp_layers):
        token_ids_BS, labels_BS = one_further(token_ids_BS, 0), one_further(labels_BS, IGNORED)
        of_depths.append((token_ids_BS, labels_BS))
    rank, ranks = mesh.get_local_rank(), mesh.size()
    own = [(own_positions(ids, rank, ranks, 1), own_positions(labels, rank, ranks, 1)) for ids, labels in of_depths]
    return RankBatch(*own[0], further=tuple(own[1:]))


def own_positions(x: Tensor, rank: int, ranks: int, dim: int) -> Tensor:
    """The positions of `rank` along `dim` of a tensor of whole sequences: chunks r and 2c - 1 - r, as a new tensor."""
    if x.shape[dim] % (2 * ranks):
        rule = f"must be a multiple of 2 x cp ({2 * ranks}): each rank has two of as many equal chunks"
        raise ArgumentError("sequence_length", x.shape[dim], rule)
    chunks = x.chunk(2 * ranks, dim)
    return torch.cat((chunks[rank], chunks[2 * ranks - 1 - rank]), dim)


def divide_positions(model: TrainingModel, mesh: DeviceMesh) -> None:
    """Let every attention of the model visit the positions of all ranks of `mesh`, those of cp."""
    rank, ranks = mesh.get_local_rank(), mesh.size()
    model.model.context_ranks = ranks
    own_rows = model.model.own_rows = partial(own_positions, rank=rank, ranks=ranks, dim=0)
    if model.model.has_embedding and (table := model.model.embed_tokens.positions) is not None:
        table.context_ranks, table.own_rows = ranks, own_rows
    for layer in model.model.layers:
        attention = layer.self_attn
        assert isinstance(attention, GroupedQueryAttention | MultiHeadLatentAttention)
        attention.attend = partial(_attend, mesh)
    unit = context_length_unit([cast(LayerSpec, layer.spec) for layer in model.model.layers], ranks)
    model.register_forward_pre_hook(partial(_check_length, ranks, unit))


def _check_length(ranks: int, unit: int, module: nn.Module, args: tuple[Any, ...]) -> None:
    del module
    if args and isinstance(args[0], Tensor) and args[0].dim() == 2 and (length := args[0].shape[1] * ranks) % unit:
        raise ArgumentError("sequence_length", length, f"must be a multiple of {unit} with cp {ranks}")


def check_device_of_ring(mesh: DeviceMesh) -> None:
    """Raise `ArgumentError` on the CPU, for which torch's ring attention has no kernel."""
    if mesh.device_type == "cpu":
        rule = "must be 1 on the CPU: torch's ring attention calls kernels that run on CUDA alone"
        raise ArgumentError("cp", mesh.size(), rule)


@contextlib.contextmanager
def ring_attention() -> Iterator[None]:
    """Context in which attention over DTensors is torch's ring attention: gathered keys, balanced by causality."""
    options = ring._cp_options
    before = options.enable_load_balance, options.rotate_method
    options.enable_load_balance, options.rotate_method = True, ring._RotateMethod.ALL_GATHER
    ring._enable_context_parallel_dispatcher()
    try:
        yield
    finally:
        ring._disable_context_parallel_dispatcher()
        options.enable_load_balance, options.rotate_method = before


def _attend(
    mesh: DeviceMesh,
    query_BSHC: Tensor,
    key_BSGC: Tensor,
    value_BSGC: Tensor,
    *,
    scale: float,
    kernels: Kernels,
    heads_per_group: int = 1,
    **others: object,
) -> Tensor:
    """What `causal_attention` returns, of this rank's positions as queries and of all positions as keys."""
    assert kernels == "fused" and not any(each is not None for each in others.values()), "checked before"
    query, key, value = (
        DTensor.from_local(x.transpose(1, 2), mesh, [Shard(POSITIONS)], run_check=False)
        for x in (query_BSHC, key_BSGC, value_BSGC)
    )
    grouped = heads_per_group > 1
    out: DTensor = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=grouped)  # type: ignore[assignment]
    return out.to_local().transpose(1, 2)
