"""The elementwise share of the operations of a model whose layers keep a state, for the message that refuses it."""

import copy
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from counting.measurements.meta_device import ONE_AT_A_TIME
from counting.measurements.ops.formulas import grouped_product
from counting.via_transformers.discover import load_code_of
from counting.via_transformers.quiet import quiet
from counting.via_transformers.refusals import one_line

TOKENS = 256
_LONGEST_REASON = 100
_PRODUCTS = {torch.ops.aten._grouped_mm: grouped_product}


class _ElementwiseSteps(TorchDispatchMode):
    """Counts the numbers written by ops that are neither products nor views: at least one operation for each number."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        op = function._overloadpacket
        if op not in flop_registry and op not in _PRODUCTS and not function.is_view:
            written = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
            self.operations += sum(tensor.numel() for tensor in written)
        return out


def share_of_elementwise_steps(config: Any) -> str:
    """A sentence with the share, measured on the first layers with transformers' reference code on the meta device.

    The number of layers is the smallest with one layer of each kind. If the code does not run on the meta device, the
    sentence gives the reason.
    """
    load_code_of(config)
    kinds = list(getattr(config, "layer_types", None) or [None])
    few = copy.deepcopy(config)
    few.num_hidden_layers = count = 1 + max(kinds.index(kind) for kind in set(kinds))
    reasons: list[str] = []
    for masked in (False, True):  # some code reads a mask's numbers unless a mask is given
        try:
            with ONE_AT_A_TIME, quiet():  # not in `measuring`: its kernels would replace the reference code's
                products, steps = _operations(few, masked)
        except Exception as error:  # the reference code may raise any exception on the meta device
            reasons.append(f"{'with' if masked else 'without'} a mask: {one_line(error, _LONGEST_REASON)}")
            continue
        return (
            f"of {f'the first {count} layers' if count > 1 else 'the first layer'} at {TOKENS} tokens, elementwise "
            f"steps are {steps:,} of {products + steps:,} operations ({steps / (products + steps):.2%}), one for each "
            "number written"
        )
    return f"the share of these steps could not be measured on the meta device ({'; '.join(reasons)})"


def _operations(config: Any, masked: bool) -> tuple[int, int]:
    """FLOPs of products, and numbers written by all other ops, in one forward pass without the head."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"), torch.no_grad():
        model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, dtype=torch.bfloat16
        ).eval()
        if model._can_set_experts_implementation():
            model.set_experts_implementation("grouped_mm")
        tokens = torch.zeros(1, TOKENS, dtype=torch.int64)
        mask = torch.ones(1, 1, TOKENS, TOKENS, dtype=torch.bool) if masked else None
        with FlopCounterMode(display=False, custom_mapping=_PRODUCTS) as products, _ElementwiseSteps() as steps:
            model.base_model(tokens, attention_mask=mask, use_cache=False)
    return products.get_total_flops(), steps.operations
