"""Every family in every dtype that `build` accepts, on meta and on real tensors."""

import pytest
import torch

from tests.shrunken import FAMILIES, shared_out
from torch_models import build
from torch_models.builder import DTYPES
from torch_models.fields.config import spec_from_fields
from torch_models.spec import Kernels

KERNELS: list[Kernels] = ["fused", "eager"]


WAYS = [(dtype, kernels) for dtype in DTYPES for kernels in KERNELS]


@pytest.mark.parametrize(("family", "way"), shared_out(WAYS, share=len(WAYS)), ids=str)
def test_forward_and_backward_in_every_dtype(family: str, way: tuple[torch.dtype, Kernels]) -> None:
    dtype, kernels = way
    for device in ("meta", "cpu"):
        model = build(spec_from_fields(FAMILIES[family], "s"), dtype=dtype, device=device, kernels=kernels)
        logits = model(torch.zeros(2, 8, dtype=torch.long, device=device))
        assert logits.dtype == dtype
        logits.float().square().mean().backward()
        for name, parameter in model.named_parameters():
            assert (parameter.grad is None) == (".indexer." in name), name
            assert parameter.grad is None or parameter.grad.dtype == dtype


def test_the_largest_model_runs_forward_on_meta_as_its_example_builds_it() -> None:
    model = build("deepseek_v3_config.json", device="meta")
    ids = torch.empty(1, 16, dtype=torch.long, device="meta")
    assert model(ids).shape == (1, 16, 129280)
