"""How far estimates are off: their errors against published steps, as data (`configs/step_time_errors.json`).

Errors are estimated / measured - 1. The band of an estimate is that of the middle 80 % of them: from the 10th to the
90th percentile (`statistics.quantiles` with n=10, inclusive), of the published steps of models of its kind.
"""

from functools import cache
from typing import Literal

import msgspec

from torch_models.fields.bundled import bundled_data

ModelClass = Literal["dense", "mixture"]


class Errors(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The 10th and the 90th percentile of estimated / measured - 1; `rows` is the number of published steps."""

    low: float
    high: float
    rows: int


def band_of(seconds: float, errors: Errors) -> tuple[float, float]:
    """The fewest and the most seconds that are measured where `seconds` are estimated: estimated / (1 + error)."""
    return seconds / (1 + errors.high), seconds / (1 + errors.low)


def errors_of(kind: ModelClass) -> Errors:
    """The errors of models of one kind: without experts, or mixtures of experts."""
    return _all_errors()[kind]


@cache
def _all_errors() -> dict[ModelClass, Errors]:
    data = (bundled_data() / "step_time_errors.json").read_bytes()
    return msgspec.json.decode(data, type=dict[ModelClass, Errors])
