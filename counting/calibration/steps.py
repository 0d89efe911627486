"""Measured steps of one cluster, each beside the estimate of the model of time, and the scale that they give."""

from collections.abc import Callable, Sequence

import msgspec

from counting.analysis import Analysis, analyze
from counting.calibration.scale import ScaledRow, check_number, fit_scale, median_error
from counting.cost.cluster import Calibration, Cluster
from counting.records.tidy import Tidy
from counting.setup import Setup
from counting.step.time import StepTime
from torch_models.errors import ArgumentError, ConfigError, UserError
from torch_models.layout import Layout
from torch_models.spec import ModelSpec

_MOST_NAMED = 3  # impossible rows that an error names with their numbers


class MeasuredStep(msgspec.Struct, frozen=True, kw_only=True):
    """One step that the user ran: what it was, and the seconds that it took. `where` names its row in errors."""

    where: str
    model: ModelSpec
    setup: Setup
    layout: Layout | None  # None: one device
    power_watts: float | None = None  # the limit that was set, if not that of the cluster
    seconds: float


class CalibratedStep(msgspec.Struct, frozen=True, kw_only=True):
    """One row of a calibration."""

    where: str
    model: str
    gpus: int
    bound_seconds: float
    seconds: ScaledRow


class CalibratedCluster(Tidy, frozen=True, kw_only=True):
    """The scale of a cluster and its software, and the rows that it was fitted to."""

    gpu: str
    rates_of: str  # the GPU whose rates the estimates rest on
    calibration: Calibration
    median_error: float  # of the rows, each predicted by the others
    rows: tuple[CalibratedStep, ...]
    assumptions: tuple[str, ...]  # of the estimates


def calibrate_cluster(
    steps: Sequence[MeasuredStep], cluster: Cluster, show: Callable[[str], None] = lambda text: None
) -> CalibratedCluster:
    """Estimate each of `steps` on `cluster`, and fit one scale to them; `show` gets progress.

    A calibration that the cluster has already is not used. Raises UserError for too few steps, for rows of one step,
    and for a step that is faster than its bound, which no run is: its row, or the model of it, is wrong.
    """
    check_number(len(steps))
    _refuse_one_step(steps)
    times: list[StepTime] = []
    gpus: list[int] = []
    for number, step in enumerate(steps, start=1):
        show(f"estimating {step.model.name} ({number} of {len(steps)}) ...")
        analysis = _analysis(step, cluster)
        if not analysis.step_time:
            raise UserError(f"{step.where}: no time of such a step is worked out")
        times.append(analysis.step_time[0])
        gpus.append(analysis.layout.ranks if analysis.layout else 1)
    _refuse_impossible(steps, times)
    calibration, rows = fit_scale([step.seconds for step in steps], [time.seconds for time in times])
    return CalibratedCluster(
        gpu=cluster.gpu.name,
        rates_of=times[0].rates_of,
        calibration=calibration,
        median_error=median_error(rows),
        rows=tuple(
            CalibratedStep(
                where=step.where,
                model=step.model.name,
                gpus=ranks,
                bound_seconds=time.bound_seconds,
                seconds=row,
            )
            for step, time, row, ranks in zip(steps, times, rows, gpus, strict=True)
        ),
        assumptions=tuple(dict.fromkeys(assumption for time in times for assumption in time.assumptions)),
    )


def _analysis(step: MeasuredStep, cluster: Cluster) -> Analysis:
    """The analysis of one step, with its time on the cluster without a scale."""
    power = cluster.power_watts if step.power_watts is None else step.power_watts
    try:
        cluster = msgspec.structs.replace(cluster, calibration=None, power_watts=power)
        return analyze(step.model, step.setup, layout=step.layout, cluster=cluster)
    except ArgumentError as error:
        raise ConfigError(error.field, error.value, error.rule, step.where) from None
    except UserError as error:
        raise UserError(f"{step.where}: {error}") from None


def _refuse_one_step(steps: Sequence[MeasuredStep]) -> None:
    """Raises UserError if all rows are of one step: of another one, the spread of these is not the error."""
    if len({(step.model, step.setup, step.layout, step.power_watts) for step in steps}) == 1:
        raise UserError(
            f"all {len(steps)} rows are one step, measured again: that says nothing of the error of another step: give "
            "rows of at least two different steps"
        )


def _refuse_impossible(steps: Sequence[MeasuredStep], times: Sequence[StepTime]) -> None:
    """Raises UserError with every step that is faster than its bound, the first ones with their numbers."""
    named = [
        f"{step.where}: seconds = {step.seconds:g}: is faster than the bound of this step, {time.bound_seconds:.4g} s"
        for step, time in zip(steps, times, strict=True)
        if step.seconds < time.bound_seconds
    ]
    if named:
        more = f"; and {len(named) - _MOST_NAMED} more such rows" if len(named) > _MOST_NAMED else ""
        raise UserError(f"{'; '.join(named[:_MOST_NAMED])}{more}; correct or leave out what cannot have been measured")
