"""How much of a model with layers that keep a state is no matrix product: said when such a model is refused."""

import copy
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from counting.meta_kernels import without_compiler

TOKENS = 256
LAYERS = 2


class _ElementwiseSteps(TorchDispatchMode):
    """Counts the numbers that ops write which are neither products nor views: one operation for each, at least."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        if function._overloadpacket not in flop_registry and not function.is_view:
            written = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
            self.operations += sum(tensor.numel() for tensor in written)
        return out


def share_of_elementwise_steps(config: Any) -> str:
    """A sentence with the share, measured on a few layers by transformers' reference code on the meta device.

    Where that does not run there, a sentence that says so.
    """
    from transformers import AutoModelForCausalLM

    few = copy.deepcopy(config)
    few.num_hidden_layers = min(LAYERS, config.num_hidden_layers)
    try:
        with torch.device("meta"), without_compiler(), torch.no_grad():
            model = AutoModelForCausalLM.from_config(few, dtype=torch.bfloat16)  # type: ignore[no-untyped-call]
            tokens = torch.zeros(1, TOKENS, dtype=torch.int64)
            with FlopCounterMode(display=False) as products, _ElementwiseSteps() as steps:
                model(tokens, use_cache=False)
    except Exception:  # whatever the reference code raises on a device without numbers
        return "the share of these steps could not be measured: the code does not run on the meta device"
    total = products.get_total_flops() + steps.operations
    return (
        f"of {few.num_hidden_layers} layers and the head at {TOKENS} tokens, elementwise steps are "
        f"{steps.operations:,} of {total:,} operations ({steps.operations / total:.2%}), one for each number written"
    )
