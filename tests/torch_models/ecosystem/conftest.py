"""The process groups that the tests of this folder share, and one thread, as on each of their ranks."""

from collections.abc import Iterator

import pytest
import torch

from tests.worlds import World


@pytest.fixture(scope="session")
def two_ranks() -> Iterator[World]:
    with World(2) as world:
        yield world


@pytest.fixture(scope="session")
def four_ranks() -> Iterator[World]:
    with World(4) as world:
        yield world


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The order in which a product adds depends on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
