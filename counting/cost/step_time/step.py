"""The seconds of a step: bound, estimate and band, with a breakdown."""

from fractions import Fraction

from msgspec import structs

from counting.cost.cluster import Calibration, Cluster
from counting.cost.step_time.band import ModelClass, band_of, errors_of
from counting.cost.step_time.machine import Machine
from counting.cost.step_time.stretches import StretchTimer, has_experts
from counting.cost.step_time.whole_step import ROUNDING, bound_of_step, lay_out_step
from counting.setup import Setup
from counting.step.time import HELD_TO_BOUND, AtRateOfProducts, StepTime, TimeBreakdown
from counting.work import StepWork
from torch_models.layout import Layout

NOT_MODELLED = (
    "Not modelled: data loading, checkpoints and evaluation, failures and restarts, other jobs on the network, memory "
    "that the allocator asks of the driver, and GPUs that are slower than the spread between equal ones.",
    "The host launches kernels ahead of the device, which is never idle for it.",
)


def step_time(
    work: StepWork,
    setup: Setup,
    layout: Layout | None,
    cluster: Cluster,
    *,
    model_flops_per_token: Fraction,
    hardware_flops: int,
) -> StepTime:
    """The time of one step of `work`; `setup` and `layout` are resolved, and None is one device.

    `model_flops_per_token` are by the own convention, `hardware_flops` what all ranks execute in a step, by the full
    square of attention.

    Raises `UserError` if no rates of the GPU or its architecture are known, and `ArgumentError` for `node_link` or
    `network_link` if the layout needs one of unknown speed.
    """
    timer = StretchTimer(setup, layout, cluster, "estimate")
    bound = bound_of_step(work, StretchTimer(setup, layout, cluster, "bound"))
    whole = lay_out_step(work, timer)
    estimated = whole.busiest.breakdown
    # By its rules; the two may differ by rounding where all rates are the same.
    assert bound <= whole.seconds * (1 + ROUNDING), "the bound is never above the estimate"
    bound = min(bound, estimated.total)
    calibration = cluster.calibration
    mixture = has_experts(work)
    factor = None
    if calibration is None:
        breakdown = estimated
        seconds = breakdown.total
        low, high = band_of(seconds, errors_of("mixture" if mixture else "dense"))
    else:
        factor = calibrated_factor(calibration, bound, estimated.total)
        breakdown = _scaled(estimated, factor)
        seconds = breakdown.total
        low, high = seconds * calibration.low, seconds * calibration.high
    tokens = setup.step_tokens * (1 if layout is None else layout.data_ranks)
    ranks = 1 if layout is None else layout.ranks
    tokens_per_gpu = tokens / ranks
    peak = cluster.gpu.peak_flop_per_s / cluster.gpu.devices
    model_flops = float(model_flops_per_token) * tokens_per_gpu
    return StepTime(
        gpu=cluster.gpu.name,
        basis="estimate" if calibration is None else "calibrated",
        seconds=seconds,
        bound_seconds=bound,
        low_seconds=max(bound, min(low, seconds)),
        high_seconds=max(high, seconds),
        tokens_per_second_per_gpu=tokens_per_gpu / seconds,
        mfu=model_flops / seconds / peak,
        hfu=hardware_flops / ranks / seconds / peak,
        bound_mfu=model_flops / bound / peak,
        breakdown=breakdown,
        power_limit_watts=cluster.power_watts,
        rates_of=timer.machine.rates_of,
        as_products=_as_products(estimated, timer.machine, mixture=mixture),
        assumptions=_assumptions(work, setup, layout, cluster, timer, factor, mixture=mixture),
    )


def _as_products(breakdown: TimeBreakdown, machine: Machine, *, mixture: bool) -> tuple[AtRateOfProducts, ...]:
    """What of the step has no rates of its own; products of experts at least lose to tiles and waves, if known."""
    attention: tuple[AtRateOfProducts, ...] = ("attention",) if breakdown.attention and not machine.attention else ()
    return (*attention, "experts") if mixture and not machine.grouped else attention


