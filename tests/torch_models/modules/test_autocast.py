"""Autocast and dtypes: experts in autocast's dtype, the router and the correction bias in fp32, norms as their input.

On CUDA, autocast also runs `rms_norm` in fp32. The tests imitate it where no CUDA device is needed for the question.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.shrunken import DEEPSEEK_V3, FAMILIES, GPT_OSS, MIXTRAL
from torch_models import build
from torch_models.builder import creating
from torch_models.fields.config import spec_from_fields
from torch_models.first_values import initialize
from torch_models.modules import moe
from torch_models.modules.autocast import cast_for_products
from torch_models.modules.layers import RMSNorm, apply_rotary
from torch_models.modules.moe import MixtureOfExperts, Router
from torch_models.spec import Kernels, MixtureOfExpertsSpec

KERNELS: list[Kernels] = ["fused", "eager"]
WITH_EXPERTS = [DEEPSEEK_V3, GPT_OSS, MIXTRAL]
BF16 = torch.bfloat16


def bf16_autocast() -> torch.autocast:
    return torch.autocast("cpu", dtype=BF16)


def experts_of(fields: dict[str, Any], dtype: torch.dtype) -> MixtureOfExperts:
    spec = spec_from_fields(fields, "s").layers[-1].feed_forward
    assert isinstance(spec, MixtureOfExpertsSpec)
    torch.manual_seed(0)
    with creating("cpu", dtype):
        module = MixtureOfExperts(spec)
    initialize(module, initializer_range=0.3)
    return module


def tokens(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 24, 64, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("weights", [torch.float32, BF16], ids=str)
@pytest.mark.parametrize("tokens_in", [torch.float32, BF16], ids=str)
@pytest.mark.parametrize("fields", WITH_EXPERTS, ids=lambda fields: fields["model_type"])
def test_experts_run_in_the_dtype_of_autocast(
    fields: dict[str, Any], tokens_in: torch.dtype, weights: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fp32 tokens for bf16 weights are what a norm returns under CUDA's autocast."""
    met: list[torch.dtype] = []
    product = moe.grouped_product

    def noted(rows: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
        met.extend((rows.dtype, matrices.dtype))
        return product(rows, matrices, ends)

    monkeypatch.setattr(moe, "grouped_product", noted)
    module = experts_of(fields, weights)
    with bf16_autocast():
        out = module(tokens(tokens_in))
    out.float().sum().backward()
    assert met == [BF16] * 4
    assert out.dtype == BF16
    assert {parameter.grad.dtype for parameter in module.parameters() if parameter.grad is not None} == {weights}
    assert all(parameter.grad is not None for parameter in module.experts.parameters())


def test_what_autocast_does_not_cast() -> None:
    """Torch does not cast fp64, and has no autocast for the meta device."""
    for given in (torch.ones(2, dtype=torch.float64), torch.ones(2, device="meta")):
        with bf16_autocast():
            assert cast_for_products(given) is given
    with bf16_autocast():
        assert torch.mm(torch.ones(2, 2).double(), torch.ones(2, 2).double()).dtype == torch.float64
        assert cast_for_products(tokens()).dtype == BF16


@pytest.mark.parametrize("fields", WITH_EXPERTS, ids=lambda fields: fields["model_type"])
def test_the_router_is_in_fp32_under_autocast(fields: dict[str, Any]) -> None:
    module = experts_of(fields, torch.float32)
    router = module.get_submodule(module.router_name)
    x_TD = tokens().flatten(0, 1)
    expected = router(x_TD)
    with bf16_autocast():
        weights_TK, experts_TK = router(x_TD)
    assert weights_TK.dtype == torch.float32
    assert torch.equal(weights_TK, expected[0])
    assert torch.equal(experts_TK, expected[1])


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("offset", [False, True], ids=["factor", "unit-offset"])
@pytest.mark.parametrize("weight", [torch.float32, BF16], ids=str)
@pytest.mark.parametrize("x", [torch.float32, BF16], ids=str)
def test_a_norm_returns_the_dtype_of_its_input(
    x: torch.dtype, weight: torch.dtype, offset: bool, kernels: Kernels
) -> None:
    with creating("cpu", weight):
        norm = RMSNorm(64, 1e-6, kernels, unit_offset=offset)
    given = tokens(x)
    expected = given.float() * torch.rsqrt(given.float().square().mean(-1, keepdim=True) + 1e-6)
    for context in (torch.autocast("cpu", enabled=False), bf16_autocast()):
        with context:
            out = norm(given)
        assert out.dtype == x
        torch.testing.assert_close(out.float(), expected, rtol=1e-2, atol=1e-2)


def test_a_norm_returns_the_dtype_of_its_input_where_autocast_runs_it_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    original = F.rms_norm

    def as_on_cuda(x: Tensor, shape: Any, weight: Tensor, eps: float) -> Tensor:
        return original(x.float(), shape, weight.float(), eps)

    monkeypatch.setattr(F, "rms_norm", as_on_cuda)
    norm = RMSNorm(64, 1e-6, "fused")
    assert norm(tokens(BF16)).dtype == BF16
    model = build(spec_from_fields(DEEPSEEK_V3, "s"), dtype=BF16)
    with bf16_autocast():
        model(torch.zeros(1, 8, dtype=torch.long)).sum().backward()


def test_rotation_keeps_the_dtype() -> None:
    tables = (torch.rand(24, 8), torch.rand(24, 8))
    assert apply_rotary(torch.rand(2, 24, 4, 16, dtype=BF16), tables, interleaved=False).dtype == BF16


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("weights", [torch.float32, BF16], ids=str)
@pytest.mark.parametrize("fields", FAMILIES.values(), ids=FAMILIES.keys())
def test_every_family_trains_under_autocast(fields: dict[str, Any], weights: torch.dtype, kernels: Kernels) -> None:
    torch.manual_seed(0)
    if "index_topk" in fields:
        fields = fields | {"index_topk": 24}  # rounding would choose other keys
    if "top_k_experts" in fields:  # the norm after Gemma-4's experts enlarges what another choice of experts changes
        fields = fields | {"top_k_experts": fields["num_experts"]}
    model = build(spec_from_fields(fields, "s"), dtype=weights, kernels=kernels)
    ids = torch.randint(0, 96, (2, 24), generator=torch.Generator().manual_seed(1))
    expected = model(ids).float()
    with bf16_autocast():
        logits = model(ids)
    logits.float().square().mean().backward()
    torch.testing.assert_close(logits.float(), expected, rtol=0.1, atol=0.1 * float(expected.detach().abs().max()))
    for name, parameter in model.named_parameters():
        if ".indexer." in name:
            assert parameter.grad is None, name
            continue
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == weights
        assert parameter.grad.isfinite().all(), name


CONVERSIONS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "to-bf16": lambda module: module.to(BF16),
    "half": lambda module: module.half(),
    "double": lambda module: module.double(),
}


