"""Results of every kind, of a small model, from which pages are made."""

import msgspec

from counting.analysis import Analysis, analyze
from counting.cost.budget import plan_budget
from counting.cost.budget_on_model import spend_on
from counting.cost.comparison import compare
from counting.cost.design import design_for_budget
from counting.cost.fits import fits_on
from counting.cost.hardware import find_gpu
from counting.cost.run import RunPlan, plan_run
from counting.published.claim import examine_claim
from counting.published.runs import examine, load_published_runs
from counting.report import Results
from counting.report.page import Making, html_page
from counting.setup import Setup
from tests.counting.times import TIME
from tests.shrunken import DEEPSEEK_V3, LLAMA
from torch_models.layout import Layout

MAKING = Making(command="python3 costs.py --model_config small", plan={"model_config": ["small"]}, program="costs 1.0")
RUN = RunPlan(tokens=10**9, gpus=("H100", "B200"), num_gpus=2)


def named(analysis: Analysis, name: str) -> Analysis:
    return msgspec.structs.replace(analysis, name=name)


def every_kind() -> dict[str, Results]:
    """Results by what they are of."""
    small = named(analyze(LLAMA, Setup(sequence_length=16)), "small")
    timed = msgspec.structs.replace(small, step_time=(TIME,), fits=fits_on(small, [find_gpu("H100")]))
    mixed = named(analyze(DEEPSEEK_V3, Setup(sequence_length=16, micro_batches=2, recompute="full")), "mixed")
    spread = named(
        analyze(LLAMA, Setup(sequence_length=64), layout=Layout(num_gpus=4, fsdp=2, tp=2), reserved=True), "spread"
    )
    budget = plan_budget(1e4, num_gpus=8)
    return {
        "model": Results(analyses=[timed], runs=[plan_run(small, RUN)]),
        "two models": Results(analyses=[timed, mixed], warnings=["mixed is small"]),
        "ranks": Results(analyses=[spread]),
        "comparison": Results(
            analyses=[small, mixed], comparison=compare([small, mixed], RunPlan(tokens=10**9, gpus=("H100",)))
        ),
        "budget": Results(
            analyses=[mixed], budget=budget, spent=[spend_on(mixed, budget)], design=design_for_budget(budget, "mine")
        ),
        "published": Results(published=[examine(run) for run in load_published_runs()[::4]]),
        "claim": Results(claim=examine_claim()),
    }


def page_of(results: Results) -> str:
    return html_page(results, "mine.json", MAKING)
