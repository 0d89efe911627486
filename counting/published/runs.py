"""Published training runs: FLOPs, the MFU that hours or a speed imply, and each stated figure worked out again.

`configs/published_runs.json` contains the published figures with their sources. A model with a config is measured like
any other. A model whose family is not native here is counted by the formula of its paper (`SixN`, `Palm`, `GptBlock`).
"""

from collections.abc import Mapping
from fractions import Fraction
from functools import cache
from math import ceil
from typing import ClassVar, Literal

import msgspec

from counting.analysis import Analysis, analyze
from counting.cost.budget import HOURS_PER_DAY, SECONDS_PER_HOUR, exactly
from counting.cost.conventions import Convention, flops_by_convention
from counting.cost.hardware import find_gpu
from counting.cost.run import ImpliedMfu, implied_mfus
from counting.cost.scaling_laws import FLOPS_PER_PARAMETER_AND_TOKEN
from counting.formulas.kv_cache import kv_cache_bytes_per_token
from counting.published.rows import Record, check_names, read_records
from counting.records.tidy import Tidy
from counting.setup import Setup
from torch_models.fields.config import read_spec
from torch_models.spec import ModelSpec

Quantity = Literal[
    "training_flops",
    "petaflop_days",
    "gflop_per_token",
    "mfu",
    "tflop_per_s",
    "seconds_per_step",
    "tokens_per_day",
    "gpu_hours_per_trillion_tokens",
    "cost_usd",
    "kv_cache_kb_per_token",
]


class OwnConfig(Record, frozen=True, kw_only=True, tag_field="type", tag="config"):
    """A config of this project, and the sequence length of the training."""

    config: str
    sequence_length: int


class SixN(Record, frozen=True, kw_only=True, tag_field="type", tag="6N"):
    """Brown et al. 2020 (arXiv 2005.14165), table D.1: 6 FLOPs per parameter and token, without attention."""

    formula: ClassVar[str] = "6 N, attention left out (Brown et al. 2020, table D.1)"
    parameters: int

    def flops_per_token(self) -> Mapping[Convention, Fraction]:
        """6 N, as convention `6N`."""
        return {"6N": Fraction(FLOPS_PER_PARAMETER_AND_TOKEN * self.parameters)}


class Palm(Record, frozen=True, kw_only=True, tag_field="type", tag="palm"):
    """Chowdhery et al. 2022 (arXiv 2204.02311), appendix B: 6 N + 12 L H Q T per token; N includes the embedding."""

    formula: ClassVar[str] = "6 N + 12 L H Q T, the embedding in N (Chowdhery et al. 2022, appendix B)"
    parameters: int  # N
    layers: int  # L
    heads: int  # H
    head_dim: int  # Q
    sequence_length: int  # T

    def flops_per_token(self) -> Mapping[Convention, Fraction]:
        """FLOPs per token without attention (`6N`) and with it (`6N_full_attention`)."""
        matrices = Fraction(FLOPS_PER_PARAMETER_AND_TOKEN * self.parameters)
        attention = 12 * self.layers * self.heads * self.head_dim * self.sequence_length
        return {"6N": matrices, "6N_full_attention": matrices + attention}


class GptBlock(Record, frozen=True, kw_only=True, tag_field="type", tag="gpt_block"):
    """Korthikanti et al. 2022 (arXiv 2205.05198), appendix A: 72 l h^2 (1 + s / 6h + V / 12lh) per token."""

    formula: ClassVar[str] = "72 l h^2 (1 + s/6h + V/12lh) (Korthikanti et al. 2022, appendix A)"
    layers: int  # l
    hidden_size: int  # h
    vocab_size: int  # V
    sequence_length: int  # s

    def flops_per_token(self) -> Mapping[Convention, Fraction]:
        """Weight matrices, attention on the full square, and head; biases and lookups are no matrix products."""
        layers, width = self.layers, self.hidden_size
        in_layers = 72 * layers * width**2 + 12 * layers * width * self.sequence_length
        return {"own": Fraction(in_layers + 6 * self.vocab_size * width)}


class Stated(Record, frozen=True, kw_only=True):
    """One figure that the paper prints."""

    quantity: Quantity
    value: float
    source: str
    convention: Convention | None = None  # how its FLOPs are counted; None if the figure does not depend on FLOPs
    at_mfu: float | None = None  # the utilisation from which a stated time follows


class FurtherPhase(Record, frozen=True, kw_only=True):
    """Hours of a further phase that the paper adds to the bill."""

    phase: str
    gpu_hours: float


class LeftOut(Record, frozen=True, kw_only=True):
    """Costs that the bill leaves out, according to the paper."""

    what: str
    source: str


class PublishedRun(Record, frozen=True, kw_only=True):
    """A run as published. Its speed follows from tokens and hours, tokens per second, or steps; or it is unknown."""

    name: str
    source: str
    model: OwnConfig | SixN | Palm | GptBlock
    gpu: str | None = None
    num_gpus: int | None = None
    tokens: int | None = None
    gpu_hours: float | None = None
    tokens_per_second: float | None = None  # of all GPUs
    tokens_per_step: int | None = None
    seconds_per_step: float | None = None
    price_usd_per_hour: float | None = None
    further_hours: tuple[FurtherPhase, ...] = ()
    left_out: LeftOut | None = None
    stated: tuple[Stated, ...] = ()
    note: str | None = None

    @property
    def tokens_per_gpu_second(self) -> Fraction | None:
        """Tokens per second of one GPU, exact; None if the speed is unknown."""
        if self.tokens is not None and self.gpu_hours is not None:
            return self.tokens / (exactly(self.gpu_hours) * SECONDS_PER_HOUR)
        if self.num_gpus is None:
            return None
        if self.tokens_per_second is not None:
            return exactly(self.tokens_per_second) / self.num_gpus
        if self.tokens_per_step is not None and self.seconds_per_step is not None:
            return self.tokens_per_step / exactly(self.seconds_per_step) / self.num_gpus
        return None

    @property
    def all_gpu_hours(self) -> Fraction | None:
        """GPU-hours of the run and its further phases, exact; None if `gpu_hours` is None."""
        if self.gpu_hours is None:
            return None
        return exactly(self.gpu_hours) + sum(exactly(phase.gpu_hours) for phase in self.further_hours)


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """A stated figure, and our value for it."""

    quantity: Quantity
    convention: Convention | None
    stated: float
    ours: float
    relative_difference: float  # ours / stated - 1
    source: str


