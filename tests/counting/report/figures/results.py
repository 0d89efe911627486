"""Results of small models, made once, of which figures are drawn."""

from functools import cache
from typing import Any

import msgspec

from counting.analysis import Analysis, analyze
from counting.cost.budget import plan_budget
from counting.cost.budget_on_model import spend_on
from counting.cost.comparison import compare
from counting.cost.fit.result import (
    FittedLaw,
    FittedRun,
    IsoflopBudget,
    IsoflopFit,
    PowerLaw,
)
from counting.cost.fits import fits_on
from counting.cost.hardware import find_gpu
from counting.cost.run import RunPlan, plan_run
from counting.cost.scaling_laws import LAWS, Constant, ScalingLaw
from counting.report.results import Fitted, Results
from counting.setup import Setup
from tests.shrunken import FAMILIES
from torch_models.fields.config import spec_from_fields
from torch_models.layout import Layout


@cache
def analysis_of(family: str, name: str, **settings: Any) -> Analysis:
    spec = spec_from_fields(FAMILIES[family] | {"num_hidden_layers": 3}, name)
    return analyze(spec, Setup(sequence_length=32, micro_batches=2, clip_gradients=True), **settings)


def dense() -> Analysis:
    """With its step over time, beside a GPU whose memory is a little more than it needs, and one with far more."""
    analysis = analysis_of("llama", "dense", timeline=True)
    assert analysis.memory is not None
    gpu = find_gpu("H100")
    near = msgspec.structs.replace(
        fits_on(analysis, [gpu])[0], gpu="Near", capacity_bytes=analysis.memory.peak_bytes * 5 // 4
    )
    return msgspec.structs.replace(analysis, fits=(near, *fits_on(analysis, [gpu])))


def routed() -> Analysis:
    """A mixture of experts with multi-token prediction."""
    return analysis_of("deepseek_v3", "routed")


def sparse() -> Analysis:
    """With an indexer."""
    return analysis_of("glm_moe_dsa", "sparse")


@cache
def spread(reserved: bool = False, **axes: Any) -> Analysis:
    spec = spec_from_fields(FAMILIES["llama"] | {"num_hidden_layers": 4}, "dense")
    return analyze(spec, Setup(sequence_length=32, micro_batches=2), layout=Layout(**axes), reserved=reserved)


@cache
def results_of(kind: str) -> Results | Fitted:
    """Results that have a figure of this kind."""
    if kind == "fit":
        return Fitted(output="law.json", fitted=fitted_law())
    if kind == "ranks":
        return Results(analyses=[spread(fsdp=2, tp=2, reserved=True), spread(fsdp=2, pp=2)])
    models = [dense(), routed()]
    if kind in ("parameters", "flops"):
        return Results(analyses=models)
    if kind == "memory":
        return Results(analyses=models[:1])
    if kind == "bill":
        plan = RunPlan(tokens=10**9, gpus=("H100", "A100"), num_gpus=8)
        return Results(analyses=models, runs=[plan_run(model, plan) for model in models])
    if kind == "comparison":
        return Results(analyses=models, comparison=compare(models, RunPlan(tokens=10**9, gpus=("H100",))))
    budget = plan_budget(5e6, gpus=["H100"], scaling_law=law_with_draws())
    return Results(budget=budget, analyses=models, spent=[spend_on(model, budget) for model in models])


def law_with_draws() -> ScalingLaw:
    """A law whose resamples differ from it by up to 2 percent."""
    law = next(law for law in LAWS if law.name == "besiroglu-2024")
    constants = (
        law.irreducible_loss.value,
        law.parameter_coefficient.value,
        law.token_coefficient.value,
        law.parameter_exponent.value,
        law.token_exponent.value,
    )
    draws = tuple((*constants[:3], constants[3] * (1 + 0.0005 * step), constants[4]) for step in range(-40, 41))
    return msgspec.structs.replace(law, name="ours", bootstrap=draws)


def fitted_law() -> FittedLaw:
    """Six runs at two budgets, and one at a budget of its own."""
    places = [(n, c) for c in (1e19, 1e20) for n in (1e8, 3e8, 1e9)] + [(5e8, 6e20)]
    runs = tuple(
        FittedRun(
            line=2 + number,
            parameters=n,
            tokens=c / 6 / n,
            training_flops=c,
            loss=3.0 - 0.1 * number,
            predicted_loss=2.9 - 0.1 * number,
            residual=0.001 * (number - 3),
        )
        for number, (n, c) in enumerate(places)
    )
    power = PowerLaw(coefficient=Constant(value=1.0), exponent=Constant(value=0.5))
    budgets = tuple(
        IsoflopBudget(
            training_flops=c, lines=lines, parabola=None, parameters=None, tokens=None, loss=None, left_out="a test"
        )
        for c, lines in ((1e19, (2, 3, 4)), (1e20, (5, 6, 7)))
    )
    return FittedLaw(
        law=law_with_draws(),
        runs=runs,
        derived=None,
        columns={},
        objective=0.1,
        starts=1,
        at_best=1,
        minima=1,
        resamples=0,
        undecided_terms=(),
        flops_per_parameter_and_token=6,
        resamples_at_bound=0,
        seed=0,
        check=None,
        parameters_power=power,
        tokens_power=power,
        isoflop=IsoflopFit(budgets=budgets, parameters_power=power, tokens_power=power, bootstrap=()),
        isoflop_left_out=None,
        optima=(),
        median_residual=0.002,
        warnings=(),
    )
