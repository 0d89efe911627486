"""Attention as one fused kernel, with the signature of transformers' attention functions.

transformers keeps these functions in a global table, `AttentionInterface`. During a measurement our function is
registered there under our own name, and removed afterwards.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

ONE_KERNEL = "one_fused_kernel"  # the name in transformers' table

AttentionFunction = Callable[..., tuple[Tensor, None]]


@contextlib.contextmanager
def attention_known_as(name: str, function: AttentionFunction) -> Iterator[None]:
    """Context in which models of transformers whose attention is set to `name` run `function`."""
    from transformers import AttentionInterface

    table = AttentionInterface._global_mapping  # no public function removes a name
    before = table.get(name)
    AttentionInterface.register(name, function)
    try:
        yield
    finally:
        if before is None:
            del table[name]
        else:
            table[name] = before


def attention_in_one_kernel(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,  # families pass it by position or by this name
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention over the full square: (B, H, S, C), (B, G, S, C) and (B, G, S, C') give (B, S, H, C').

    Windows, sinks, biases and soft caps change no product's size; dropout inside the kernel stores nothing. Where keys
    are selected, all keys are multiplied. A mask is passed on, because the kernel reads it.
    """
    shared_keys = query.shape[1] != key.shape[1]
    if shared_keys and query.shape[-1] != value.shape[-1]:  # the kernel for unequal sizes has no grouped queries
        repeats = query.shape[1] // key.shape[1]
        key, value, shared_keys = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1), False
    causal = attention_mask is None and bool(getattr(module, "is_causal", True))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    more: dict[str, Any] = {} if attention_mask is None else {"attn_mask": attention_mask}
    out = F.scaled_dot_product_attention(
        query, key, value, is_causal=causal, scale=scale, enable_gqa=bool(shared_keys), **more
    )
    return out.transpose(1, 2).contiguous(), None


def noting_modules(noted: set[nn.Module]) -> AttentionFunction:
    """Like `attention_in_one_kernel`; also adds to `noted` each module whose attention is only the kernel.

    Modules with a mask or selected keys are not added: their attention stores other tensors than a fused kernel.
    """

    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        indices: Tensor | None = None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        if attention_mask is None and indices is None:
            noted.add(module)
        return attention_in_one_kernel(module, query, key, value, attention_mask, **options)

    return attention
