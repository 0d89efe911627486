"""The resources for training an analysed model on a number of tokens: FLOPs, hours, days, dollars, energy.

    training FLOPs = FLOPs per token x tokens,    GPU-hours = training FLOPs / (3600 s x peak FLOP/s x MFU)

The MFU is given, predicted by how long a step takes (`Analysis.step_time`) if it is spread by a layout, or assumed. In
the other direction, published hours or the speed of a running job give the MFU that they imply. The model FLOPs
utilisation (MFU; Chowdhery et al. 2022, arXiv 2204.02311, §4.1) is relative to the dense 16-bit peak, also for runs in
FP8, as in papers. Energy is GPU-hours x the power limit that is set, else the board's: an upper bound for the boards
alone, without hosts, network and cooling.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import ceil, floor
from typing import Literal

import msgspec

from counting.analysis import Analysis
from counting.cost.budget import (
    SECONDS_PER_HOUR,
    check_mfu,
    check_whole,
    days_on,
    exactly,
    number_or_nan,
    priced_gpus,
)
from counting.cost.conventions import (
    FEWEST_FLOPS,
    Convention,
    flops_by_convention,
    has_indexer,
    main_attention_core,
    trained_parameters,
    trains_mtp,
    untrained_parameters,
)
from counting.cost.hardware import Gpu
from counting.recipes import Precision, model_states
from counting.records.tidy import Tidy
from counting.step.time import StepTime
from torch_models.errors import ArgumentError

MFU_RANGE = (0.3, 0.4, 0.5)  # assumed if the plan has no utilisation, hours or speed, and no step was timed

MfuSource = Literal["given", "assumed", "predicted"]  # "given" also if it follows from hours or a speed


class RunPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The inputs of a training run. At most one of `mfus`, `gpu_hours` and `tokens_per_second_per_gpu` can be given.

    `gpus` contains names of catalogue entries or `Gpu` objects. Sequence length, batch, precision, optimiser and
    multi-token prediction are not part of the plan; they come from the `setup` of the analysis. Raises UserError for a
    number out of range and for inputs that contradict each other. If a step is spread by a layout, `num_gpus` is the
    number of its ranks.
    """

    tokens: int
    gpus: tuple[str | Gpu, ...]
    num_gpus: int | None = None
    mfus: tuple[float, ...] | None = None  # one outcome for each; None: `plan_run` assumes values
    gpu_hours: float | None = None  # total of a finished run; determines the MFU
    tokens_per_second_per_gpu: float | None = None  # of a running job; determines MFU and hours
    prices_usd_per_hour: Mapping[str, float] = {}

    def __post_init__(self) -> None:
        for field in ("tokens", "num_gpus"):
            value = getattr(self, field)
            if value is not None or field == "tokens":
                check_whole(field, value)
        if self.mfus is not None:
            if not isinstance(self.mfus, tuple | list):
                raise ArgumentError("mfu", self.mfus, "must be a tuple of utilisations, as (0.4,)")
            if not self.mfus:
                raise ArgumentError("mfu", "", "give at least one utilisation, or none to assume a range")
            msgspec.structs.force_setattr(self, "mfus", tuple(check_mfu(mfu) for mfu in self.mfus))
        if self.gpu_hours is not None:
            if not 0 < number_or_nan(self.gpu_hours) < float("inf"):
                raise ArgumentError("gpu_hours", self.gpu_hours, "must be a number of hours above 0")
            if self.mfus is not None:
                raise ArgumentError("gpu_hours", self.gpu_hours, "hours determine the utilisation: leave out mfu")
        self._check_speed()

    def _check_speed(self) -> None:
        field, speed = "tokens_per_second_per_gpu", self.tokens_per_second_per_gpu
        if speed is None:
            return
        if not 0 < number_or_nan(speed) < float("inf"):
            raise ArgumentError(field, speed, "must be a number of tokens per second above 0")
        if self.mfus is not None:
            raise ArgumentError(field, speed, "a speed determines the utilisation: leave out mfu")
        if self.gpu_hours is not None:
            raise ArgumentError(field, speed, "a speed determines the hours: leave out gpu_hours")


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """The run at one utilisation. `tokens_per_second` (of all GPUs) and `days` are None without `num_gpus`.

    Predicted are three, in the order of the MFU: at the slow end of the band of a step's time, as predicted, and at its
    fast end; one if the band has no width.
    """

    mfu: float  # under the model's own count
    mfu_source: MfuSource
    gpu_hours: float
    cost_usd: float
    energy_mwh: float | None  # None if the board's power is unknown
    tokens_per_second: float | None
    days: float | None


