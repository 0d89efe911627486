"""The process groups in which tests run a step on real tensors."""

from collections.abc import Iterator

import pytest

from tests.worlds import World


@pytest.fixture(scope="session")
def worlds() -> Iterator[dict[int, World]]:
    """Worlds by their number of ranks."""
    made = {ranks: World(ranks) for ranks in (2, 3, 4)}
    yield made
    for world in made.values():
        world.close()
