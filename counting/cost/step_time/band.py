"""How far estimates are off: the signed errors against published steps, as data (`configs/step_time_errors.json`)."""

from functools import cache
from typing import Literal

import msgspec

from torch_models.fields.bundled import bundled_data

ModelClass = Literal["dense", "mixture"]


class Errors(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The least and the largest estimated / measured - 1 over published steps; `rows` is their number."""

    low: float
    high: float
    rows: int


def errors_of(kind: ModelClass) -> Errors:
    """The errors of models of one kind: without experts, or mixtures of experts."""
    return _all_errors()[kind]


@cache
def _all_errors() -> dict[ModelClass, Errors]:
    data = (bundled_data() / "step_time_errors.json").read_bytes()
    return msgspec.json.decode(data, type=dict[ModelClass, Errors])
