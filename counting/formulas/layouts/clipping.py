"""Gradient clipping on a rank: the bytes of the norms, and the sums of their squares over ranks.

`torch.nn.utils.get_total_norm` makes the norm of each tensor that a rank stores, and stacks them. Of DTensors, each
axis of their mesh that divides tensors adds up the squares of the stack: an all-reduce of one number a tensor, between
two more copies of the stack (torch/distributed/tensor/_ops/_math_ops.py, `_NormPartial`). A norm is as wide as the
gradients. Experts that ranks of ep divide are on a mesh, and so in a stack, of their own; stages of a pipeline add up
one number over pp. A tensor that tp does not divide has its norm divided by sqrt(tp) first, so that the sum counts it
once; that is never the moment with most bytes.

Example: Llama-3-8B has 3 + 32 x 9 = 291 tensors. On 8 ranks of fsdp, with gradients in fp32, 4 x 291 = 1,164 bytes are
reduced; norms, stack, squares, their sums and the roots of these are 5 x 1,164 = 5,820 bytes. With tp too the stack is
summed twice, and the roots of the first sums are there beside: 6 x 1,164 = 6,984.
"""

from typing import NamedTuple

from counting.ranks.profile import Axis, Collective, RankStretch, Traffic, Traffics
from counting.step.profile import Stretch
from torch_models.layout import Layout

OF_FACTOR = 4  # numbers: the total norm, that and 1e-6, its inverse, and the product with the norm that is allowed
OF_BOTH = 5  # numbers: the norms of experts and of all others, their squares, and the sum of these


class Counted(NamedTuple):
    """How many tensors of a rank are in the total norm: experts that ranks of ep divide, and all others."""

    experts: int
    others: int

    def plus(self, number: int, *, experts: bool) -> "Counted":
        """Return these and `number` more, which are experts or not."""
        return Counted(self.experts + number * experts, self.others + number * (not experts))


def clipping_by_formula(counted: Counted, width: int, layout: Layout) -> RankStretch:
    """Return the peak of clipping and what it sends; `width` are the bytes of a number of a gradient."""
    dividing_experts = _above_one(("expert_fsdp", layout.expert_fsdp), ("ep", layout.ep))
    dividing_others = _above_one(("fsdp", layout.shards), ("tp", layout.tp))
    moments = [OF_FACTOR, _numbers_of_norm(counted.others, len(dividing_others))]
    sizes = dict.fromkeys(dividing_others, counted.others)
    if counted.experts:
        # Their norm is there while that of the others is computed.
        moments = [OF_FACTOR, OF_BOTH, moments[-1] + 1, _numbers_of_norm(counted.experts, len(dividing_experts))]
        sizes |= dict.fromkeys(dividing_experts, counted.experts)
    if layout.pp > 1:
        sizes["pp"] = 1
    traffic: Traffics = {
        Collective("optimizer", "all_reduce", axis).key: Traffic(
            calls=1, bytes_in=numbers * width, bytes_out=numbers * width
        )
        for axis, numbers in sizes.items()
    }
    return RankStretch(memory=Stretch(peak=max(moments) * width, net=0), traffic=traffic)


def _numbers_of_norm(tensors: int, sums: int) -> int:
    """How many numbers are there at most while the norm of so many tensors is computed, with sums over ranks.

    Without sums: norms, their stack, and the norm of that. With one: norms, stack, squares, sums, roots. With a second
    one the roots of the first too, whose squares are summed.
    """
    assert sums <= 2, "a mesh has two dimensions that divide tensors"
    return (4 + sums) * tensors if sums else 2 * tensors + 1


def _above_one(*sizes: tuple[Axis, int]) -> list[Axis]:
    """The axes that divide anything."""
    return [axis for axis, size in sizes if size > 1]
