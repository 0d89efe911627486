"""Where a step fits, on the first screen."""

import msgspec
import pytest

from counting.analysis import Analysis, analyze
from counting.cost.run import RunPlan, plan_run
from counting.report import Results
from counting.setup import Setup
from counting.step.fit import Fit, Remedy
from tests.screens import printed, words
from torch_models.spec import Kernels


@pytest.fixture(scope="module")
def llama() -> Analysis:
    return analyze("llama_7b")


@pytest.fixture(scope="module")
def deepseek() -> Analysis:
    return analyze("deepseek_v3", Setup(sequence_length=4096))


def fit(
    gpu: str,
    capacity: int,
    *remedies: Remedy,
    needed: int = 100 * 2**30,
    context: int = 2**29,
    kernels: Kernels = "fused",
) -> Fit:
    return Fit(
        gpu=gpu,
        fits=needed <= capacity,
        kernels=kernels,
        allocated_bytes=needed - context,
        context_bytes=context,
        needed_bytes=needed,
        capacity_bytes=capacity,
        basis="allocated",
        remedies=remedies,
    )


FULL = Remedy(recompute="full", loss_chunk=None, needed_bytes=70 * 2**30)
BOTH = Remedy(recompute="full", loss_chunk=1024, needed_bytes=60 * 2**30)
FITS = (fit("Large", 140 * 2**30), fit("Middle", 80 * 2**30, FULL, BOTH), fit("Small", 64 * 2**30, BOTH, context=0))


def test_on_the_gpus_that_were_asked_about(llama: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    asked = msgspec.structs.replace(llama, fits=(*FITS, fit("Tiny", 2**30, context=0, kernels="eager")))
    lines = printed(capsys, Results(analyses=[asked])).splitlines()
    start = lines.index("Does a training step of llama_7b fit on one device? In GiB:")
    assert lines[start + 2 : start + 6] == [
        "  Large   100.0  140.0   40.0                          yes",
        "  Middle  100.0   80.0  -20.0          with recompute full        70.0",
        "  Small   100.0   64.0  -36.0  recompute full, chunk 1,024        60.0",
        "  Tiny    100.0    1.0  -99.0                           no",
    ]
    out = words("\n".join(lines))
    assert (
        "and the CUDA context where it is known: 0.5 GiB; left out: workspaces in kernels, the allocator's reserve"
        in out
    )
    assert "eager Tiny: PyTorch has no fused attention with grouped queries there" in out
    assert lines[4] == lines[start]


def test_on_the_catalogue(llama: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    out = words(printed(capsys, Results(analyses=[llama], on_catalogue=[(*FITS, fit("Tiny", 2**30))])))
    assert (
        "fits one Large as it is; with recompute full: Middle; with recompute full, loss chunk 1,024: Small; none of "
        "Tiny (tried: recompute, loss chunk 1,024)"
    ) in out
    out = words(printed(capsys, Results(analyses=[llama], on_catalogue=[(fit("Tiny", 2**30), fit("Less", 2**29))])))
    assert "fits one none: Tiny has 1.0 GiB (tried: recompute, loss chunk 1,024)" in out
    asked = msgspec.structs.replace(llama, fits=(fit("Own", 200 * 2**30), fit("Large", 140 * 2**30)))
    run = plan_run(llama, RunPlan(tokens=10**12, gpus=("H100",)))
    out = words(printed(capsys, Results(analyses=[asked], on_catalogue=[FITS], runs=[run])))
    assert "fits one Own, Large as it is; with recompute full: Middle" in out
    assert "fit on one device?" not in out


def test_of_several_models_in_short(llama: Analysis, deepseek: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    many = tuple(fit(f"G{index}", 200 * 2**30) for index in range(5))
    none = tuple(fit(f"G{index}", 2**30) for index in range(5))
    lines = printed(capsys, Results(analyses=[llama, deepseek], on_catalogue=[many, none])).splitlines()
    assert lines[10:16] == [
        "llama_7b: 32 layers, 2,048 tokens (from max_sequence_length)",
        "  6.74 B parameters; a token: forward 14.3, training 42.9 GFLOP",
        "  one layer 0.754 GB; a step 108.3 GB; fits G0, G1 and 3 more as it is",
        "deepseek_v3: 61 layers, 4,096 tokens (given)",
        "  671 B parameters, active 37.6 B; a token: forward 93.7, training 292 GFLOP",
        "  one layer 26.2 GB; a step 10,952 GB; fits none of 5 GPUs",
    ]
    asked = [msgspec.structs.replace(analysis, fits=FITS) for analysis in (llama, deepseek)]
    asked[1] = msgspec.structs.replace(deepseek, fits=(*none[:3], *many))
    lines = printed(capsys, Results(analyses=asked, on_catalogue=[many, none])).splitlines()
    said = words("\n".join(lines))
    assert "; fits Large yes, Middle with recompute full, Small recompute full, loss chunk 1,024" in said
    assert "; fits G0 yes, G1 yes, G2 yes and 5 more" in said
    checks = [len(analysis.agreement.checks) for analysis in (llama, deepseek)]
    assert f"proof {checks[0]} (llama_7b), {checks[1]} (deepseek_v3) numbers: measured =" in words("\n".join(lines))
