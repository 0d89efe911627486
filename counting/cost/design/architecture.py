"""What a design is, what a design family is, and the steps that the searches of families share."""

from collections.abc import Callable, Iterable, Iterator
from itertools import count
from math import ceil, floor
from typing import Literal, TypeVar

import msgspec

from counting.records.tidy import Tidy
from torch_models.errors import UserError

LARGEST_RELATIVE_ERROR = 0.005

_Shape = TypeVar("_Shape")
SizedBy = Literal["total", "active"]  # which parameters of a design are brought to the target


class Architecture(Tidy, frozen=True, kw_only=True):
    """A designed config.json, and its distance from the requested number of parameters."""

    family: str
    config: dict[str, object]  # the fields of a config.json in Hugging Face's format
    parameters: int  # all of the main model
    active_parameters: int  # those that one token uses; of a dense model all
    sized_by: SizedBy
    target_parameters: int
    relative_error: float  # sized parameters / target - 1
    rules: tuple[str, ...]  # every rule that shaped it, with its source

    @property
    def sized_parameters(self) -> int:
        """The parameters that the target is of: all or, of a mixture of experts, the active ones."""
        return self.parameters if self.sized_by == "total" else self.active_parameters

    def config_json(self) -> str:
        """The config as the text of a config.json."""
        return msgspec.json.format(msgspec.json.encode(self.config), indent=2).decode() + "\n"


class DesignFamily(msgspec.Struct, frozen=True, kw_only=True):
    """How models of one family are designed, and the sizes for which its rules hold."""

    name: str  # the family's model_type
    smallest: int  # parameters as `sized_by` says
    largest: int
    sized_by: SizedBy
    range_source: str  # why the rules hold from `smallest` to `largest`
    design: Callable[[int], Architecture]  # the design for a number of parameters in that range

    def check_size(self, target_parameters: int) -> None:
        """Raises UserError if the rules do not hold for `target_parameters`."""
        if not self.smallest <= target_parameters <= self.largest:
            parameters = "active parameters" if self.sized_by == "active" else "parameters"
            raise UserError(
                f"cannot design a {self.name} model of {target_parameters:,} {parameters}: its design rules hold from "
                f"{self.smallest:,} to {self.largest:,} ({self.range_source}); change the budget, the GPUs, the "
                "utilisation or the design family"
            )


def hidden_sizes(finest: int = 256) -> Iterator[int]:
    """Multiples of `finest` from 512, of twice that from 2,048 and of four times from 8,192, an infinite sequence."""
    yield from range(512, 2048, finest)
    yield from range(2048, 8192, 2 * finest)
    yield from count(8192, 4 * finest)


def hidden_size_rule(hidden_size: int, finest: int = 256) -> str:
    """The rule of `hidden_sizes` in words."""
    return (
        f"hidden size {hidden_size}: a multiple of {finest}, whole tiles of a matrix multiply; of {2 * finest} from "
        f"2,048 and of {4 * finest:,} from 8,192 on"
    )


def sizes_in_range(
    sizes: Iterable[int], width_to_depth: Callable[[int], float], lowest: float, highest: float
) -> Iterator[int]:
    """The hidden sizes, in rising order, at which hidden size / layers is about `lowest` to `highest`.

    `width_to_depth` is what a typical shape of a hidden size has; shapes may be 20 % beyond the range to be tried.
    """
    for hidden_size in sizes:
        ratio = width_to_depth(hidden_size)
        if ratio > 1.2 * highest:
            return  # too few layers; wider shapes have even fewer
        if ratio >= lowest / 1.2:
            yield hidden_size


def best_shape(candidates: Iterable[tuple[float, _Shape]], family: str, target: int) -> _Shape:
    """The shape with the smallest penalty, of (penalty, shape); the first one of several. Raises UserError for none."""
    best = min(candidates, key=lambda candidate: candidate[0], default=None)
    if best is None:
        raise UserError(
            f"no {family} model by its design rules is within {LARGEST_RELATIVE_ERROR:.1%} of {target:,} parameters; "
            "change the budget by a percent"
        )
    return best[1]


def multiples_near(ideal: float, step: int, share: float) -> range:
    """The multiples of `step` within `share` of `ideal`, or within one `step` if that is more; all above 0."""
    tolerance = max(share * ideal, step)
    return range(max(1, ceil((ideal - tolerance) / step)) * step, floor(ideal + tolerance) + 1, step)


def whole_layers(first: int, second: int, target: int) -> tuple[int, int]:
    """(Further layers, parameters): the whole number of layers that brings a model nearest to the target.

    `first` is the number of parameters of the model with the fewest layers, `second` with one layer more.
    """
    further = second - first
    layers = max(0, round((target - first) / further))
    return layers, first + layers * further
