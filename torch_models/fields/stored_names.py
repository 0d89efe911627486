"""Names of tensors in checkpoints, and their places in the native modules. Torch-free.

Native names are those of transformers 5, with stacked experts. Names in published checkpoints may differ, most often
with one tensor per expert and projection; some store a matrix (in, out), or queries, keys and values in one tensor.
`Config.stored_names` of a family lists them.
"""

import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


Shape = tuple[int, ...]


class StoredName(NamedTuple):
    """A name in checkpoints and the native name that it stands for, both without the prefix that they share.

    `{expert}` in `stored` is the number of an expert, whose tensor is one slice of a tensor stacked over experts.
    `{layer}` in both is the number of a layer, where the names of layers differ as well. `half` is 0 or 1 if the stored
    tensor is only the upper or the lower half of the rows, as for gate and up. A stored tensor that is `transposed` has
    the last two dimensions of the native one in the other order. `third` is 0, 1 or 2 if the native tensor is only one
    third of the stored one's rows, as for queries, keys and values; one stored name then has several entries.
    """

    stored: str
    native: str
    half: int | None = None
    transposed: bool = False
    third: int | None = None


# DeepSeek's names, which most families with routed experts use.
SEPARATE_EXPERTS = (
    StoredName("mlp.experts.{expert}.gate_proj.weight", "mlp.experts.gate_up_proj", half=0),
    StoredName("mlp.experts.{expert}.up_proj.weight", "mlp.experts.gate_up_proj", half=1),
    StoredName("mlp.experts.{expert}.down_proj.weight", "mlp.experts.down_proj"),
)

# Endings of the names of tensors that are no weights, with the reason; a family may have further ones.
IRRELEVANT_TENSORS = {
    "rotary_emb.inv_freq": "rotary frequencies follow from the config; old checkpoints store them",
}


class Place(NamedTuple):
    """A native tensor, one expert's slice of it, or one half of the rows of that slice; and how it is stored."""

    native: str
    expert: int | None = None
    half: int | None = None
    transposed: bool = False  # the last two dimensions are stored in the other order
    third: int | None = None  # this part of the rows of what is stored

    def of(self, tensor: "Tensor") -> "Tensor":
        """Return the view of the native `tensor` at this place: (E, 2F, D) -> (2F, D) -> (F, D)."""
        share = tensor if self.expert is None else tensor[self.expert]
        return share if self.half is None else share.chunk(2)[self.half]

    def within(self, stored: "Tensor") -> "Tensor":
        """Return the view of a `stored` tensor that belongs here, in the native order: (D, 3D) -> (3D, D) -> (D, D)."""
        rows = stored.transpose(-2, -1) if self.transposed else stored
        return rows if self.third is None else rows.chunk(3)[self.third]

    def shape_in(self, shape: Shape) -> Shape:
        """Return the shape of the tensor that is stored for this place of a native tensor of `shape`.

        (E, 2F, D) -> (2F, D) -> (F, D); of one that is transposed and a third: (D, D) -> (3D, D) -> (D, 3D).
        """
        share = shape if self.expert is None else shape[1:]
        if self.half is not None:
            share = share[0] // 2, *share[1:]
        if self.third is not None:
            share = share[0] * 3, *share[1:]
        return (*share[:-2], share[-1], share[-2]) if self.transposed else share


def is_irrelevant(stored: str, endings: Iterable[str] = IRRELEVANT_TENSORS) -> bool:
    """Whether a tensor of a checkpoint is not a weight and can be ignored."""
    return any(stored == ending or stored.endswith(f".{ending}") for ending in endings)


def places_of(stored: str, names: tuple[StoredName, ...]) -> tuple[Place, ...]:
    """Return the places of the tensor `stored` by `names`, several if it has thirds; by default the name is native."""
    for first in names:
        match = _pattern(first.stored).fullmatch(stored)
        if match:
            groups = match.groupdict()
            expert = int(groups["expert"]) if "expert" in groups else None
            return tuple(
                Place(groups["prefix"] + _numbered(name.native, groups), expert, *name[2:])
                for name in names
                if name.stored == first.stored
            )
    return (Place(stored),)


def parts_of(native: str, experts: int, names: tuple[StoredName, ...]) -> dict[Place, str]:
    """Return the parts that checkpoints store of the tensor `native`, each with its name there.

    This is the inverse of `places_of`. `experts` is the length of a tensor that is stacked over experts. A tensor that
    `names` does not mention is stored whole, under its own name.
    """
    parts: dict[Place, str] = {}
    for name in names:
        match = _pattern(name.native).fullmatch(native)
        if match:
            groups = match.groupdict()
            stored = groups["prefix"] + _numbered(name.stored, groups)
            for expert in range(experts) if "{expert}" in stored else (None,):
                parts.setdefault(Place(native, expert, *name[2:]), stored.replace("{expert}", str(expert)))
    return parts or {Place(native): native}


def _numbered(name: str, groups: Mapping[str, str]) -> str:
    return name.replace("{layer}", groups["layer"]) if "layer" in groups else name


@cache
def _pattern(name: str) -> re.Pattern[str]:
    ending = re.escape(name)
    for number in ("expert", "layer"):
        ending = ending.replace(re.escape(f"{{{number}}}"), f"(?P<{number}>0|[1-9][0-9]{{0,8}})")
    return re.compile(rf"(?P<prefix>(?:.*\.)?){ending}")
