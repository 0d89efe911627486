"""Published speeds of training steps, and how long this project says that the same steps take.

`configs/published_throughput.json` has the figures with their sources, what each run really ran, and in what the step
that is measured here differs from it. Each row whose settings are known and measured here is run as the command would
run it; every other row says why it is not. No constant is fitted to the figures. The rows with `gate` are those that
the project set itself to meet, before any of them was compared; the others are kept to check with.
"""

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from functools import cache
from statistics import median, quantiles
from typing import Any, Literal, NamedTuple

import msgspec

from counting.analysis import analyze
from counting.cost.budget import exactly
from counting.cost.cluster import Cluster
from counting.cost.conventions import Convention, flops_by_convention, trains_mtp
from counting.cost.hardware import find_gpu
from counting.published.rows import Record, RepeatedRow, RunSettings, check_names, check_rows, read_records
from counting.records.tidy import Tidy
from counting.setup import Setup
from counting.step.time import StepTime
from counting.timing import timed_step
from counting.work import KeyValueHeads, Norms, Rotation
from torch_models.errors import UserError
from torch_models.fields.config import spec_from_fields
from torch_models.layout import Layout
from torch_models.spec import Kernels, ModelSpec

SpeedQuantity = Literal["seconds", "tokens_per_second_per_gpu", "tflop_per_second_per_gpu"]
ModelKind = Literal["dense", "mixture"]  # a mixture of experts, or a model without experts
Products = Literal["bf16", "fp8"]


class PublishedCluster(Record, frozen=True, kw_only=True):
    """The machine and the stack of a run: a GPU of the catalogue, with what is different of it there."""

    gpu: str
    gpu_fields: dict[str, Any] = msgspec.field(default_factory=dict)  # fields of its entry that are replaced
    gpus_per_node: int | None = None  # that ran; None: as many as there are
    power_watts: float | None = None  # the limit, where it is below the board's
    attention_kernel: str | None = None  # None: torch's, as the step that is measured here names it
    products: Products = "bf16"  # what linear layers of decoder layers multiply
    overlap_expert_exchange: bool = False
    norms: Norms = "fused"
    rotation: Rotation = "real"
    key_value_heads: KeyValueHeads = "shared"

    def cluster(self) -> Cluster:
        """The cluster of these GPUs; nodes and links are the catalogue's."""
        return Cluster(
            gpu=msgspec.structs.replace(find_gpu(self.gpu), **self.gpu_fields),
            gpus_per_node=self.gpus_per_node,
            power_watts=self.power_watts,
            attention_kernel=self.attention_kernel,
            products_in_fp8=self.products == "fp8",
            overlap_expert_exchange=self.overlap_expert_exchange,
            norms=self.norms,
            rotation=self.rotation,
            key_value_heads=self.key_value_heads,
        )


class MeasuredSpeed(Record, frozen=True, kw_only=True):
    """The speed as it is printed; `convention` says how FLOPs are counted in FLOPs a second."""

    quantity: SpeedQuantity
    value: float
    convention: Convention | None = None


class PublishedThroughput(RepeatedRow, frozen=True, kw_only=True):
    """One run as published."""

    kind: ModelKind
    gate: bool
    cluster: PublishedCluster
    measured: MeasuredSpeed
    ran: str | None = None  # what ran there, as its source says
    differs: str | None = None  # in what the step that is measured here is another one


class PublishedRatio(Record, frozen=True, kw_only=True):
    """Two rows that differ in one thing: how much longer the slower one's step takes for a token."""

    name: str
    faster: str
    slower: str
    gate: bool


class ThroughputRecords(Record, frozen=True, kw_only=True):
    """The whole file."""

    rows: tuple[PublishedThroughput, ...]
    ratios: tuple[PublishedRatio, ...]


