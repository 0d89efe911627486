"""Rows of the matrix of families and ways, and how what was trained in one way is compared with the plain module."""

from collections.abc import Iterable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.shrunken import FAMILIES
from tests.torch_models.ecosystem.training_steps import Trained, Way

Table = Mapping[str, tuple[Way, Iterable[str]]]  # a way, and the families that `make test` trains in it


def rows(table: Table) -> list[Any]:
    """One row per way and family; those that `make test` leaves out are marked as a sweep."""
    return [
        pytest.param(family, way, id=f"{family}-{name}", marks=[] if family in often else pytest.mark.sweep)
        for name, (way, often) in table.items()
        for family in FAMILIES
    ]


def assert_equal(found: Trained, expected: Trained) -> None:
    """Every loss, gradient and weight is the same to the bit, and so are the names."""
    for loss, right in zip(found.losses, expected.losses, strict=True):
        assert torch.equal(loss, right), f"loss {loss.item()!r}, not {right.item()!r}"
    for kind, of_found, of_expected in _tensors(found, expected):
        different = [name for name, tensor in of_expected.items() if not torch.equal(of_found[name], tensor)]
        assert different == [], f"other {kind}: {different}"


# Where keys are not rotated: what is added to all keys of a head changes no probability.
ZERO_BUT_FOR_ROUNDING = "k_proj.bias"


def assert_close(found: Trained, expected: Trained, tolerance: float) -> None:
    """The distance of each tensor, relative to its size, is at most `tolerance`; the names are the same.

    A gradient that is nearly zero by the arithmetic of the model is held against one thousandth of all gradients.
    """
    torch.testing.assert_close(torch.stack(found.losses), torch.stack(expected.losses), rtol=tolerance, atol=0)
    for kind, of_found, of_expected in _tensors(found, expected):
        least = torch.stack([tensor.norm() for tensor in of_expected.values()]).norm() / 1000
        distances = {
            name: float((of_found[name] - tensor).norm() / max(tensor.norm(), least))
            for name, tensor in of_expected.items()
            if not (kind == "gradients" and name.endswith(ZERO_BUT_FOR_ROUNDING) and tensor.norm() < least / 1000)
        }
        far = {name: distance for name, distance in distances.items() if not distance <= tolerance}
        assert far == {}, f"{kind} at a distance: {far}"


def _tensors(found: Trained, expected: Trained) -> list[tuple[str, dict[str, Tensor], dict[str, Tensor]]]:
    assert list(found.gradients) == list(expected.gradients)
    assert list(found.weights) == list(expected.weights)
    assert all(tensor.any() for tensor in expected.gradients.values()), "a gradient of zero shows nothing"
    return [
        ("gradients", found.gradients, expected.gradients),
        ("weights", found.weights, expected.weights),
    ]
