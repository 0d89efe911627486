"""transformers' models without the scans that carry a state: every other product of theirs can be counted."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

# Function of transformers -> one that returns an argument of the output's shape.
_SHAPED_ALIKE: dict[str, Callable[..., Any]] = {
    "mamba2_chunk_scan": lambda x, *_, **__: x,
    "torch_chunk_gated_delta_rule": lambda q, k, v, *_, **__: (v, None),
    "chunk_kimi_delta_attention": lambda q, k, v, *_, **__: (v, None),
    "mamba_selective_scan": lambda x, *_, **__: x,
    "rwkv_linear_attention": lambda decay, first, key, *_, **__: (key, None),
    "causal_conv1d_fn": lambda x, *_, **__: x,
    "_rnn_scan": lambda self, hidden_states, **_: (hidden_states, None),
}


@contextlib.contextmanager
def without_scans(model: nn.Module) -> Iterator[None]:
    """Context in which the scans and short convolutions of a model multiply nothing, and no mask reads numbers."""
    from transformers import masking_utils

    with contextlib.ExitStack() as stack:

        def put(owner: Any, name: str, value: Any) -> None:
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)

        put(masking_utils, "find_packed_sequence_indices", lambda *_: None)
        for module in model.modules():
            for owner in (sys.modules[type(module).__module__], type(module)):
                for name in _SHAPED_ALIKE.keys() & vars(owner).keys():
                    put(owner, name, _SHAPED_ALIKE[name])
            if isinstance(module, nn.Conv1d):
                further = 2 * int(module.padding[0]) - module.kernel_size[0] + 1
                put(module, "forward", lambda x, further=further: nn.functional.pad(x, (0, further)))
        yield


def grouped_product_flops(rows: Any, matrices: Any, *_: Any, **__: Any) -> int:
    """The FLOPs of rows (M, K), each multiplied by one of the matrices (E, K, N): torch's counter has no such entry."""
    return int(2 * rows[0] * rows[1] * matrices[-1])


GROUPED = {torch.ops.aten._grouped_mm: grouped_product_flops}
