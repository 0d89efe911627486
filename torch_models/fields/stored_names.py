"""Names of tensors in checkpoints, and their places in the native modules. Torch-free.

Native names are those of transformers 5, with stacked experts. Names in published checkpoints may differ, most often
with one tensor per expert and projection; `Config.stored_names` of a family lists them.
"""

import re
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


Shape = tuple[int, ...]


class StoredName(NamedTuple):
    """A name in checkpoints and the native name that it stands for, both without the prefix that they share.

    `{expert}` in `stored` is the number of an expert, whose tensor is one slice of a tensor stacked over experts.
    `half` is 0 or 1 if the stored tensor is only the upper or the lower half of the rows, as for gate and up.
    """

    stored: str
    native: str
    half: int | None = None


# DeepSeek's names, which most families with routed experts use.
SEPARATE_EXPERTS = (
    StoredName("mlp.experts.{expert}.gate_proj.weight", "mlp.experts.gate_up_proj", half=0),
    StoredName("mlp.experts.{expert}.up_proj.weight", "mlp.experts.gate_up_proj", half=1),
    StoredName("mlp.experts.{expert}.down_proj.weight", "mlp.experts.down_proj"),
)

# Endings of the names of tensors that are no weights, with the reason.
IRRELEVANT_TENSORS = {
    "rotary_emb.inv_freq": "rotary frequencies follow from the config; old checkpoints store them",
}


class Place(NamedTuple):
    """A native tensor, one expert's slice of it, or one half of the rows of that slice."""

    native: str
    expert: int | None = None
    half: int | None = None

    def of(self, tensor: "Tensor") -> "Tensor":
        """Return the view of the native `tensor` at this place: (E, 2F, D) -> (2F, D) -> (F, D)."""
        share = tensor if self.expert is None else tensor[self.expert]
        return share if self.half is None else share.chunk(2)[self.half]

    def shape_in(self, shape: Shape) -> Shape:
        """Return the shape at this place of a native tensor of `shape`: (E, 2F, D) -> (2F, D) -> (F, D)."""
        share = shape if self.expert is None else shape[1:]
        return share if self.half is None else (share[0] // 2, *share[1:])


def is_irrelevant(stored: str) -> bool:
    """Whether a tensor of a checkpoint is not a weight and can be ignored."""
    return any(stored == ending or stored.endswith(f".{ending}") for ending in IRRELEVANT_TENSORS)


def place_of(stored: str, names: tuple[StoredName, ...]) -> Place:
    """Return the place of the tensor `stored` by `names`; by default the native name is the same."""
    for name in names:
        match = _pattern(name.stored).fullmatch(stored)
        if match:
            groups = match.groupdict()
            expert = int(groups["expert"]) if "expert" in groups else None
            return Place(groups["prefix"] + name.native, expert, name.half)
    return Place(stored)


def parts_of(native: str, experts: int, names: tuple[StoredName, ...]) -> dict[Place, str]:
    """Return the parts that checkpoints store of the tensor `native`, each with its name there.

    This is the inverse of `place_of`. `experts` is the length of a tensor that is stacked over experts. A tensor that
    `names` does not mention is stored whole, under its own name.
    """
    parts: dict[Place, str] = {}
    for name in names:
        if native == name.native or native.endswith(f".{name.native}"):
            stored = native.removesuffix(name.native) + name.stored
            for expert in range(experts) if "{expert}" in name.stored else (None,):
                parts.setdefault(Place(native, expert, name.half), stored.format(expert=expert))
    return parts or {Place(native): native}


@cache
def _pattern(stored: str) -> re.Pattern[str]:
    ending = re.escape(stored).replace(re.escape("{expert}"), "(?P<expert>0|[1-9][0-9]{0,8})")
    return re.compile(rf"(?P<prefix>(?:.*\.)?){ending}")