class ImpliedMfu(msgspec.Struct, frozen=True, kw_only=True):
    """The utilisation that published hours, or a measured speed, imply under one convention."""

    convention: Convention
    training_flops_per_token: int  # rounded up
    training_flops: int | None  # None if the number of tokens is unknown
    tflop_per_s: float  # of one GPU
    mfu: float


class GpuRun(Tidy, frozen=True, kw_only=True):
    """The run on one kind of GPU."""

    gpu: str
    training_dtype: str  # the 16-bit format of the peak
    peak_dense_tflop_per_s: float
    attainable_tflop_per_s: float  # upper limit: the same peak, or the FP8 peak for precision fp8
    price_usd_per_hour: float
    power_watts: float | None  # the limit that the cluster sets, else the board's
    num_gpus: int | None
    fewest_gpus: int  # model state bytes / memory of one board, rounded up: a lower bound, with no room for activations
    outcomes: tuple[Outcome, ...]
    implied_mfu: tuple[ImpliedMfu, ...]  # empty unless hours or a speed were given
    # Of the step of a layout, if it was timed on this GPU, also where another utilisation is given: at the slow end of
    # the band, as predicted, at the fast end.
    predicted_mfus: tuple[float, ...]
    # Whether a step of the layout fits the memory of this GPU as it is; None without a layout, or if not worked out.
    step_fits: bool | None


class TrainingRun(Tidy, frozen=True, kw_only=True):
    """One model trained once, on each kind of GPU."""

    model: str
    sequence_length: int
    sequence_length_source: str
    tokens: int
    total_parameters: int
    active_parameters: int
    mtp_trained: bool
    has_indexer: bool  # which runs forward only, and is not trained
    training_flops_per_token: int
    attention_core_share: float  # share of the attention core in the main model's forward FLOPs
    training_flops: int
    global_batch_tokens: int | None  # this and `steps` are None if a step is one sequence by default
    steps: int | None
    published_gpu_hours: float | None
    tokens_per_second_per_gpu: float | None  # of a running job
    precision: str
    optimizer: str
    model_state_bytes: int  # parameters, gradients and optimiser state
    # Peak bytes of activations, logits and transients for one micro-batch. Each GPU needs them in addition to its
    # share of the model states; `fewest_gpus` does not include them. None if no step was measured.
    beside_states_bytes: int | None
    # Peak bytes that clipping and update allocate for all parameters; they are divided over GPUs as the states are, and
    # `fewest_gpus` does not include them. None if no step was measured.
    update_bytes: int | None
    gpus: tuple[GpuRun, ...]


