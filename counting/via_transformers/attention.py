"""Attention as one fused kernel, with the signature of transformers' attention functions.

transformers keeps these functions in a global table, `AttentionInterface`. During a measurement our function is
registered there under our own name, and removed afterwards. A window, soft-capped scores and sinks run in this
project's own fused op, as in the families with modules here: then FLOPs are those of the window's band.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from counting.via_transformers.structure import chosen_by
from torch_models.modules.kernels.flash_attention import flash_attention

ONE_KERNEL = "one_fused_kernel"  # the name in transformers' table

SLIDING_WINDOW = "sliding_window"  # its name in configs and among the arguments of attention functions
SLIDING_MASK = "create_sliding_window_causal_mask"  # transformers' function that makes the mask of a window

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
    indices: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Causal attention: (B, H, S, C), (B, G, S, C) and (B, G, S, C') give (B, S, H, C').

    The kernel follows the module's window, of which a mask says nothing more, and visits only the keys that an indexer
    chooses, whose `indices` (B, S, K) are given. Without a mask it caps its scores and adds its sinks. Any other mask
    is passed on, because a kernel reads it; then all keys are multiplied. Keys beyond the sequence, of compressed
    tokens, are in no window: all are multiplied, or as many as the module's indexer chooses.
    Biases change no product's size; dropout inside the kernel stores nothing.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    is_causal = bool(getattr(module, "is_causal", True))
    causal = is_causal and attention_mask is None
    window, softcap, sinks = window_of(module, options), options.get("softcap"), options.get("s_aux")
    if is_causal and window is not None and _has_further_keys(query, key):
        length = query.shape[2]
        near = flash_attention(query, key[:, :, :length], value[:, :, :length], sinks, scale, window, softcap)[0]
        far = _attention_to_further_keys(module, query, key[:, :, length:], value[:, :, length:], scale)
        return (near + far).transpose(1, 2).contiguous(), None
    if is_causal and indices is not None and indices.dim() == 3 and key.shape[2] == query.shape[2]:
        chosen = indices.to(torch.int32)
        out = flash_attention(query, key, value, sinks, scale, None, softcap, None, chosen)[0]
        return out.transpose(1, 2).contiguous(), None
    if (is_causal and window is not None) or (causal and (softcap is not None or sinks is not None)):
        out = flash_attention(query, key, value, sinks, scale, window, softcap)[0]
        return out.transpose(1, 2).contiguous(), None
    shared_keys = query.shape[1] != key.shape[1]
    if shared_keys and query.shape[-1] != value.shape[-1]:  # the kernel for unequal sizes has no grouped queries
        repeats = query.shape[1] // key.shape[1]
        key, value, shared_keys = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1), False
    more: dict[str, Any] = {} if attention_mask is None else {"attn_mask": attention_mask}
    out = F.scaled_dot_product_attention(
        query, key, value, is_causal=causal, scale=scale, enable_gqa=bool(shared_keys), **more
    )
    return out.transpose(1, 2).contiguous(), None


def _attention_to_further_keys(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Attention to T keys, or to those that an indexer chooses; only its sizes are right, not its numbers."""
    most = next((most for each in module.modules() if (most := chosen_by(each)) is not None), None)
    if most is None:
        grouped = bool(query.shape[1] != key.shape[1])
        return F.scaled_dot_product_attention(query, key, value, scale=scale, enable_gqa=grouped)
    chosen = query.new_empty((query.shape[0], query.shape[2], min(most, key.shape[2])), dtype=torch.int32)
    out: Tensor = flash_attention(query, key, value, None, scale, None, None, None, chosen)[0]
    return out


def _has_further_keys(query: Tensor, key: Tensor) -> bool:
    """Whether there are more keys than queries: those of compressed tokens, which a model adds to its own."""
    return bool(key.shape[2] > query.shape[2])


def window_of(module: nn.Module, options: dict[str, Any]) -> int | None:
    """How many keys a query of an attention module visits, itself included; None: all.

    Most families pass it to the kernel. The others have it in the mask that they make for their layers: for all of
    them, or for those of that type.
    """
    if SLIDING_WINDOW in options:
        window: int | None = options[SLIDING_WINDOW]
        return window
    config = getattr(module, "config", None)
    kinds = getattr(config, "layer_types", None)
    masked = SLIDING_MASK in vars(sys.modules[type(module).__module__])
    if not masked or (kinds and kinds[getattr(module, "layer_idx", 0)] != "sliding_attention"):
        return None
    return getattr(config, SLIDING_WINDOW, None)


def noting_modules(noted: set[nn.Module]) -> AttentionFunction:
    """Like `attention_in_one_kernel`; also adds to `noted` each module whose attention is only the kernel.

    Modules with selected or compressed keys, or with a mask of something else than a window, are not added: their
    attention stores other tensors than a fused kernel.
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
        in_window = window_of(module, options) is not None and not _has_further_keys(query, key)
        if indices is None and (attention_mask is None or in_window):
            noted.add(module)
        return attention_in_one_kernel(module, query, key, value, attention_mask, indices=indices, **options)

    return attention
