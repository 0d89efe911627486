"""Every family in one process, compiled, under autocast, with recompute and so on, against the plain module."""

import pytest
import torch

from tests.shrunken import FAMILIES
from tests.torch_models.ecosystem.comparison import assert_close, assert_equal, rows
from tests.torch_models.ecosystem.training_steps import STEPS, Way, batch, first_model, steps, train, train_plain

EXACT = {
    "recompute_full": Way(recompute="full"),
    "recompute_selective": Way(recompute="selective"),
    "initialized": Way(initialized=True),
}
CLOSE = {
    "eager_kernels": Way(kernels="eager"),
    "loss_chunk": Way(loss_chunk=7),
    "compiled": Way(backend="aot_eager"),
    "compiled-eager_kernels": Way(backend="aot_eager", kernels="eager"),
    "compiled-recompute_full": Way(backend="aot_eager", recompute="full"),
    "compiled-recompute_selective": Way(backend="aot_eager", recompute="selective"),
    "compiled-loss_chunk": Way(backend="aot_eager", loss_chunk=7),
}
IN_BF16 = {
    "compiled-bf16": Way(backend="aot_eager", dtype=torch.bfloat16),
    "compiled-autocast": Way(backend="aot_eager", autocast=True),
}


@pytest.mark.parametrize(("family", "way"), rows(EXACT))
def test_training_is_the_same_to_the_bit(family: str, way: Way) -> None:
    assert_equal(train(family, way), train_plain(family, way.in_one_process(), 1))


@pytest.mark.parametrize(("family", "way"), rows(CLOSE))
def test_training_is_the_same(family: str, way: Way) -> None:
    assert_close(train(family, way), train_plain(family, Way(), 1), 1e-5)


@pytest.mark.parametrize(("family", "way"), rows(IN_BF16))
def test_compiled_training_in_bf16_is_the_same(family: str, way: Way) -> None:
    assert_close(train(family, way), train_plain(family, way.in_one_process(), 1), 1e-2)


@pytest.mark.parametrize("family", FAMILIES)
def test_autocast_is_as_near_as_its_dtype(family: str) -> None:
    found, expected = train(family, Way(autocast=True)), train_plain(family, Way(), 1)
    torch.testing.assert_close(found.losses, expected.losses, rtol=1e-2, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_micro_batches_train_as_one_batch_does(family: str) -> None:
    """Not to the bit: the tokens are added up in another order."""
    model = first_model(family, Way())
    joined = [[tuple(map(torch.cat, zip(batch(step, 0), batch(step, 1), strict=True)))] for step in range(STEPS)]
    assert_close(steps(model, model, joined, Way()), train_plain(family, Way(), 2), 1e-5)