def plan_run(analysis: Analysis, plan: RunPlan, *, assumed_mfus: tuple[float, ...] = MFU_RANGE) -> TrainingRun:
    """The run of `plan` for the model of `analysis`; `assumed_mfus` apply if the plan has no MFU, hours or speed.

    Nor do they where the step of a layout was timed on that GPU, which predicts the MFU. Raises UserError for no GPU,
    an unknown GPU, the same GPU twice, a missing or invalid price, a global batch of more tokens than the run, another
    number of GPUs than the layout's, for hours or a speed that would require more than the GPU's peak, and for an MFU,
    hours or a speed beyond the bound of the step's time.
    """
    plan = _with_ranks(plan, analysis)
    setup, sequence_length = analysis.setup, analysis.sequence_length
    batch = step_tokens_of_all_ranks(analysis)
    if batch is not None and batch > plan.tokens:
        raise ArgumentError("tokens", plan.tokens, f"must be at least those of one step, {batch}")
    assert setup.sequence_length_source is not None
    per_token = flops_by_convention(analysis)
    states = model_state_bytes(analysis)
    return TrainingRun(
        model=analysis.name,
        sequence_length=sequence_length,
        sequence_length_source=setup.sequence_length_source,
        tokens=plan.tokens,
        total_parameters=analysis.parameters.total,
        active_parameters=analysis.parameters.active,
        mtp_trained=trains_mtp(analysis),
        has_indexer=has_indexer(analysis),
        training_flops_per_token=ceil(per_token["own"]),
        attention_core_share=main_attention_core(analysis).as_run / analysis.forward_flops,
        training_flops=ceil(per_token["own"] * plan.tokens),
        global_batch_tokens=batch,
        steps=None if batch is None else ceil(Fraction(plan.tokens, batch)),
        published_gpu_hours=plan.gpu_hours,
        tokens_per_second_per_gpu=plan.tokens_per_second_per_gpu,
        precision=setup.precision,
        optimizer=setup.optimizer,
        model_state_bytes=states,
        beside_states_bytes=None if analysis.memory is None else analysis.memory.beside_states_bytes,
        update_bytes=None if analysis.memory is None else analysis.memory.update_bytes,
        gpus=tuple(
            _on_gpu(gpu, price, plan, assumed_mfus, per_token, states, analysis)
            for gpu, price in priced_gpus(plan.gpus, plan.prices_usd_per_hour)
        ),
    )


def _with_ranks(plan: RunPlan, analysis: Analysis) -> RunPlan:
    """`plan` on all ranks of the layout, if there is one."""
    layout = analysis.layout
    if layout is None:
        return plan
    if plan.num_gpus not in (None, layout.ranks):
        rule = f"is not the number of ranks of the layout, {layout.ranks}: leave it out"
        raise ArgumentError("num_gpus", plan.num_gpus, rule)
    return msgspec.structs.replace(plan, num_gpus=layout.ranks)


def step_tokens_of_all_ranks(analysis: Analysis) -> int | None:
    """Tokens of a step over all ranks of dp and fsdp; None on one device if a step is one sequence by default."""
    if analysis.layout is None:
        return analysis.setup.global_batch_tokens
    return analysis.layout.data_ranks * analysis.setup.step_tokens


def model_state_bytes(analysis: Analysis) -> int:
    """Bytes of parameters, gradients, master copy and moments of all trained parameters, unsharded."""
    parameters, setup = analysis.parameters, analysis.setup
    linear_weights = parameters.linear_weights + trains_mtp(analysis) * parameters.mtp_linear_weights
    moments = parameters.moment_bytes + trains_mtp(analysis) * parameters.mtp_moment_bytes
    trained, frozen = trained_parameters(analysis), untrained_parameters(analysis)
    return model_states(trained + frozen, linear_weights, moments, setup.precision_recipe, frozen=frozen).total


