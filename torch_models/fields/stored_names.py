"""What checkpoints call a tensor, and where it stands in the native modules. Torch-free.

Native names are transformers 5's, experts stacked. Published checkpoints may name tensors otherwise, most often with
one tensor per expert and projection. A family whose checkpoints do says so in its `Config.stored_names`.
"""

import re
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class StoredName(NamedTuple):
    """A name that checkpoints use, and the native name that it stands for; both follow a prefix that they share.

    `{expert}` in `stored` is an expert's number: the tensor is that one's share of a tensor stacked over experts.
    `half` is 0 or 1 where it is only the upper or the lower half of the rows, as gate and up projection are.
    """

    stored: str
    native: str
    half: int | None = None


# DeepSeek's names, which most families with routed experts share.
SEPARATE_EXPERTS = (
    StoredName("mlp.experts.{expert}.gate_proj.weight", "mlp.experts.gate_up_proj", half=0),
    StoredName("mlp.experts.{expert}.up_proj.weight", "mlp.experts.gate_up_proj", half=1),
    StoredName("mlp.experts.{expert}.down_proj.weight", "mlp.experts.down_proj"),
)

# How the names of tensors end that are no weights, with the reason.
IRRELEVANT_TENSORS = {
    "rotary_emb.inv_freq": "rotary frequencies follow from the config; old checkpoints store them",
}


class Place(NamedTuple):
    """A native tensor, or one expert's share of it, or one half of that share's rows."""

    native: str
    expert: int | None = None
    half: int | None = None

    def of(self, tensor: "Tensor") -> "Tensor":
        """The view of the native `tensor` that this place is: (E, 2F, D) -> (2F, D) -> (F, D)."""
        share = tensor if self.expert is None else tensor[self.expert]
        return share if self.half is None else share.chunk(2)[self.half]


def is_irrelevant(stored: str) -> bool:
    """Whether a checkpoint's tensor is none of the model's weights."""
    return any(stored == ending or stored.endswith(f".{ending}") for ending in IRRELEVANT_TENSORS)


def place_of(stored: str, names: tuple[StoredName, ...]) -> Place:
    """Where the tensor that a checkpoint calls `stored` goes: what `names` says, else its own name."""
    for name in names:
        match = _pattern(name.stored).fullmatch(stored)
        if match:
            groups = match.groupdict()
            expert = int(groups["expert"]) if "expert" in groups else None
            return Place(groups["prefix"] + name.native, expert, name.half)
    return Place(stored)


def parts_of(native: str, experts: int, names: tuple[StoredName, ...]) -> dict[Place, str]:
    """Every part of a tensor stacked over `experts`, with the name that a checkpoint gives it; empty for others."""
    parts: dict[Place, str] = {}
    for name in names:
        if "{expert}" in name.stored and (native == name.native or native.endswith(f".{name.native}")):
            stored = native.removesuffix(name.native) + name.stored
            for expert in range(experts):
                parts.setdefault(Place(native, expert, name.half), stored.format(expert=expert))
    return parts


@cache
def _pattern(stored: str) -> re.Pattern[str]:
    ending = re.escape(stored).replace(re.escape("{expert}"), "(?P<expert>0|[1-9][0-9]*)")
    return re.compile(rf"(?P<prefix>(?:.*\.)?){ending}")
