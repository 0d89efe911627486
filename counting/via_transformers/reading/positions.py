"""The longest sequence for which a model has positions: its tables of positions, and what a pass looks up in them.

On the meta device an index has no value, so that a look-up beyond a table's end raises no error there, as it does on
real tensors. Here the largest value of each index is followed from op to op.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from counting.via_transformers.reading.fields import value_of
from torch_models.errors import ConfigError, UserError

POSITION_FIELDS = ("max_position_embeddings", "max_seq_len")  # the standard name, and that of MPT
UNUSED_ROWS = 8  # some families leave the first rows of a table unused, at most so many
TABLE_ENDS = "the table of positions has no more rows"

_aten = torch.ops.aten
_CREATED_BY = {_aten.ones, _aten.ones_like, _aten.new_ones}
_KEPT_BY = {_aten._to_copy, _aten.clone, _aten.repeat, _aten.relu, _aten.abs}


def position_field(config: Any) -> tuple[str, int | None]:
    """The config's own name of `max_position_embeddings`, and its value; None if there is none."""
    for name in POSITION_FIELDS:
        value = value_of(name, config)
        if isinstance(value, int):
            return config.attribute_map.get(name, name), value
    return POSITION_FIELDS[0], None


def is_position_table(module: nn.Module, positions: int | None) -> bool:
    """Whether a module that is not the word embedding is a table of `positions` rows, apart from unused ones."""
    if not isinstance(module, nn.Embedding) or positions is None:
        return False
    return 0 <= module.num_embeddings - positions <= UNUSED_ROWS


def refuse_longer_than_tables(model: nn.Module, layers: Iterable[nn.Module], config: Any, sequence_length: int) -> None:
    """Raise `ConfigError` if the model has a learned table of positions outside its layers that is too short."""
    field, positions = position_field(config)
    inside = {module for layer in layers for module in layer.modules()}
    words = model.get_input_embeddings()  # type: ignore[operator]
    tables = (module for module in model.modules() if module not in inside and module is not words)
    if positions is not None and positions < sequence_length and any(is_position_table(m, positions) for m in tables):
        raise too_long(field, positions, sequence_length, TABLE_ENDS)


def too_long(field: str, positions: int, sequence_length: int, because: str) -> ConfigError:
    """The error for a sequence that is longer than the config's maximum; `because` says why that is no mere advice."""
    rule = f"a sequence of {sequence_length:,} tokens is longer, and {because}; "
    return ConfigError(field, positions, rule + f"give sequence_length, of at most {positions:,}")


class LookUps:
    """Follows the largest value of integer tensors through a pass, and refuses a look-up beyond the end of a table.

    Only values that start at `arange` or at ones are followed, which is how positions are made.
    """

    def __init__(self, config: Any, sequence_length: int) -> None:
        self._config = config
        self._sequence_length = sequence_length
        self._largest: dict[int, tuple[Tensor, int]] = {}  # id -> the tensor, which is kept alive, and its bound

    def observe(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Called after every op. Raises `UserError` for a look-up beyond the end."""
        del kwargs
        op = function.overloadpacket
        if op is _aten.embedding:
            self._look_up(args[0].shape[0], args[1])
        elif op in (_aten.gather, _aten.index_select):
            self._look_up(args[0].shape[args[1]], args[2])
        elif op is _aten.index:
            for size, index in zip(args[0].shape, args[1], strict=False):
                self._look_up(size, index)
        elif isinstance(out, Tensor):
            largest = self._of_result(op, function.is_view, args, out)
            if largest is not None:
                self._largest[id(out)] = out, largest

    def _look_up(self, rows: int, index: Any) -> None:
        largest = self._of(index)
        if largest is None or largest < rows:
            return
        field, positions = position_field(self._config)
        if positions is not None and positions <= rows <= positions + UNUSED_ROWS:
            raise too_long(field, positions, self._sequence_length, TABLE_ENDS)
        raise UserError(f"a sequence of {self._sequence_length:,} tokens looks beyond the {rows:,} rows of a table")

    def _of(self, value: Any) -> int | None:
        if isinstance(value, bool | int):
            return int(value)
        return self._largest[id(value)][1] if id(value) in self._largest else None

    def _of_result(self, op: Any, is_view: bool, args: tuple[Any, ...], out: Tensor) -> int | None:
        if op is _aten.arange:
            start, step = (args[0] if len(args) > 1 else 0), (args[2] if len(args) > 2 else 1)
            whole = isinstance(start, int) and isinstance(step, int) and step > 0
            return start + (out.numel() - 1) * step if whole else None
        if op in _CREATED_BY:
            return 1
        first = self._of(args[0]) if args and isinstance(args[0], Tensor) else None
        if first is None:
            return None
        if is_view or op in _KEPT_BY:
            return first
        if op is _aten.cumsum:
            return first * int(args[0].shape[args[1]])
        second = self._of(args[1]) if op in (_aten.add, _aten.sub, _aten.mul) else None
        if second is None:
            return None
        if op is _aten.sub:  # a tensor may be as small as 0
            return first if isinstance(args[1], Tensor) else first - second
        return first + second if op is _aten.add else first * second