def _on_gpu(
    gpu: Gpu,
    price: float,
    plan: RunPlan,
    assumed_mfus: tuple[float, ...],
    per_token: Mapping[Convention, Fraction],
    state_bytes: int,
    analysis: Analysis,
) -> GpuRun:
    implied: tuple[ImpliedMfu, ...] = ()
    source: MfuSource = "given"
    speed, time = _tokens_per_gpu_second(plan), _time_on(gpu, analysis)
    if time is not None and time.power_limit_watts is not None:
        gpu = msgspec.structs.replace(gpu, power_watts=time.power_limit_watts)
    if speed is None:
        chosen = plan.mfus
        if chosen is None:
            source, chosen = ("assumed", assumed_mfus) if time is None else ("predicted", time.mfus)
        elif time is not None:
            _refuse_utilisation_above_bound(chosen, time)
        mfus = [exactly(mfu) for mfu in chosen]
        hours = [gpu_hours(per_token["own"] * plan.tokens, gpu, mfu) for mfu in mfus]
    else:
        hours = [plan.tokens / speed / SECONDS_PER_HOUR]
        implied = implied_mfus(per_token, plan.tokens, speed, gpu)
        mfus = [per_token["own"] * speed / gpu.peak_flop_per_s]
        _refuse_impossible(implied, plan, gpu, analysis)
        if time is not None and mfus[0] > exactly(time.bound_mfu):
            raise _speed_above_bound(plan, exactly(time.bound_mfu) * speed / mfus[0], time)
    return GpuRun(
        gpu=gpu.name,
        training_dtype=gpu.training_dtype,
        peak_dense_tflop_per_s=gpu.peak_dense_tflop_per_s,
        attainable_tflop_per_s=_attainable(gpu, analysis.setup.precision_recipe)[0],
        price_usd_per_hour=price,
        power_watts=gpu.power_watts,
        num_gpus=plan.num_gpus,
        fewest_gpus=ceil(Fraction(state_bytes, gpu.capacity_bytes)),
        outcomes=tuple(_outcome(gpu, price, plan, source, *pair) for pair in zip(mfus, hours, strict=True)),
        implied_mfu=implied,
        predicted_mfus=() if time is None else time.mfus,
        step_fits=_step_fits(gpu, analysis),
    )


def _time_on(gpu: Gpu, analysis: Analysis) -> StepTime | None:
    """How long a step takes on these GPUs; None if it is on one device, or was not timed."""
    times = () if analysis.layout is None else analysis.step_time or ()
    return next((time for time in times if time.gpu == gpu.name), None)


def _step_fits(gpu: Gpu, analysis: Analysis) -> bool | None:
    if analysis.layout is None:
        return None
    return next((fit.fits for fit in analysis.fits or () if fit.gpu == gpu.name), None)


def _refuse_utilisation_above_bound(mfus: Sequence[float], time: StepTime) -> None:
    for mfu in mfus:
        if mfu > time.bound_mfu:
            rule = (
                f"no run of this layout on {time.gpu} is above {floor(10**4 * time.bound_mfu) / 10**4:g}, the "
                f"utilisation of the bound, {time.bound_seconds:.4g} s a step: give at most that"
            )
            raise ArgumentError("mfu", mfu, rule)


def _speed_above_bound(plan: RunPlan, fastest: Fraction, time: StepTime) -> ArgumentError:
    """The error of hours or a speed beyond the bound, at which a GPU takes `fastest` tokens a second."""
    no_run, limit = f"no run of this layout on {time.gpu}", f"the bound, {time.bound_seconds:.4g} s a step"
    if plan.tokens_per_second_per_gpu is not None:
        most = floor(100 * fastest) / 100
        rule = f"{no_run} is faster than {most:.12g}, the speed of {limit}: give at most that"
    else:
        fewest = ceil(100 * plan.tokens / fastest / SECONDS_PER_HOUR) / 100
        rule = f"{no_run} takes fewer than {fewest:.12g}, those of {limit}: give at least that"
    return ArgumentError(*_given_speed(plan), rule)


def _given_speed(plan: RunPlan) -> tuple[str, float]:
    """The field of the plan that says how fast the run is, and its value."""
    field = "gpu_hours" if plan.tokens_per_second_per_gpu is None else "tokens_per_second_per_gpu"
    value = getattr(plan, field)
    return field, int(value) if value == int(value) else value


