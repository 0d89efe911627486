"""Every strategy of SimuMax that the page on published figures lists can be typed, for each model that both have."""

import re
from pathlib import Path

import pytest
from msgspec import structs

from counting.command.arguments import layout_of, setup_of
from counting.command.flags import read_flags
from counting.formulas.megatron import megatron_classes
from counting.layout import data_ranks_of, resolve_layout
from counting.setup import Setup, resolve
from torch_models import read_spec
from torch_models.layout import Layout
from torch_models.spec import ModelSpec

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "published.md").read_text(encoding="utf-8")
COMMON = "--num_gpus 8 --seq_len 4096 --micro_batches 8"
STRATEGIES = re.findall(r"^\| (\w+mbs1\w*) \| `([^`]+)` \|$", PAGE, re.MULTILINE)
DENSE = ("llama_3_8b", "llama_3_70b", "llama_2_7b", "llama_2_13b", "llama_2_70b", "llama_33b")
EXPERTS = ("mixtral_8x7b", "deepseek_v2", "deepseek_v3", "kimi_k2")
MEASURED = re.findall(r"^\| ([a-z0-9, ]+) \| ([\d.]+) \| ([\d.]+) \| (-[\d.]+) % \|$", PAGE, re.MULTILINE)


def typed(model: str, flags: str) -> Layout:
    options = read_flags(f"--model_config {model} {flags}".split())
    layout, spec = layout_of(options, ()), read_spec(model)
    assert layout is not None
    return resolve_layout(layout, spec, resolve(setup_of(options), spec, data_ranks=data_ranks_of(layout)))


def test_all_strategies_are_there() -> None:
    assert f"`{COMMON}`" in PAGE
    assert len(STRATEGIES) == 10
    assert PAGE.count("_mbs1_selective_recompute |") == 2, "which are not typed, with the reason"


@pytest.mark.parametrize(("strategy", "flags"), STRATEGIES)
def test_a_strategy_is_what_its_name_says(strategy: str, flags: str) -> None:
    """Its name has the axes: dp is the number of ranks whose micro-batches differ, of which ep borrows."""
    axes = {axis: int(size) for axis, size in re.findall(r"(tp|pp|dp|ep)(\d+)", strategy)}
    for model in EXPERTS if "ep" in axes else (*DENSE, *EXPERTS):
        if "ep" not in axes and axes["tp"] > 1 and model in ("deepseek_v2", "deepseek_v3", "kimi_k2", "mixtral_8x7b"):
            continue  # not their strategies
        if model == "llama_33b" and axes.get("tp", 1) == 8:
            continue  # 52 heads
        layout = typed(model, f"{COMMON} {flags}")
        assert layout.num_gpus == 8
        assert (layout.tp, layout.pp, layout.ep) == (axes.get("tp", 1), axes.get("pp", 1), axes.get("ep", 1))
        assert layout.data_ranks == axes.get("dp", 2)
        assert layout.zero == 1 or layout.data_ranks == 1
        assert layout.schedule == ("interleaved" if "vp2" in strategy else "1f1b" if layout.pp > 1 else None)


@pytest.mark.parametrize("axes", ["tp=2,cp=4", "cp=8"])
@pytest.mark.parametrize("length", [32768, 131072])
@pytest.mark.parametrize("model", ["llama_3_70b", "llama_3_1_405b"])
def test_rows_with_context_parallelism(model: str, length: int, axes: str) -> None:
    layout = typed(model, f"--num_gpus 8 --seq_len {length} --micro_batches 4 --layout {axes}")
    assert layout.tp * layout.cp == layout.num_gpus == 8


def of_12_layers(model: str) -> ModelSpec:
    spec = read_spec(model)
    return structs.replace(spec, layer_runs=(structs.replace(spec.layer_runs[0], count=12),))


@pytest.mark.parametrize(("axes", "measured", "held", "apart"), MEASURED)
def test_measured_peaks(axes: str, measured: str, held: str, apart: str) -> None:
    sizes = {axis: int(size) for axis, size in (part.split() for part in axes.split(", "))}
    spec = of_12_layers("llama_3_70b")
    setup = resolve(Setup(sequence_length=4096, micro_batches=4), spec, data_ranks=sizes.get("fsdp", 1))
    given = Layout(framework="megatron", fsdp=sizes.get("fsdp", 1), tp=sizes.get("tp", 1), pp=sizes.get("pp", 1))
    classes = megatron_classes(spec, setup, resolve_layout(given, spec, setup))
    peak = max(each.memory.peak_bytes for each in classes) / 2**30
    assert f"{peak:.2f}" == held
    assert f"{100 * (peak / float(measured) - 1):.1f}" == apart


def test_every_measured_peak_is_there() -> None:
    assert len(MEASURED) == 4
