"""Torch's own `FlopCounterMode` on the modules, with `torch_models` alone imported, against the counts of this project.

What a device runs differs in one thing: `scaled_dot_product_attention` without a fused kernel for the device multiplies
matrices one by one, and its backward pass does not compute the scores again. Fused kernels do, as torch counts them.
"""

import json
import subprocess
import sys
from functools import cache

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from counting.measurements.meta_device import measuring
from counting.measurements.ops.formulas import op_flops
from tests.shrunken import FAMILIES, REPRESENTATIVE
from tests.witnesses import derived
from torch_models import build, set_recompute
from torch_models.fields.config import spec_from_fields
from torch_models.modules.language_model import CausalLM
from torch_models.spec import GroupedQueryAttentionSpec, Kernels, Recompute

LENGTH = 24
RECOMPUTES: list[Recompute] = ["none", "selective", "full"]
DEVICES = ["cpu", "meta"]
PLACES: list[tuple[Kernels, str]] = [("fused", "cpu"), ("fused", "meta"), ("eager", "meta")]
FEW = [pytest.param(family, marks=[] if family in REPRESENTATIVE else pytest.mark.sweep) for family in FAMILIES]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

# Runs where nothing but torch_models is imported; prints the FLOPs of a step of every model.
ALONE = """
import json, sys, torch
from torch.utils.flop_counter import FlopCounterMode
from torch_models import build, set_recompute
counted = {}
for family, fields in json.loads(sys.stdin.read()).items():
    for kernels, devices in (("fused", ("cpu", "meta")), ("eager", ("meta",))):
        for device in devices:
            for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
                model = build(fields, device=device, dtype=dtype, kernels=kernels)
                set_recompute(model, "full" if name == "bf16" else "selective")
                with FlopCounterMode(display=False) as counter:
                    model(torch.zeros(1, 24, dtype=torch.long, device=device)).square().sum().backward()
                counted[f"{family} {kernels} {device} {name}"] = counter.get_total_flops()
assert "counting" not in sys.modules
print(json.dumps(counted))
"""


@pytest.fixture(scope="module")
def alone(request: pytest.FixtureRequest) -> dict[str, int]:
    """What the counter finds of each family that is tested in this run."""
    tested = {item.callspec.params["family"] for item in request.session.items if "alone" in item.fixturenames}  # type: ignore[attr-defined]
    done = subprocess.run(
        [sys.executable, "-c", ALONE],
        input=json.dumps({family: FAMILIES[family] for family in sorted(tested)}),
        capture_output=True,
        text=True,
        check=True,
        timeout=280,
    )
    counted: dict[str, int] = json.loads(done.stdout)
    return counted


class Dispatched(TorchDispatchMode):
    """The sum of this project's counts of all ops."""

    flops = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = function(*args, **(kwargs or {}))
        self.flops += op_flops(function, args, kwargs, out)
        return out


def step(model: CausalLM, device: str) -> None:
    model(torch.zeros(1, LENGTH, dtype=torch.long, device=device)).square().sum().backward()


@cache
def by_formula(family: str, kernels: Kernels, recompute: Recompute) -> int:
    """The FLOPs of a step by formula, with the kernels of CUDA."""
    spec = spec_from_fields(FAMILIES[family], family)
    flops = derived(spec, kernels=kernels, recompute=recompute, mtp=False).training_flops
    assert flops is not None
    return flops.hardware


def scores_not_computed_again(family: str, device: str) -> int:
    """Products of queries and keys that the backward pass of this device lacks, of all layers."""
    lacking = 0
    for layer in spec_from_fields(FAMILIES[family], family).layers:
        attention = layer.attention
        if isinstance(attention, GroupedQueryAttentionSpec):
            own_op = attention.needs_own_kernel
            has_kernel, channels = own_op or device == "cpu", attention.head_dim
        else:
            # Its values have other channels than its keys; where keys are chosen, an op of ours runs.
            has_kernel, channels = attention.indexer is not None, attention.qk_head_dim
        if not has_kernel:
            lacking += 2 * attention.num_attention_heads * LENGTH**2 * channels
    return lacking


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize(("kernels", "device"), PLACES)
@pytest.mark.parametrize("family", FEW)
def test_a_step_by_torchs_counter(family: str, kernels: Kernels, device: str, name: str, alone: dict[str, int]) -> None:
    lacking = scores_not_computed_again(family, device) if kernels == "fused" else 0
    recompute: Recompute = "full" if name == "bf16" else "selective"
    assert alone[f"{family} {kernels} {device} {name}"] == by_formula(family, kernels, recompute) - lacking


@pytest.mark.parametrize("recompute", RECOMPUTES)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("family", ["mistral", "gpt_oss", "deepseek_v3"])
def test_torchs_counter_is_our_dispatch(family: str, device: str, recompute: Recompute) -> None:
    spec = spec_from_fields(FAMILIES[family], family)
    for dtype in DTYPES.values():
        model = build(spec, device=device, dtype=dtype)
        set_recompute(model, recompute)
        with FlopCounterMode(display=False) as counter:
            step(model, device)
        with Dispatched() as ours:
            step(model, device)
        assert counter.get_total_flops() == ours.flops > 0


@pytest.mark.parametrize("recompute", RECOMPUTES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_with_the_kernels_of_cuda(family: str, recompute: Recompute) -> None:
    model = build(spec_from_fields(FAMILIES[family], family), device="meta", dtype=torch.bfloat16)
    set_recompute(model, recompute)
    with measuring(), FlopCounterMode(display=False) as counter:
        step(model, "meta")
    assert counter.get_total_flops() == by_formula(family, "fused", recompute)
