"""The cost of one layout among many: equal to that of its whole profile, and fast."""

import random
import subprocess
import sys
import time

import pytest
from msgspec import structs

from counting.formulas.layouts import rank_cost, ranks_by_formula
from counting.ranks.result import rank_classes
from counting.ranks.shallow import shallow
from tests.counting.formulas.layouts.cases import DEEPSEEK, LLAMA, layout_of, random_setup, setup_of, traffic_of
from torch_models.layout import Layout

LAYOUTS_A_SECOND = 1500
# What this machine does in a second of a loop that depends on nothing of ours; one that does 1,500 layouts a second of
# the larger model does about this many.
LOOPS_A_SECOND = 12_000_000


def axes(spec: object, *, with_cp: bool = False) -> list[Layout]:
    """Layouts that divide either model."""
    divided = [(tp, 1, 1) for tp in (1, 2, 8)] + ([(1, 1, ep) for ep in (8, 64)] if spec is DEEPSEEK else [])
    divided += [(tp, cp, 1) for tp in (1, 2) for cp in (2, 8)] if with_cp else []
    return [
        layout_of(dp=dp, fsdp=fsdp, tp=tp, cp=cp, ep=ep, zero=zero, grouping=grouping)
        for dp in (1, 4)
        for fsdp in (64, 100 * 64, 2048)
        for tp, cp, ep in divided
        for zero in (2, 3)
        for grouping in ("layers", "torchtitan")
    ]


@pytest.mark.parametrize("spec", [LLAMA, DEEPSEEK], ids=["llama_3_8b", "deepseek_v3"])
def test_equal_to_the_profile(spec: object) -> None:
    assert isinstance(spec, type(LLAMA))
    pick = random.Random(0)
    for layout in axes(spec)[::5]:
        setup = random_setup(pick, spec, [64, 128])
        profile = ranks_by_formula(spec, setup, layout)
        cost = rank_cost(spec, setup, layout)
        assert cost.peak_bytes == rank_classes(shallow(spec), setup, profile, "formula")[0].memory.peak_bytes
        assert cost.traffic == traffic_of(spec, setup, profile)


@pytest.mark.parametrize("spec", [LLAMA, DEEPSEEK], ids=["llama_3_8b", "deepseek_v3"])
def test_equal_to_the_profile_of_the_worst_rank_of_cp(spec: object) -> None:
    assert isinstance(spec, type(LLAMA))
    pick = random.Random(0)
    for layout in [layout_of(fsdp=fsdp, cp=cp, tp=tp) for fsdp in (1, 64) for cp in (2, 3, 8) for tp in (1, 2)]:
        setup = structs.replace(random_setup(pick, spec, [64 * layout.cp]), kernels="fused")
        profile = ranks_by_formula(spec, setup, layout)
        cost = rank_cost(spec, setup, layout)
        assert cost.peak_bytes == rank_classes(shallow(spec), setup, profile, "formula")[0].memory.peak_bytes
        assert cost.traffic == traffic_of(spec, setup, profile)


def test_torch_is_not_imported() -> None:
    code = "import sys, counting.formulas.layouts; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("spec", [LLAMA, DEEPSEEK], ids=["llama_3_8b", "deepseek_v3"])
def test_layouts_a_second(spec: object) -> None:
    """1,500 a second on one core, after the passes of each way to divide the model were simulated once.

    The rate is that of a machine which is not busy: it is held against a loop that runs before and after, and the best
    of three attempts counts.
    """
    assert isinstance(spec, type(LLAMA))
    layouts, setup = axes(spec, with_cp=True), setup_of(spec, sequence_length=4096, recompute="full")
    for layout in layouts:
        rank_cost(spec, setup, layout)

    def attempt() -> float:
        before = loops_a_second()
        start = time.process_time()
        for layout in layouts:
            rank_cost(spec, setup, layout)
        rate = len(layouts) / (time.process_time() - start)
        return rate / (min(before, loops_a_second()) / LOOPS_A_SECOND)

    assert max(attempt() for _ in range(3)) >= LAYOUTS_A_SECOND


def loops_a_second() -> float:
    """How often this machine adds a number, a second of processor time."""
    start, total = time.process_time(), 0
    for number in range(200_000):
        total += number
    return 200_000 / (time.process_time() - start)
