"""Every family in one process, compiled, under autocast, with recompute and so on, against the plain module."""

import os
import shutil

import pytest
import torch
from torch import Tensor

from tests.shrunken import REPRESENTATIVE
from tests.torch_models.ecosystem.comparison import assert_close, assert_equal, rows
from tests.torch_models.ecosystem.training_steps import (
    STEPS,
    Way,
    batch,
    first_model,
    steps,
    train,
    train_plain,
)

COMPILER = shutil.which(os.environ.get("CXX", "c++"))

EXACT = {
    "recompute_full": (Way(recompute="full"), REPRESENTATIVE),
    "recompute_selective": (Way(recompute="selective"), REPRESENTATIVE),
    "recompute_per_op": (Way(recompute="per_op"), REPRESENTATIVE),
    "recompute_every_second_layer": (Way(recompute=2), ["smollm"]),
    "initialized": (Way(initialized=True), REPRESENTATIVE),
    "compiled": (Way(backend="aot_eager"), ["llama", "deepseek_v3"]),
    "compiled-eager_kernels": (Way(backend="aot_eager", kernels="eager"), ()),
    "compiled-recompute_full": (Way(backend="aot_eager", recompute="full"), ["gpt_oss"]),
    "compiled-recompute_selective": (Way(backend="aot_eager", recompute="selective"), ["gemma2"]),
    "compiled-recompute_per_op": (Way(backend="aot_eager", recompute="per_op"), ["deepseek_v3"]),
    "compiled-loss_chunk": (Way(backend="aot_eager", loss_chunk=7), ["smollm"]),
    "compiled-bf16": (Way(backend="aot_eager", dtype=torch.bfloat16), ["mixtral"]),
}
COMPILED_AUTOCAST = {"compiled-autocast": (Way(backend="aot_eager", autocast=True), ["mixtral"])}
CLOSE = {
    "eager_kernels": (Way(kernels="eager"), REPRESENTATIVE),
    "loss_chunk": (Way(loss_chunk=7), REPRESENTATIVE),
}
AUTOCAST = {"autocast": (Way(autocast=True, continuous=True), REPRESENTATIVE)}
MICRO_BATCHES = {"micro_batches": (Way(), REPRESENTATIVE)}
INDUCTOR = {
    "inductor": Way(backend="inductor"),
    "inductor-bf16": Way(backend="inductor", dtype=torch.bfloat16, continuous=True),
    "inductor-autocast": Way(backend="inductor", autocast=True, continuous=True),
}


@pytest.mark.parametrize(("family", "way"), rows(EXACT))
def test_training_is_the_same_to_the_bit(family: str, way: Way) -> None:
    assert_equal(train(family, way), train_plain(family, way.in_one_process(), 1))


@pytest.mark.parametrize(("family", "way"), rows(CLOSE))
def test_training_is_the_same(family: str, way: Way) -> None:
    """Not to the bit: the profiles round in other places, and the chunks of a loss are added up in another order."""
    assert_close(train(family, way), train_plain(family, Way(), 1), 5e-6)


@pytest.mark.parametrize(("family", "way"), rows(AUTOCAST))
def test_autocast_is_as_near_as_its_dtype(family: str, way: Way) -> None:
    found, expected = train(family, way), train_plain(family, Way(continuous=True), 1)
    torch.testing.assert_close(found.losses, expected.losses, rtol=5e-3, atol=0)
    assert_close(found, expected, 0.1)


@pytest.mark.parametrize(("family", "way"), rows(COMPILED_AUTOCAST))
def test_autocast_is_compiled(family: str, way: Way) -> None:
    """Not to the bit: torch compiles the backward of the router's fp32 products under autocast, as the forward of all.

    Besides, what is used twice has the sum of its gradients rounded to bf16 only where it is not compiled.
    """
    assert_close(train(family, way), train_plain(family, way.in_one_process(), 1), 2e-2)


@pytest.mark.parametrize(("family", "way"), rows(MICRO_BATCHES))
def test_micro_batches_train_as_one_batch_does(family: str, way: Way) -> None:
    """Not to the bit: the tokens are added up in another order."""
    model = first_model(family, way)
    joined = [[both(step)] for step in range(STEPS)]
    assert_close(steps(model, model, joined, way), train_plain(family, way, 2), 5e-6)


def both(step: int) -> tuple[Tensor, Tensor]:
    (tokens, labels), (more_tokens, more_labels) = batch(step, 0), batch(step, 1)
    return torch.cat((tokens, more_tokens)), torch.cat((labels, more_labels))


@pytest.mark.sweep
@pytest.mark.skipif(not COMPILER, reason="torch.compile needs a C++ compiler on CPU")
@pytest.mark.parametrize("way", INDUCTOR.values(), ids=INDUCTOR.keys())
@pytest.mark.parametrize("family", ["gemma2", "gpt_oss", "deepseek_v3"])
def test_compiled_code_trains_the_same(family: str, way: Way) -> None:
    """Not to the bit: the compiled code fuses operations, and rounds to bf16 where it stores."""
    tolerance = 5e-6 if way == INDUCTOR["inductor"] else 0.1
    assert_close(train(family, way), train_plain(family, way.in_one_process(), 1), tolerance)
