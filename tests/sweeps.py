"""Random seeds: a few for every run of the tests, many for `make test-all`."""

from typing import Any

import pytest


def seeds(few: int, many: int) -> list[Any]:
    """0 to `many`, of which those from `few` on are marked as a sweep."""
    return [seed if seed < few else pytest.param(seed, marks=pytest.mark.sweep) for seed in range(many)]
