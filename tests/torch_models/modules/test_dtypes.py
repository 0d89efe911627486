"""Every family in every dtype that `build` accepts, on meta and on real tensors."""

from typing import Any

import pytest
import torch

from tests.shrunken import FAMILIES
from torch_models import build
from torch_models.builder import DTYPES
from torch_models.fields.config import spec_from_fields
from torch_models.spec import Kernels

KERNELS: list[Kernels] = ["fused", "eager"]


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fields", FAMILIES.values(), ids=FAMILIES.keys())
def test_forward_and_backward_in_every_dtype(fields: dict[str, Any], dtype: torch.dtype, kernels: Kernels) -> None:
    for device in ("meta", "cpu"):
        model = build(spec_from_fields(fields, "s"), dtype=dtype, device=device, kernels=kernels)
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
