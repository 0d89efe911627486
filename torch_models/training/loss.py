"""The loss of a head: cross-entropy summed over the scored tokens; and what the sums are divided by.

The legend of dimension letters is in layers.py; V is vocab_size.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from torch_models.errors import ArgumentError
from torch_models.modules.language_model import LanguageModelHead
from torch_models.modules.recompute import run
from torch_models.spec import ModelSpec
from torch_models.training.batch import IGNORED


def summed_cross_entropy(logits_TV: Tensor, labels_T: Tensor) -> Tensor:
    """The cross-entropy summed over the tokens that have a label."""
    return F.cross_entropy(logits_TV, labels_T, ignore_index=IGNORED, reduction="sum")


class LossHead(LanguageModelHead):
    """Hidden states (…, D) and labels (…) -> the cross-entropy summed over the tokens that have a label.

    With `loss_chunk`, the logits of at most that many tokens are in memory at a time, and they are computed again for
    backward. All chunks are computed within one call, so that sharded weights are gathered once.
    """

    def __init__(self, spec: ModelSpec, loss_chunk: int | None) -> None:
        super().__init__(spec)
        self.loss_chunk = loss_chunk
        # Another function where ranks divide the vocabulary.
        self.cross_entropy: Callable[[Tensor, Tensor], Tensor] = summed_cross_entropy

    def forward(self, hidden: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        """(…, D) and (…) -> a scalar in nats, fp32 (or fp64); 0 with gradients of 0 if no token has a label."""
        # The weight is an argument: one that is replaced for the time of this call is not there any more in backward.
        return summed_in_chunks(
            self._summed_loss, hidden.flatten(0, -2), labels.flatten(), self.loss_chunk, self.weight
        )

    def _summed_loss(self, hidden_TD: Tensor, labels_T: Tensor, weight_VD: Tensor) -> Tensor:
        return self.cross_entropy(wide(self.logits(hidden_TD, weight_VD)), labels_T)


def summed_in_chunks(
    summed_loss: Callable[..., Tensor], hidden_TD: Tensor, labels_T: Tensor, chunk: int | None, *weights: Tensor | None
) -> Tensor:
    """The sum of `summed_loss(hidden, labels, *weights)` over chunks of at most `chunk` tokens, or over all at once.

    Each of several chunks is computed again for backward.
    """
    if chunk is None or chunk >= len(labels_T):
        return summed_loss(hidden_TD, labels_T, *weights)
    chunks = zip(hidden_TD.split(chunk), labels_T.split(chunk), strict=True)
    losses = [run(summed_loss, *tensors, *weights, recompute=True) for tensors in chunks]
    return torch.stack(losses).sum()


def wide(logits: Tensor) -> Tensor:
    """The logits in fp32: a softmax over a large vocabulary needs it. fp64 stays fp64."""
    return logits if logits.dtype == torch.float64 else logits.float()


class LossNormalizer(NamedTuple):
    """What the summed losses of each micro-batch are divided by, so that the losses of a step add up to its mean."""

    scored_tokens: Tensor  # of the whole step, for each prediction depth, (1 + mtp layers,), int64, at least 1
    ranks: int  # over which gradients are averaged, as DDP and FSDP do


def loss_normalizer(
    labels: Sequence[Tensor], *, mtp_layers: int = 0, group: dist.ProcessGroup | None = None, context_ranks: int = 1
) -> LossNormalizer:
    """Return what normalises the losses of several micro-batches, and of several ranks, by the tokens of all of them.

    `labels` are those of each micro-batch of this rank, (B, S), all on one device. A mean over each micro-batch would
    weigh the tokens of a short one more than those of a long one. With the result as `normalizer`, the gradients that
    are accumulated over the micro-batches, and averaged over the ranks, are those of the mean over all scored tokens.
    That mean is the sum of the losses over the micro-batches, averaged over the ranks.

    `group` has the ranks with different data; None stands for all ranks of the process group, or for this process if
    there is none. Every rank of it must call this function. Where `context_ranks` ranks divide the positions of each
    sequence (cp), `labels` are those of whole sequences, and the ranks of cp have the same. Raises `ArgumentError` if
    `labels` is empty or has something else than labels.
    """
    if not isinstance(labels, list | tuple) or not labels or not all(isinstance(each, Tensor) for each in labels):
        raise ArgumentError("labels", type(labels).__name__, "must be a list of the labels of each micro-batch")
    for each in labels:
        if each.dim() != 2 or each.dtype != torch.int64:
            form = f"{tuple(each.shape)} in {each.dtype}"
            raise ArgumentError("labels", form, "each must have the shape (sequences, length) in torch.int64")
    if not isinstance(mtp_layers, int) or isinstance(mtp_layers, bool) or mtp_layers < 0:
        raise ArgumentError("mtp_layers", mtp_layers, "must be a number of layers, at least 0")
    if not isinstance(context_ranks, int) or isinstance(context_ranks, bool) or context_ranks < 1:
        raise ArgumentError("context_ranks", context_ranks, "must be a number of ranks, at least 1")
    scored = torch.stack([_scored(each, mtp_layers) for each in labels]).sum(0)
    ranks = 1
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(scored, group=group)
        ranks = dist.get_world_size(group)
    if ranks % context_ranks:
        raise ArgumentError("context_ranks", context_ranks, f"must divide the number of ranks in the group ({ranks})")
    return LossNormalizer((scored // context_ranks).clamp(min=1), ranks)


def one_further(values_BS: Tensor, last: int) -> Tensor:
    """Shift token ids or labels by one position; the last position gets the value `last`. (B, S) -> (B, S)."""
    end = torch.full_like(values_BS[:, :1], last)
    return torch.cat((values_BS[:, 1:], end), dim=1)


def mean_loss(summed: Tensor, labels_BS: Tensor, normalizer: LossNormalizer | None, depth: int) -> Tensor:
    """Divide the summed loss of a prediction depth by its scored tokens: those of `normalizer`, or of these labels."""
    if normalizer is None:
        return summed / (labels_BS != IGNORED).sum().clamp_(min=1)
    return summed * normalizer.ranks / normalizer.scored_tokens[depth]


def _scored(labels_BS: Tensor, mtp_layers: int) -> Tensor:
    """The number of scored tokens of each prediction depth: depth k has no label at the first k positions fewer."""
    scored_BS = labels_BS != IGNORED
    return torch.stack([scored_BS[:, depth:].sum() for depth in range(1 + mtp_layers)])
