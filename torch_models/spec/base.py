"""The base of all specs, and the check of a product of fields. Torch-free."""

import msgspec

from torch_models.errors import ConfigError
from torch_models.spec.ranges import MAX_WIDTH


class Spec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all specs: immutable, keyword-only, hashable; two specs are equal if all their fields are."""


def check_width(field: str, value: int) -> None:
    """Raise `ConfigError` if `value`, a product of fields that are each in range, exceeds `MAX_WIDTH`."""
    if value > MAX_WIDTH:
        raise ConfigError(field, value, f"must be at most {MAX_WIDTH}")
