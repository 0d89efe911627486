"""Private interfaces of torch that `torch_models.parallel` uses: the test fails when a public one can replace it."""

import pytest
import torch.distributed as dist
from torch import nn
from torch.distributed import tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.experimental import _attention as ring
from torch.distributed.tensor.parallel import ParallelStyle

PRIVATE = [
    (ParallelStyle, "_apply", "apply"),
    (DeviceMesh, "_unflatten", "unflatten"),
    (tensor.placement_types, "_StridedShard", "StridedShard"),
    (tensor, "_StridedShard", "StridedShard"),
    (dist, "_functional_collectives", "functional_collectives"),
    (ring, "_enable_context_parallel_dispatcher", "enable_context_parallel_dispatcher"),
    (ring, "_disable_context_parallel_dispatcher", "disable_context_parallel_dispatcher"),
    (ring, "_cp_options", "cp_options"),
    (ring, "_RotateMethod", "RotateMethod"),
]


@pytest.mark.parametrize(
    ("owner", "private", "public"), PRIVATE, ids=[f"{each[0].__name__}-{each[1]}" for each in PRIVATE]
)
def test_there_is_no_public_one(owner: object, private: str, public: str) -> None:
    assert hasattr(owner, private)
    assert not hasattr(owner, public)


def test_a_plain_tensor_is_no_parameter_of_a_module() -> None:
    module = nn.Linear(2, 2)
    with pytest.raises(TypeError, match="cannot assign"):
        module.weight = module.weight.detach()  # type: ignore[assignment]
