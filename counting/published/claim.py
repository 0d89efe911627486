"""The claim that DeepSeek-V3 was trained for $5.576 million, examined.

The published data (hours, tokens, price, costs that the bill leaves out) come from `configs/published_runs.json`, the
prices of other GPUs from the catalogue; everything else is computed. The dense models for comparison are Llama-style
designs of this project with the same total or active size; their FLOPs are measured.
"""

from fractions import Fraction
from math import ceil

import msgspec

from counting.analysis import analyze
from counting.cost.budget import HOURS_PER_DAY, exactly
from counting.cost.conventions import training_flops_per_token
from counting.cost.design import design_model
from counting.cost.hardware import find_gpu
from counting.cost.run import gpu_hours
from counting.published.runs import (
    ExaminedRun,
    LeftOut,
    OwnConfig,
    PublishedRun,
    examine,
    load_published_runs,
    measure_published,
)
from counting.records.tidy import Tidy
from counting.setup import Setup
from torch_models.fields.config import spec_from_fields

CLAIM = "DeepSeek-V3"
MEASURED = (
    "DeepSeek-V3 (Insights)"  # the published run with a measured speed and MFU, from another source than the hours
)
OTHER_GPUS = ("A100", "H100", "H800", "B200")
MFUS = (0.2, 0.3, 0.4, 0.5, 0.6)
PRICES_USD_PER_HOUR = (1.0, 2.0, 3.0, 4.0)


class ClaimedPhase(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the bill."""

    phase: str
    gpu_hours: float
    cost_usd: float


class OnGpu(msgspec.Struct, frozen=True, kw_only=True):
    """The same pre-training on another GPU, at its catalogue price and the same share of its dense 16-bit peak."""

    gpu: str
    peak_dense_tflop_per_s: float
    price_usd_per_hour: float
    gpu_hours: float
    cost_usd: float


class OfModel(msgspec.Struct, frozen=True, kw_only=True):
    """Another model pre-trained on the same tokens with the same GPU at the same utilisation and price."""

    model: str
    total_parameters: int
    active_parameters: int
    training_flops_per_token: int
    gpu_hours: float
    cost_usd: float
    cost_over_claim: float


class CostAtMfu(msgspec.Struct, frozen=True, kw_only=True):
    """The cost of the pre-training at one utilisation, for each of the claim's `prices_usd_per_hour`."""

    mfu: float  # under the model's own count
    gpu_hours: float
    costs_usd: tuple[float, ...]


class Claim(Tidy, frozen=True, kw_only=True):
    """The results, in the order of the argument."""

    run: ExaminedRun
    measured: ExaminedRun
    price_usd_per_hour: float
    phases: tuple[ClaimedPhase, ...]
    total_gpu_hours: float
    total_cost_usd: float
    days: float  # of pre-training, on all GPUs of the run
    mfu: float  # of pre-training, under the model's own count
    largest_mfu_difference: float  # largest |implied / measured - 1| over the conventions that both have
    on_gpus: tuple[OnGpu, ...]
    models: tuple[OfModel, ...]
    prices_usd_per_hour: tuple[float, ...]
    costs: tuple[CostAtMfu, ...]
    left_out: LeftOut


def examine_claim() -> Claim:
    """The claim with all that follows from it; measures DeepSeek-V3 and two dense models."""
    runs = {run.name: run for run in load_published_runs()}
    run = runs[CLAIM]
    assert isinstance(run.model, OwnConfig) and run.gpu is not None and run.tokens is not None
    assert run.gpu_hours is not None and run.all_gpu_hours is not None and run.num_gpus is not None
    assert run.price_usd_per_hour is not None and run.left_out is not None
    price, hours, gpu = exactly(run.price_usd_per_hour), exactly(run.gpu_hours), find_gpu(run.gpu)
    flops = training_flops_per_token(measure_published(run.model)) * run.tokens
    mfu = gpu_hours(flops, gpu, Fraction(1)) / hours
    phases = [("pre-training", hours), *((phase.phase, exactly(phase.gpu_hours)) for phase in run.further_hours)]
    examined, measured = examine(run), examine(runs[MEASURED])
    return Claim(
        run=examined,
        measured=measured,
        price_usd_per_hour=run.price_usd_per_hour,
        phases=tuple(
            ClaimedPhase(phase=phase, gpu_hours=float(spent), cost_usd=float(spent * price)) for phase, spent in phases
        ),
        total_gpu_hours=float(run.all_gpu_hours),
        total_cost_usd=float(run.all_gpu_hours * price),
        days=float(hours / run.num_gpus / HOURS_PER_DAY),
        mfu=float(mfu),
        largest_mfu_difference=_largest_mfu_difference(examined, measured),
        on_gpus=tuple(_on_gpu(name, flops, mfu) for name in OTHER_GPUS),
        models=_models(run, mfu),
        prices_usd_per_hour=PRICES_USD_PER_HOUR,
        costs=tuple(_at_mfu(flops, run.gpu, share) for share in sorted([*map(exactly, MFUS), mfu])),
        left_out=run.left_out,
    )


def _largest_mfu_difference(run: ExaminedRun, measured: ExaminedRun) -> float:
    implied = {entry.convention: entry.mfu for entry in run.implied_mfu}
    stated = {figure.convention: figure.stated for figure in measured.figures if figure.quantity == "mfu"}
    return max(abs(implied[convention] / stated[convention] - 1) for convention in implied if convention in stated)


def _on_gpu(name: str, flops: Fraction, mfu: Fraction) -> OnGpu:
    gpu = find_gpu(name)
    assert gpu.price_usd_per_hour is not None
    hours = gpu_hours(flops, gpu, mfu)
    return OnGpu(
        gpu=gpu.name,
        peak_dense_tflop_per_s=gpu.peak_dense_tflop_per_s,
        price_usd_per_hour=gpu.price_usd_per_hour,
        gpu_hours=float(hours),
        cost_usd=float(hours * exactly(gpu.price_usd_per_hour)),
    )


def _models(run: PublishedRun, mfu: Fraction) -> tuple[OfModel, ...]:
    """The claim's model, and two dense models: one of its total size, one of its active size."""
    assert isinstance(run.model, OwnConfig) and run.tokens is not None and run.gpu is not None
    assert run.price_usd_per_hour is not None
    itself = measure_published(run.model)
    analyses = {CLAIM: itself}
    for label, parameters in (("total", itself.parameters.total), ("active", itself.parameters.active)):
        config = design_model(parameters).config
        name = f"dense, of its {label} size"
        setup = Setup(sequence_length=run.model.sequence_length)
        analyses[name] = analyze(spec_from_fields(config, name), setup, step=False)
    claimed = training_flops_per_token(itself)
    models = []
    for name, analysis in analyses.items():
        per_token = training_flops_per_token(analysis)
        hours = gpu_hours(per_token * run.tokens, find_gpu(run.gpu), mfu)
        models.append(
            OfModel(
                model=name,
                total_parameters=analysis.parameters.total,
                active_parameters=analysis.parameters.active,
                training_flops_per_token=ceil(per_token),
                gpu_hours=float(hours),
                cost_usd=float(hours * exactly(run.price_usd_per_hour)),
                cost_over_claim=float(per_token / claimed),
            )
        )
    return tuple(models)


def _at_mfu(flops: Fraction, gpu: str, mfu: Fraction) -> CostAtMfu:
    hours = gpu_hours(flops, find_gpu(gpu), mfu)
    costs = tuple(float(hours * exactly(price)) for price in PRICES_USD_PER_HOUR)
    return CostAtMfu(mfu=float(mfu), gpu_hours=float(hours), costs_usd=costs)
