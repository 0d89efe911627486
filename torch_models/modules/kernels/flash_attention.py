"""Fused attention with features that torch's fused kernels lack: a sliding window, soft-capped scores, attention sinks.

FlashAttention (arXiv 2307.08691) and similar kernels support all three without an S x S matrix in memory, but torch has
no such kernel under a public name. This op has their interface and memory: on the meta device it allocates the same
tensors, the output and one log-sum-exp per row. On real devices it computes the same numbers by elementary operations
in fp32, for experiments at small scale. The legend of dimension letters is in layers.py.
"""

import torch
from torch import Tensor

NAME = "model_training_cost::flash_attention"
_ARGUMENTS = "Tensor query, Tensor key, Tensor value, Tensor? sinks, float scale, int? window, float? softcap"


@torch.library.custom_op(NAME, mutates_args=(), schema=f"({_ARGUMENTS}) -> (Tensor, Tensor)")
def flash_attention(
    query_BHSC: Tensor,
    key_BGSC: Tensor,
    value_BGSC: Tensor,
    sinks_H: Tensor | None,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """Causal attention within `window`; return the output (B, H, S, C) and the log-sum-exp (B, H, S) in fp32."""
    scores = _masked(_capped_scores(query_BHSC, key_BGSC, scale, softcap), window)
    terms = scores if sinks_H is None else torch.cat((scores, _per_row(sinks_H, scores)), dim=-1)
    logsumexp = terms.logsumexp(-1)
    out = (scores - logsumexp.unsqueeze(-1)).exp() @ _repeated(value_BGSC, query_BHSC)
    return out.to(query_BHSC.dtype).transpose(1, 2).contiguous().transpose(1, 2), logsumexp


@flash_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None, *_: object) -> tuple[Tensor, Tensor]:
    batch, heads, length, _channels = query.shape
    out = query.new_empty((batch, length, heads, value.shape[-1])).transpose(1, 2)
    return out, query.new_empty((batch, heads, length), dtype=torch.float32)


@torch.library.custom_op(
    f"{NAME}_backward",
    mutates_args=(),
    schema=f"(Tensor gradient, {_ARGUMENTS}, Tensor out, Tensor logsumexp) -> (Tensor, Tensor, Tensor, Tensor)",
)
def flash_attention_backward(
    gradient_BHSC: Tensor,
    query_BHSC: Tensor,
    key_BGSC: Tensor,
    value_BGSC: Tensor,
    sinks_H: Tensor | None,
    scale: float,
    window: int | None,
    softcap: float | None,
    out_BHSC: Tensor,
    logsumexp_BHS: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of query, key, value and sinks, in their dtypes (arXiv 2307.08691, §3.1.2).

    The gradient of the sinks is empty if there are none.
    """
    gradient, query = gradient_BHSC.float(), query_BHSC.float()
    key, value = _repeated(key_BGSC, query_BHSC), _repeated(value_BGSC, query_BHSC)
    capped = _capped_scores(query_BHSC, key_BGSC, scale, softcap)
    probabilities = (_masked(capped, window) - logsumexp_BHS.unsqueeze(-1)).exp()
    mean_BHS = (gradient * out_BHSC.float()).sum(-1)
    of_scores = probabilities * (gradient @ value.transpose(2, 3) - mean_BHS.unsqueeze(-1))
    if softcap is not None:
        of_scores = of_scores * (1 - (capped / softcap).square())
    of_sinks = query.new_empty(0)
    if sinks_H is not None:
        share = (sinks_H.float().view(1, -1, 1) - logsumexp_BHS).exp()
        of_sinks = -(share * mean_BHS).sum((0, 2)).to(sinks_H.dtype)
    return (
        (of_scores @ key * scale).to(query_BHSC.dtype),
        _summed(of_scores.transpose(2, 3) @ query * scale, key_BGSC),
        _summed(probabilities.transpose(2, 3) @ gradient, value_BGSC),
        of_sinks,
    )


@flash_attention_backward.register_fake
def _(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None, *_: object
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    of_sinks = query.new_empty(0) if sinks is None else torch.empty_like(sinks)
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), of_sinks


def _save(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[object, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, sinks, *ctx.options = inputs  # type: ignore[attr-defined]
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # no tensor of zeros is allocated as the gradient of the log-sum-exp
    ctx.save_for_backward(query, key, value, sinks, *output)  # type: ignore[arg-type]


def _backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor, _: Tensor | None) -> tuple[object, ...]:
    query, key, value, sinks, out, logsumexp = ctx.saved_tensors  # type: ignore[attr-defined]
    gradients = flash_attention_backward(gradient, query, key, value, sinks, *ctx.options, out, logsumexp)  # type: ignore[attr-defined]
    return *gradients[:3], None if sinks is None else gradients[3], None, None, None


flash_attention.register_autograd(_backward, setup_context=_save)


def _capped_scores(query_BHSC: Tensor, key_BGSC: Tensor, scale: float, softcap: float | None) -> Tensor:
    scores: Tensor = query_BHSC.float() @ _repeated(key_BGSC, query_BHSC).transpose(2, 3) * scale
    return scores if softcap is None else softcap * (scores / softcap).tanh()


def _masked(scores_BHSS: Tensor, window: int | None) -> Tensor:
    return scores_BHSS.masked_fill(hidden_positions(scores_BHSS, window), float("-inf"))


def hidden_positions(scores_BHSS: Tensor, window: int | None) -> Tensor:
    """Return the mask (S, S), True for keys (columns) after the query (row) or before its window."""
    length = scores_BHSS.shape[-1]
    hidden = torch.ones(length, length, dtype=torch.bool, device=scores_BHSS.device).triu(1)
    if window is None:
        return hidden
    return hidden | torch.ones(length, length, dtype=torch.bool, device=scores_BHSS.device).tril(-window)


def _per_row(sinks_H: Tensor, scores_BHSS: Tensor) -> Tensor:
    batch, _, length, _ = scores_BHSS.shape
    return sinks_H.to(scores_BHSS.dtype).view(1, -1, 1, 1).expand(batch, -1, length, 1)


def _repeated(shared_BGSC: Tensor, query_BHSC: Tensor) -> Tensor:
    return shared_BGSC.float().repeat_interleave(query_BHSC.shape[1] // shared_BGSC.shape[1], dim=1)


def _summed(of_heads_BHSC: Tensor, shared_BGSC: Tensor) -> Tensor:
    of_groups: Tensor = of_heads_BHSC.unflatten(1, (shared_BGSC.shape[1], -1)).sum(2)
    return of_groups.to(shared_BGSC.dtype)