def calibrated_factor(calibration: Calibration, bound: float, estimated: float) -> float:
    """What the estimate's seconds are multiplied by: the scale, but never to less than the bound's."""
    return max(calibration.scale, bound / estimated)


def _scaled(breakdown: TimeBreakdown, scale: float) -> TimeBreakdown:
    return structs.replace(
        breakdown,
        products=breakdown.products * scale,
        attention=breakdown.attention * scale,
        memory_bound=breakdown.memory_bound * scale,
        communication={axis: seconds * scale for axis, seconds in breakdown.communication.items()},
        bubble=breakdown.bubble * scale,
        optimizer=breakdown.optimizer * scale,
    )


def _assumptions(
    work: StepWork,
    setup: Setup,
    layout: Layout | None,
    cluster: Cluster,
    timer: StretchTimer,
    factor: float | None,
    *,
    mixture: bool,
) -> tuple[str, ...]:
    """What the figures rest on, in sentences."""
    found = []
    gpu, calibration, machine = cluster.gpu, cluster.calibration, timer.machine
    if machine.rates_of != gpu.name:
        found.append(f"Rates of {machine.rates_of}, scaled by the peaks: {gpu.name} has none in the catalogue.")
    if calibration is None:
        kind: ModelClass = "mixture" if mixture else "dense"
        rows = errors_of(kind).rows
        models = "mixtures of experts" if mixture else "dense models"
        if rows:
            found.append(f"The band has the errors of 8 of 10 of {rows} published runs of {models}.")
        else:
            found.append(f"The band is a stand-in: no published run of {models} has been compared.")
    else:
        found.append(f"Scaled by {calibration.scale:.3g}, fitted to {calibration.rows} measured steps.")
        if factor is not None and factor > calibration.scale:
            found.append(f"{HELD_TO_BOUND}: {calibration.scale:.3g} of the estimate is less, and no run is faster.")
    if cluster.power_watts is not None and cluster.power_watts != gpu.power_watts:
        found.append(f"Products are those of a power limit of {cluster.power_watts:g} W.")
    if setup.execution == "compiled":
        found.append("Each layer is compiled: ops between products and attention are fused.")
    if timer.products_in_fp8:
        found.append("Linear layers multiply in FP8; for each operand, quantising reads 2 bytes a number and writes 1.")
    said = [sentence for sentence in machine.assumptions if mixture or "experts" not in sentence]
    found += [f"{sentence[:1].upper()}{sentence[1:]}." for sentence in said]
    if layout is not None:
        found += _assumptions_of_layout(layout, cluster, work)
    if mixture and (layout is None or layout.expert_imbalance == 1):
        found.append("All experts have the same number of tokens.")
    return (*found, *NOT_MODELLED)


def _assumptions_of_layout(layout: Layout, cluster: Cluster, work: StepWork) -> list[str]:
    found = []
    if layout.shards > 1:
        found.append(
            "Parameters of a layer are gathered while the layer before computes, and gradients reduced while the next "
            "one does: one of each at a time."
        )
    if layout.tp > 1 or layout.cp > 1:
        found.append("Collectives of tp and cp are not overlapped with products.")
    if layout.ep > 1:
        meanwhile = "ops of another micro-batch run" if cluster.overlap_expert_exchange else "nothing is computed"
        found.append(f"Each token is sent to each of its experts, and {meanwhile} meanwhile.")
    if layout.expert_imbalance > 1:
        found.append(f"The busiest rank's experts have {layout.expert_imbalance:g} times the mean of tokens.")
    if layout.pp > 1:
        found.append("Messages between stages are under way beside the passes, and do not slow them down.")
        ordered = len({one.micro_batch for one in work.ranks[0].order if one.micro_batch is not None})
        if ordered < work.micro_batches:
            found.append(
                f"{ordered} micro-batches are laid out in time; each further one takes as long as the busiest rank."
            )
    return found
