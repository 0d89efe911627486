"""Every kind of layer under `torch.compile(fullgraph=True)`: one graph, the gradients of eager, no recompilation."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.shrunken import DEEPSEEK_V3, FAMILIES, GEMMA2, GEMMA4, GPT_OSS, LLAMA4
from torch_models import set_recompute
from torch_models.builder import creating
from torch_models.fields.config import spec_from_fields
from torch_models.first_values import initialize
from torch_models.modules.decoder import DecoderLayer
from torch_models.modules.layers import RotaryTables, rotary_tables
from torch_models.spec import Kernels, LayerSpec, Recompute

LENGTH = 24
KERNELS: list[Kernels] = ["fused", "eager"]
RECOMPUTES: list[Recompute] = ["none", "selective", "per_op", "full"]
KINDS = {
    f"{family}-{spec.kind}": spec
    for family, fields in FAMILIES.items()
    for spec in spec_from_fields(fields, family).layers
}
# One layer for each module and op, run in every `make test`; the others in sweeps.
FEW = {
    "gpt_oss": spec_from_fields(GPT_OSS, "gpt_oss").layers[0],  # windows, sinks, experts with biases
    "gemma2": spec_from_fields(GEMMA2, "gemma2").layers[0],  # caps, four norms with offsets
    "gemma4": spec_from_fields(GEMMA4, "gemma4").layers[-1],  # experts beside an MLP, keys as values
    "llama4-chunks": spec_from_fields(LLAMA4, "llama4").layers[2],  # chunks, norms after the rotation
    "llama4-temperature": spec_from_fields(LLAMA4, "llama4").layers[3],  # queries by position, weighted inputs
    "deepseek_v3": spec_from_fields(DEEPSEEK_V3, "deepseek_v3").layers[-1],  # latent attention, groups of experts
}


def layer_and_tables(spec: LayerSpec, kernels: Kernels, dtype: torch.dtype) -> tuple[nn.Module, RotaryTables]:
    torch.manual_seed(0)
    with creating("cpu", dtype):
        layer = DecoderLayer(spec, kernels)
    initialize(layer, initializer_range=0.1)
    return layer, rotary_tables(spec.attention.rotary, LENGTH, torch.device("cpu"), dtype)


def step(layer: nn.Module, tables: RotaryTables, seed: int, *, autocast: bool = False) -> list[Tensor]:
    """The output and all gradients of one step on random tokens."""
    weights = list(layer.parameters())
    x = torch.randn(2, LENGTH, 64, generator=torch.Generator().manual_seed(seed)).to(weights[0].dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        out = layer(x, tables)
    return [out.detach(), *torch.autograd.grad(out.float().square().mean(), (x, *weights))]


def compare(layer: nn.Module, tables: RotaryTables, backend: str = "aot_eager", *, autocast: bool = False) -> None:
    """Three steps on different tokens, of which only the first may compile.

    Without autocast and generated code, compiled operations are those of eager, to the bit.
    """
    torch._dynamo.reset()
    # Generated code rounds where eager does: else a token whose scores are nearly equal takes another expert.
    options = {"emulate_precision_casts": True} if backend == "inductor" else None
    compiled: Any = torch.compile(layer, backend=backend, fullgraph=True, options=options)
    dtype = next(layer.parameters()).dtype
    exact = backend == "aot_eager" and not autocast
    tolerance = 3e-2 if autocast or dtype.itemsize == 2 else 1e-4
    for seed, stance in enumerate(("default", "fail_on_recompile", "fail_on_recompile")):
        with torch.compiler.set_stance(stance):
            got = step(compiled, tables, seed, autocast=autocast)
        for ours, expected in zip(got, step(layer, tables, seed, autocast=autocast), strict=True):
            assert ours.dtype == expected.dtype
            scale = float(expected.abs().max()) or 1.0
            torch.testing.assert_close(ours / scale, expected / scale, rtol=0, atol=0 if exact else tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("spec", FEW.values(), ids=FEW.keys())
def test_a_layer_compiles_to_one_graph(spec: LayerSpec, dtype: torch.dtype) -> None:
    compare(*layer_and_tables(spec, "fused", dtype))


@pytest.mark.sweep
@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("spec", KINDS.values(), ids=KINDS.keys())
def test_every_layer_compiles_to_one_graph(spec: LayerSpec, dtype: torch.dtype, kernels: Kernels) -> None:
    compare(*layer_and_tables(spec, kernels, dtype))


@pytest.mark.parametrize("recompute", RECOMPUTES[1:])
def test_a_layer_that_runs_again_in_backward_compiles(recompute: Recompute) -> None:
    layer, tables = layer_and_tables(FEW["gpt_oss"], "fused", torch.float32)
    set_recompute(layer, recompute)
    compare(layer, tables)


@pytest.mark.sweep
@pytest.mark.parametrize("recompute", RECOMPUTES)
@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("spec", FEW.values(), ids=FEW.keys())
def test_every_recompute_compiles(spec: LayerSpec, kernels: Kernels, recompute: Recompute) -> None:
    layer, tables = layer_and_tables(spec, kernels, torch.bfloat16)
    set_recompute(layer, recompute)
    compare(layer, tables)


@pytest.mark.parametrize("spec", [FEW["gpt_oss"]], ids=["gpt_oss"])
def test_autocast_compiles(spec: LayerSpec) -> None:
    layer, tables = layer_and_tables(spec, "fused", torch.float32)
    compare(layer, tables, autocast=True)


@pytest.mark.sweep
@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("spec", KINDS.values(), ids=KINDS.keys())
def test_autocast_of_every_layer_compiles(spec: LayerSpec, kernels: Kernels) -> None:
    layer, tables = layer_and_tables(spec, kernels, torch.float32)
    compare(layer, tables, autocast=True)


@pytest.mark.sweep
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")  # torch's own import
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("spec", FEW.values(), ids=FEW.keys())
def test_generated_code_computes_the_same(spec: LayerSpec, dtype: torch.dtype) -> None:
    compare(*layer_and_tables(spec, "fused", dtype), backend="inductor")