class ExaminedThroughput(Tidy, frozen=True, kw_only=True):
    """A published row with this project's time of the same step; none of a row that is not run."""

    name: str
    source: str
    kind: ModelKind
    gate: bool
    cluster: PublishedCluster
    measured: MeasuredSpeed
    config: str | None
    setup: Setup | None  # resolved
    layout: Layout | None
    measured_seconds: float | None  # of the step, from the speed as printed
    step_time: StepTime | None
    relative_error: float | None  # estimated seconds / measured seconds - 1
    not_run: str | None
    ran: str | None
    differs: str | None

    @property
    def seconds_per_token(self) -> tuple[float, float] | None:
        """Measured and estimated seconds of the step for each token of one GPU; None if it is not run."""
        if self.setup is None or self.layout is None or self.measured_seconds is None or self.step_time is None:
            return None
        tokens = float(tokens_per_gpu(self.setup, self.layout))
        return self.measured_seconds / tokens, self.step_time.seconds / tokens


class ErrorSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The errors of the rows of one kind, of those with `gate` or of all."""

    kind: ModelKind | Literal["all"]
    gate: bool
    rows: int
    median_absolute: float
    median: float  # signed: below 0 estimates are too fast
    tenth: float  # percentile: 8 of 10 rows are between this one and the next
    ninetieth: float
    worst: str  # the row with the largest absolute error
    worst_error: float
    beyond_bound: tuple[str, ...]  # rows that were faster than their bound: there must be none


class ExaminedRatio(msgspec.Struct, frozen=True, kw_only=True):
    """A ratio of two rows as measured, and as estimated."""

    name: str
    gate: bool
    measured: float
    estimated: float
    relative_error: float


class Throughput(Tidy, frozen=True, kw_only=True):
    """All rows, with what their errors come to."""

    rows: tuple[ExaminedThroughput, ...]
    errors: tuple[ErrorSummary, ...]
    ratios: tuple[ExaminedRatio, ...]


@cache
def load_published_throughput() -> ThroughputRecords:
    """The content of `configs/published_throughput.json`; the file is read on the first call."""
    records = read_records("published_throughput.json", ThroughputRecords)
    check_rows(records.rows)
    check_names(records.ratios)
    names = {row.name for row in records.rows}
    assert all({ratio.faster, ratio.slower} <= names for ratio in records.ratios)
    return records


def examine_throughput(row: PublishedThroughput) -> ExaminedThroughput:
    """The row with the time of its step; a setting that is refused here is its `not_run`."""
    setup = layout = time = seconds = None
    not_run = row.not_run
    if row.run is not None:
        try:
            setup, layout, time, seconds = _timed(row.run, row.cluster, row.measured)
        except UserError as error:
            not_run = str(error)
    return ExaminedThroughput(
        name=row.name,
        source=row.source,
        kind=row.kind,
        gate=row.gate,
        cluster=row.cluster,
        measured=row.measured,
        config=None if row.run is None else row.run.config,
        setup=setup,
        layout=layout,
        measured_seconds=seconds,
        step_time=time,
        relative_error=None if time is None or seconds is None else time.seconds / seconds - 1,
        not_run=not_run,
        ran=row.ran,
        differs=row.differs,
    )


def _timed(
    run: RunSettings, cluster: PublishedCluster, measured: MeasuredSpeed
) -> tuple[Setup, Layout, StepTime, float]:
    """Setup and layout, resolved; the time of the step; and the measured seconds. Raises `UserError`."""
    layout, setup, spec = run.given_layout(), Setup(**run.setup), spec_from_fields(run.fields(), run.config)
    assert layout is not None
    flops = _flops(spec, setup.sequence_length, setup.micro_batch_size, setup.kernels, setup.mtp)
    setup, layout, time = timed_step(
        spec, setup, layout, cluster.cluster(), forward_flops=flops.forward, forward_only=flops.forward_only
    )
    return setup, layout, time, measured_seconds(measured, tokens_per_gpu(setup, layout), flops.per_token)


class _Flops(NamedTuple):
    """FLOPs of a model: of the forward pass of a micro-batch, with prediction layers if they are trained."""

    forward: int
    forward_only: int  # of them, those that backward does not pass
    per_token: Mapping[Convention, Fraction]  # of training


@cache
def _flops(
    spec: ModelSpec, sequence_length: int | None, micro_batch_size: int, kernels: Kernels, mtp: bool | None
) -> _Flops:
    setup = Setup(sequence_length=sequence_length, micro_batch_size=micro_batch_size, kernels=kernels, mtp=mtp)
    analysis = analyze(spec, setup, step=False)
    trained = trains_mtp(analysis)
    return _Flops(
        forward=analysis.forward_flops + trained * analysis.mtp_forward_flops,
        forward_only=analysis.forward_only_flops + trained * analysis.mtp_forward_only_flops,
        per_token=flops_by_convention(analysis),
    )


def tokens_per_gpu(setup: Setup, layout: Layout) -> Fraction:
    """Tokens of a step divided by GPUs; `setup` and `layout` are resolved. Ranks of tp, cp and pp share theirs."""
    assert layout.num_gpus is not None
    return Fraction(setup.step_tokens * layout.data_ranks, layout.num_gpus)


def measured_seconds(measured: MeasuredSpeed, tokens: Fraction, flops: Mapping[Convention, Fraction]) -> float:
    """The seconds of a step of so many tokens a GPU that a printed speed implies; `flops` are those of one token.

    tokens / (tokens / s), or tokens x FLOPs a token / (FLOPs / s).
    """
    if measured.quantity == "seconds":
        return measured.value
    if measured.quantity == "tokens_per_second_per_gpu":
        return float(tokens / exactly(measured.value))
    assert measured.convention is not None
    return float(tokens * flops[measured.convention] / (exactly(measured.value) * 10**12))


def summed_up(rows: Sequence[ExaminedThroughput]) -> Throughput:
    """The examined rows, with their errors by kind and the ratios of the file whose rows are all among them."""
    kinds: tuple[ModelKind | Literal["all"], ...] = ("dense", "mixture", "all")
    groups = ((kind, gate) for gate in (True, False) for kind in kinds)
    errors = (_errors(kind, gate, rows) for kind, gate in groups)
    return Throughput(
        rows=tuple(rows),
        errors=tuple(found for found in errors if found is not None),
        ratios=tuple(_ratios(load_published_throughput().ratios, rows)),
    )


def _errors(kind: ModelKind | Literal["all"], gate: bool, rows: Iterable[ExaminedThroughput]) -> ErrorSummary | None:
    """The errors of the rows of `kind`, with `gate` of those that have one; None if no such row is run."""
    of_kind = [row for row in rows if kind in ("all", row.kind) and (row.gate or not gate)]
    errors = {row.name: row.relative_error for row in of_kind if row.relative_error is not None}
    if not errors:
        return None
    worst = max(errors, key=lambda name: abs(errors[name]))
    tenth, *_, ninetieth = quantiles([*errors.values()] * (1 if len(errors) > 1 else 2), n=10, method="inclusive")
    return ErrorSummary(
        kind=kind,
        gate=gate,
        rows=len(errors),
        median_absolute=median(map(abs, errors.values())),
        median=median(errors.values()),
        tenth=tenth,
        ninetieth=ninetieth,
        worst=worst,
        worst_error=errors[worst],
        beyond_bound=tuple(row.name for row in of_kind if beats_bound(row)),
    )


def beats_bound(row: ExaminedThroughput) -> bool:
    """Whether the run was faster than what is called its bound here."""
    time, measured = row.step_time, row.measured_seconds
    return time is not None and measured is not None and measured < time.bound_seconds


def _ratios(ratios: Iterable[PublishedRatio], rows: Iterable[ExaminedThroughput]) -> Iterable[ExaminedRatio]:
    per_token = {row.name: row.seconds_per_token for row in rows}
    for ratio in ratios:
        faster, slower = per_token.get(ratio.faster), per_token.get(ratio.slower)
        if faster is not None and slower is not None:
            measured, estimated = (slow / fast for slow, fast in zip(slower, faster, strict=True))
            yield ExaminedRatio(
                name=ratio.name,
                gate=ratio.gate,
                measured=measured,
                estimated=estimated,
                relative_error=estimated / measured - 1,
            )
