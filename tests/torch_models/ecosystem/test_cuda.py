"""On a CUDA device: every family in bf16, against the plain module on the same device, and that against the CPU.

Kernels there add in no fixed order, so nothing is compared to the bit; every expert is chosen, so that no rounding
changes the choice.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.torch_models.ecosystem.comparison import assert_close, rows
from tests.torch_models.ecosystem.training_steps import Trained, Way, train, train_plain

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    # torch.compile looks at the inputs of a module, and hides this warning, but not where it is an error.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]


def cuda(**options: Any) -> tuple[Way, Iterable[str]]:
    return Way(device="cuda", continuous=True, **options), ()


BF16 = torch.bfloat16
IN_BF16 = {
    "plain": cuda(dtype=BF16),
    "compiled": cuda(dtype=BF16, backend="inductor"),
    "recompute_full": cuda(dtype=BF16, recompute="full"),
    "recompute_selective": cuda(dtype=BF16, recompute="selective"),
    "recompute_per_op": cuda(dtype=BF16, recompute="per_op"),
    "compiled-recompute_per_op": cuda(dtype=BF16, backend="inductor", recompute="per_op"),
    "loss_chunk": cuda(dtype=BF16, loss_chunk=7),
    "ddp": cuda(dtype=BF16, wrapper="ddp"),
    "fsdp": cuda(dtype=BF16, wrapper="fsdp"),
    "fsdp-compiled": cuda(dtype=BF16, wrapper="fsdp", backend="inductor"),
}
ROUNDED = {  # fp32 weights, of which products take bf16
    "autocast": cuda(autocast=True),
    "autocast-compiled": cuda(autocast=True, backend="inductor"),
    "fsdp-mixed_precision": cuda(wrapper="fsdp", mixed_precision=True),
}
INITIALIZED = {
    "initialized": cuda(initialized=True),
    "fsdp-initialized": cuda(wrapper="fsdp", initialized=True),
}


@pytest.fixture(scope="module", autouse=True)
def one_rank() -> Iterator[None]:
    """A process group of this process alone, for DDP and fully_shard."""
    dist.init_process_group("cpu:gloo,cuda:nccl", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def on_cpu(trained: Trained) -> Trained:
    return Trained(
        [loss.cpu() for loss in trained.losses],
        {name: gradient.cpu().float() for name, gradient in trained.gradients.items()},
        {name: weight.cpu().float() for name, weight in trained.weights.items()},
    )


@pytest.mark.parametrize(("family", "way"), rows(IN_BF16))
def test_bf16_on_cuda_is_that_on_cpu(family: str, way: Way) -> None:
    plain = Way(dtype=torch.bfloat16, continuous=True)
    assert_close(on_cpu(train(family, way)), on_cpu(train_plain(family, plain, 1)), 0.1)


@pytest.mark.parametrize(("family", "way"), rows(ROUNDED))
def test_products_in_bf16_on_cuda_are_as_near_as_their_dtype(family: str, way: Way) -> None:
    assert_close(on_cpu(train(family, way)), train_plain(family, Way(continuous=True), 1), 0.1)


@pytest.mark.parametrize(("family", "way"), rows(INITIALIZED))
def test_first_values_on_cuda_are_those_of_the_cpu(family: str, way: Way) -> None:
    assert_close(on_cpu(train(family, way)), train_plain(family, Way(continuous=True, initialized=True), 1), 1e-3)