class ExaminedRun(Tidy, frozen=True, kw_only=True):
    """A published run with this project's numbers beside it."""

    name: str
    source: str
    counted_by: str  # "measured" for a config of this project, else the paper's formula
    config: str | None
    sequence_length: int | None
    gpu: str | None
    num_gpus: int | None
    tokens: int | None
    gpu_hours: float | None
    training_flops_per_token: Mapping[Convention, int]  # rounded up
    implied_mfu: tuple[ImpliedMfu, ...]  # empty if no speed or no GPU is published
    figures: tuple[Figure, ...]
    note: str | None


@cache
def load_published_runs() -> tuple[PublishedRun, ...]:
    """The runs of `configs/published_runs.json`, in file order; the file is read on the first call."""
    runs = read_records("published_runs.json", tuple[PublishedRun, ...])
    check_names(runs)
    return runs


def examine_published_runs() -> tuple[ExaminedRun, ...]:
    """All published runs, examined; each config is measured once per sequence length."""
    return tuple(examine(run) for run in load_published_runs())


def examine(run: PublishedRun) -> ExaminedRun:
    """The run with FLOPs by convention, the MFU that its speed implies, and its stated figures worked out again."""
    spec: ModelSpec | None = None
    if isinstance(run.model, OwnConfig):
        spec = read_spec(run.model.config)
        flops_per_token = flops_by_convention(measure_published(run.model))
        counted_by = "measured"
    else:
        flops_per_token = run.model.flops_per_token()
        counted_by = run.model.formula
    speed = run.tokens_per_gpu_second
    implied: tuple[ImpliedMfu, ...] = ()
    if speed is not None and run.gpu is not None:
        implied = implied_mfus(flops_per_token, run.tokens, speed, find_gpu(run.gpu))
    return ExaminedRun(
        name=run.name,
        source=run.source,
        counted_by=counted_by,
        config=run.model.config if isinstance(run.model, OwnConfig) else None,
        sequence_length=None if isinstance(run.model, SixN) else run.model.sequence_length,
        gpu=run.gpu,
        num_gpus=run.num_gpus,
        tokens=run.tokens,
        gpu_hours=run.gpu_hours,
        training_flops_per_token={convention: ceil(flops) for convention, flops in flops_per_token.items()},
        implied_mfu=implied,
        figures=tuple(_figure(stated, run, flops_per_token, spec) for stated in run.stated),
        note=run.note,
    )


@cache
def measure_published(model: OwnConfig) -> Analysis:
    """The analysis of the model at the sequence length of its training."""
    return analyze(model.config, Setup(sequence_length=model.sequence_length), step=False)


def _figure(
    stated: Stated, run: PublishedRun, flops_per_token: Mapping[Convention, Fraction], spec: ModelSpec | None
) -> Figure:
    flops = Fraction(0) if stated.convention is None else flops_per_token[stated.convention]
    ours = _ours(stated, run, flops, spec)
    return Figure(
        quantity=stated.quantity,
        convention=stated.convention,
        stated=stated.value,
        ours=float(ours),
        relative_difference=float(ours / exactly(stated.value) - 1),
        source=stated.source,
    )


def _ours(stated: Stated, run: PublishedRun, flops: Fraction, spec: ModelSpec | None) -> Fraction:
    """The stated quantity, computed from the published inputs and our FLOPs per token."""
    quantity = stated.quantity
    if quantity == "gflop_per_token":
        return flops / 10**9
    if quantity == "kv_cache_kb_per_token":
        assert spec is not None
        return Fraction(kv_cache_bytes_per_token(spec), 10**3)
    if quantity in ("training_flops", "petaflop_days"):
        assert run.tokens is not None
        petaflop_day = 10**15 * SECONDS_PER_HOUR * HOURS_PER_DAY
        return flops * run.tokens / (1 if quantity == "training_flops" else petaflop_day)
    if quantity == "cost_usd":
        assert run.all_gpu_hours is not None and run.price_usd_per_hour is not None
        return run.all_gpu_hours * exactly(run.price_usd_per_hour)

    assert run.gpu is not None
    peak = find_gpu(run.gpu).peak_flop_per_s
    if quantity == "seconds_per_step":
        assert run.tokens_per_step is not None and run.num_gpus is not None and stated.at_mfu is not None
        return run.tokens_per_step * flops / (run.num_gpus * peak * exactly(stated.at_mfu))
    speed = run.tokens_per_gpu_second
    assert speed is not None
    if quantity == "mfu":
        return flops * speed / peak
    if quantity == "tflop_per_s":
        return flops * speed / 10**12
    if quantity == "gpu_hours_per_trillion_tokens":
        return 10**12 / (speed * SECONDS_PER_HOUR)
    assert quantity == "tokens_per_day" and run.num_gpus is not None
    return speed * run.num_gpus * SECONDS_PER_HOUR * HOURS_PER_DAY
