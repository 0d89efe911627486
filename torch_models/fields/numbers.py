"""Numbers of a config that JSON does not have: infinities, as Python and transformers write them.

Python writes the bare words Infinity, -Infinity and NaN; transformers writes `{"__float__": "Infinity"}`.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from torch_models.errors import ConfigError
from torch_models.fields.unknown_fields import is_comment

_FLOAT_TAG = "__float__"
_TAGGED_FLOATS = {"Infinity", "-Infinity", "NaN"}

MAY_BE_INFINITE = {"time_step_limit", "dt_limit"}  # the range of a state space's steps, which may have no end


def decoded(value: Any) -> Any:
    """Return the value with every tagged number replaced by the float, at any depth."""
    if isinstance(value, list):
        return [decoded(item) for item in value]
    if isinstance(value, dict):
        if value.keys() == {_FLOAT_TAG} and str(value[_FLOAT_TAG]) in _TAGGED_FLOATS:
            return float(value[_FLOAT_TAG])
        return {key: decoded(item) for key, item in value.items()}
    return value


def check_finite(fields: Mapping[str, Any]) -> None:
    """Raise `ConfigError` with the path of a field that is not a finite number, where it may not be infinite."""
    for field, value in fields.items():
        if is_comment(field):
            continue
        for path, number in _not_finite(field, value):
            if field not in MAY_BE_INFINITE or math.isnan(number):
                raise ConfigError(path, number, "must be a finite number")


def _not_finite(path: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, float) and not math.isfinite(value):
        yield path, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _not_finite(f"{path}.{key}", inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _not_finite(path, inner)