def _tokens_per_gpu_second(plan: RunPlan) -> Fraction | None:
    """Tokens per second of one GPU, from the plan's speed or hours; None if the plan has neither."""
    if plan.tokens_per_second_per_gpu is not None:
        return exactly(plan.tokens_per_second_per_gpu)
    return None if plan.gpu_hours is None else plan.tokens / (exactly(plan.gpu_hours) * SECONDS_PER_HOUR)


def _outcome(gpu: Gpu, price: float, plan: RunPlan, source: MfuSource, mfu: Fraction, hours: Fraction) -> Outcome:
    gpus = plan.num_gpus
    return Outcome(
        mfu=float(mfu),
        mfu_source=source,
        gpu_hours=float(hours),
        cost_usd=float(hours * exactly(price)),
        energy_mwh=None if gpu.power_watts is None else float(hours * exactly(gpu.power_watts) / 10**6),
        tokens_per_second=None if gpus is None else float(plan.tokens * gpus / hours / SECONDS_PER_HOUR),
        days=None if gpus is None else days_on(gpus, hours),
    )


def gpu_hours(training_flops: Fraction, gpu: Gpu, mfu: Fraction) -> Fraction:
    """The hours that one GPU takes for `training_flops` at `mfu` of its dense 16-bit peak."""
    return training_flops / (SECONDS_PER_HOUR * gpu.peak_flop_per_s * mfu)


def implied_mfus(
    flops_per_token: Mapping[Convention, Fraction], tokens: int | None, tokens_per_gpu_second: Fraction, gpu: Gpu
) -> tuple[ImpliedMfu, ...]:
    """The MFU that a speed implies under each convention. MFU is relative to the 16-bit peak.

    Above 1 the run used FP8, the convention counts more than a causal kernel computes, or the speed is impossible.
    """
    return tuple(
        ImpliedMfu(
            convention=convention,
            training_flops_per_token=ceil(flops),
            training_flops=None if tokens is None else ceil(flops * tokens),
            tflop_per_s=float(flops * tokens_per_gpu_second / 10**12),
            mfu=float(flops * tokens_per_gpu_second / gpu.peak_flop_per_s),
        )
        for convention, flops in flops_per_token.items()
    )


def _attainable(gpu: Gpu, precision: Precision) -> tuple[float, str]:
    """The dense peak in TFLOP/s in the format of the matrix products, and the format: FP8 if recipe and GPU have it."""
    if precision.multiplies_in_fp8 and gpu.peak_dense_fp8_tflop_per_s is not None:
        return gpu.peak_dense_fp8_tflop_per_s, "fp8"
    return gpu.peak_dense_tflop_per_s, gpu.training_dtype


def _refuse_impossible(implied: Sequence[ImpliedMfu], plan: RunPlan, gpu: Gpu, analysis: Analysis) -> None:
    """Raises ArgumentError if the fewest FLOPs that training computes need more than the attainable peak.

    These are 6 N' and the pairs of attention that causality and windows leave. 6 N has the input embedding in it, which
    multiplies nothing; the other conventions count pairs that a causal kernel leaves out.
    """
    (least,) = (entry for entry in implied if entry.convention == FEWEST_FLOPS)
    assert least.training_flops is not None
    peak, dtype = _attainable(gpu, analysis.setup.precision_recipe)
    if least.tflop_per_s <= peak:
        return
    in_fp8 = least.tflop_per_s <= (gpu.peak_dense_fp8_tflop_per_s or 0)
    hint = "; if it trained in FP8, say so (precision fp8)" if in_fp8 else ""
    rule = (
        f"the claim is impossible: {float(least.training_flops):.4g} training FLOPs ({least.convention} at "
        f"{analysis.sequence_length:,} tokens a sequence, the fewest that training computes) take "
        f"{least.tflop_per_s:,.4g} TFLOP/s of each {gpu.name}, whose dense {dtype} peak is {peak:,g}: an MFU of "
        f"{least.tflop_per_s / peak:.4g}, above 1{hint}"
    )
    raise ArgumentError(*_given_speed(plan), rule)
