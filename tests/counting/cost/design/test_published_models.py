"""The published models that guide Llama designs."""

from math import log, prod

import pytest

from counting.cost.design import published_models, published_peers


@pytest.mark.parametrize("model", published_models(), ids=lambda model: model.name)
def test_a_published_shape_makes_the_published_size(model: object) -> None:
    # 12 L D^2 (Kaplan et al. 2020, table 1) leaves out vocabularies, wide or gated MLPs and narrow keys: a slip of a
    # digit would still show.
    estimate = prod((12, model.layers, model.hidden_size, model.hidden_size))  # type: ignore[attr-defined]
    assert abs(log(estimate / model.parameters)) < log(2.2)  # type: ignore[attr-defined]


@pytest.mark.parametrize("size", [1, 10**8, *(model.parameters for model in published_models()), 10**13])
def test_every_size_has_peers_that_span_a_range(size: int) -> None:
    assert len({model.width_to_depth for model in published_peers(size)}) >= 2


def test_beyond_the_table_the_nearest_end_counts() -> None:
    assert published_peers(10**13) == published_peers(published_models()[-1].parameters)