@pytest.mark.parametrize("convert", CONVERSIONS.values(), ids=CONVERSIONS.keys())
def test_a_conversion_leaves_the_correction_bias_as_it_is(convert: Callable[[nn.Module], nn.Module]) -> None:
    model = build(spec_from_fields(DEEPSEEK_V3, "s"))
    routers = [module for module in model.modules() if isinstance(module, Router)]
    generator = torch.Generator().manual_seed(0)
    before = [router.e_score_correction_bias.normal_(generator=generator).clone() for router in routers]
    convert(model)
    for router, bias in zip(routers, before, strict=True):
        assert router.weight.dtype != torch.float32
        assert router.e_score_correction_bias.dtype == torch.float32
        assert torch.equal(router.e_score_correction_bias, bias)
        assert router.state_dict()["e_score_correction_bias"] is not None


@pytest.mark.parametrize("assign", [False, True])
def test_a_correction_bias_that_is_loaded_is_in_fp32(assign: bool) -> None:
    state = {name: tensor.bfloat16() for name, tensor in build(FAMILIES["deepseek_v3"], seed=1).state_dict().items()}
    model = build(FAMILIES["deepseek_v3"], device="meta" if assign else "cpu", dtype=torch.bfloat16)
    model.load_state_dict(state, assign=assign)
    assert {buffer.dtype for buffer in model.buffers()} == {torch.float32}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_moves_between_devices_move_the_correction_bias() -> None:
    model = build(spec_from_fields(DEEPSEEK_V3, "s")).to("meta", BF16)
    (bias,) = {(buffer.device.type, buffer.dtype) for buffer in model.buffers()}
    assert bias == ("meta", torch.float32)
    model.to_empty(device="cpu")
    (bias,) = {(buffer.device.type, buffer.dtype) for buffer in model.buffers()}
    assert bias == ("cpu", torch.float32)
