"""The training loss: cross-entropy of the next token and, with multi-token prediction, of the tokens after it.

    loss = training_loss(model, build_mtp(config), token_ids, labels)
    loss.backward()

The legend of dimension letters is in layers.py; V is vocab_size.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_models.modules.decoder import CausalLM, MultiTokenPredictionLayer
from torch_models.modules.layers import RotaryTables
from torch_models.modules.recompute import run
from torch_models.spec import RotarySpec

IGNORED = -100  # the label of a position that is left out of the loss
MTP_WEIGHT = 0.3  # DeepSeek-V3's weight for its first 10 trillion tokens (arXiv 2412.19437, §4.2)


def training_loss(
    model: CausalLM,
    mtp_layers: nn.ModuleList,
    token_ids_BS: Tensor,
    labels_BS: Tensor,
    *,
    tables: Mapping[RotarySpec, RotaryTables] | None = None,
    loss_chunk: int | None = None,
    mtp_weight: float = MTP_WEIGHT,
) -> Tensor:
    """Return the mean cross-entropy over all labelled positions, in nats, as a scalar in fp32.

    `labels_BS` contains the next token of each position, or `IGNORED`. The mean of the losses of `mtp_layers` (an empty
    list for none) is added with weight `mtp_weight`. Layer k predicts the token that is k positions after the label,
    from the hidden state of depth k - 1 and the embedding of the token before the predicted one (DeepSeek-V3, arXiv
    2412.19437, eq. 21-25). As in Megatron-LM, every depth runs over all S positions; the last k have no label. With
    `loss_chunk`, the logits of at most that many tokens are in memory at a time, and they are computed again for
    backward. `tables` are the result of `model.model.rotary_tables`, for reuse over many steps.
    """
    decoder = model.model
    tables = decoder.rotary_tables(token_ids_BS) if tables is None else tables
    hidden_BSD = decoder(token_ids_BS, tables)
    loss = _mean_loss(model, hidden_BSD, labels_BS, loss_chunk)
    for layer in mtp_layers:
        assert isinstance(layer, MultiTokenPredictionLayer)
        embedding_BSD = decoder.embed(labels_BS.clamp(min=0))
        hidden_BSD = layer(hidden_BSD, embedding_BSD, tables[layer.spec.attention.rotary])
        labels_BS = _one_further(labels_BS)
        loss = loss + mtp_weight / len(mtp_layers) * _mean_loss(model, hidden_BSD, labels_BS, loss_chunk)
    return loss


def _one_further(labels_BS: Tensor) -> Tensor:
    """Shift the labels by one token; the last position gets `IGNORED`."""
    last = torch.full_like(labels_BS[:, :1], IGNORED)
    return torch.cat((labels_BS[:, 1:], last), dim=1)


def _mean_loss(model: CausalLM, hidden_BSD: Tensor, labels_BS: Tensor, loss_chunk: int | None) -> Tensor:
    labels_T = labels_BS.flatten()
    hidden_TD = hidden_BSD.flatten(0, 1)
    if loss_chunk is None or loss_chunk >= len(labels_T):
        total = _summed_loss(model, hidden_TD, labels_T)
    else:
        chunks = zip(hidden_TD.split(loss_chunk), labels_T.split(loss_chunk), strict=True)
        total = torch.stack([run(_summed_loss, model, *chunk, recompute=True) for chunk in chunks]).sum()
    return total / (labels_T != IGNORED).sum()


def _summed_loss(model: CausalLM, hidden_TD: Tensor, labels_T: Tensor) -> Tensor:
    """Sum of the cross-entropy over tokens, from logits in fp32: a softmax over a large vocabulary needs fp32."""
    return F.cross_entropy(model.logits(hidden_TD).float(), labels_T, ignore_index=IGNORED, reduction="sum")
