"""Embedding, head and loss where the ranks of tp divide the vocabulary (Shoeybi et al. 2019, arXiv 1909.08053, §3).

Each rank looks up the words that it has, and the sum over ranks has all of them. Torch's own RowwiseParallel would make
the gradient of the whole embedding on every rank. The head computes the logits of this rank's words; the softmax of the
loss needs three numbers per token from all ranks. The legend of dimension letters is in modules/layers.py; W is the
number of words of a rank.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.placement_types import Placement

from torch_models.modules.decoder import TokenEmbedding
from torch_models.parallel.block import Block
from torch_models.parallel.parameters import LINEAR_COLUMNS, ROWS
from torch_models.training.batch import IGNORED
from torch_models.training.loss import LossHead


class DividedEmbedding(Block):
    """An embedding of which each rank has equally many words."""

    def __init__(self, stream: Placement) -> None:
        super().__init__({"weight": ROWS}, stream, gathers=False)

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        assert isinstance(module, TokenEmbedding)
        module.over_ranks = partial(_look_up, device_mesh)
        super()._apply(module, device_mesh)
        module.register_forward_hook(_not_as_view)
        return module


class DividedHead(Block):
    """A head that computes the logits of each rank's words, and the loss from those of all ranks."""

    def __init__(self, stream: Placement) -> None:
        super().__init__(LINEAR_COLUMNS, stream, sums=False)

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        assert isinstance(module, LossHead)
        module.cross_entropy = partial(_divided_cross_entropy, device_mesh)
        return super()._apply(module, device_mesh)


def _look_up(mesh: DeviceMesh, token_ids: Tensor, weight_WD: Tensor) -> Tensor:
    """This rank's term of the embedded tokens, (…) -> (…, D): zero for the words of other ranks."""
    term: Tensor = _LookUp.apply(token_ids, weight_WD, mesh.get_local_rank() * len(weight_WD))  # type: ignore[no-untyped-call]
    return term


class _LookUp(torch.autograd.Function):
    """An embedding's rows for the ids from `first`, which are those of the weight; zero for other ids."""

    @staticmethod
    def forward(ctx: Any, token_ids: Tensor, weight_WD: Tensor, first: int) -> Tensor:
        ctx.save_for_backward(token_ids)
        ctx.first, ctx.words = first, len(weight_WD)
        own, outside = _own_words(token_ids, first, len(weight_WD))
        return F.embedding(own.masked_fill_(outside, 0), weight_WD).masked_fill_(outside.unsqueeze(-1), 0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None]:
        (token_ids,) = ctx.saved_tensors
        own, outside = _own_words(token_ids, ctx.first, ctx.words)
        # The op leaves out one index: here the one after the last word, which stands for all words of other ranks.
        own.masked_fill_(outside, ctx.words)
        of_weight = torch.ops.aten.embedding_dense_backward(gradient, own, ctx.words, ctx.words, False)
        return None, of_weight, None


def _own_words(token_ids: Tensor, first: int, words: int) -> tuple[Tensor, Tensor]:
    """The ids counted from `first`, and which of them are not of this rank."""
    own = token_ids - first
    return own, (own < 0).logical_or_(own >= words)


def _divided_cross_entropy(mesh: DeviceMesh, logits_TW: Tensor, labels_T: Tensor) -> Tensor:
    """The summed cross-entropy from the logits of this rank's words."""
    logits = DTensor.from_local(logits_TW, mesh, [Shard(1)], run_check=False)
    loss: Any = F.cross_entropy(logits, labels_T, ignore_index=IGNORED, reduction="sum")
    return _no_view(loss.to_local())


def _not_as_view(module: nn.Module, args: object, output: Tensor) -> Tensor:
    del module, args
    return _no_view(output)


def _no_view(x: Tensor) -> Tensor:
    same: Tensor = _NoView.apply(x)  # type: ignore[no-untyped-call]
    return same


class _NoView(torch.autograd.Function):
    """The same tensor; torch no longer knows it as a view, of which `fully_shard` would warn in each forward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        del ctx
        return x.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        del ctx
        return gradient
