"""What a training budget in US dollars buys: the best GPU, its FLOPs, and the model and tokens to spend them on.

    GPU-hours = budget / price,    C = GPU-hours x 3600 s x peak FLOP/s x MFU

The model FLOPs utilisation (MFU; Chowdhery et al. 2022, arXiv 2204.02311, §4.1) is against the dense peak of the
training dtype. The cost does not include networking, storage, restarts and failed runs.
"""

import os
from collections.abc import Mapping, Sequence
from fractions import Fraction

import msgspec

from counting.cost.hardware import Gpu, find_gpu, load_gpus
from counting.cost.scaling_laws import (
    DEFAULT_LAW,
    OptimumIntervals,
    ScalingLaw,
    compute_optimum,
    extrapolates,
    find_law,
    optimum_intervals,
    orders_beyond,
    predicted_loss,
)
from counting.cost.scaling_laws.wrong_choice import LawsApart, laws_apart
from counting.records.tidy import Tidy
from torch_models.errors import ArgumentError

SECONDS_PER_HOUR = 3600
HOURS_PER_DAY = 24
DEFAULT_GPUS = ("A100", "V100", "T4")
DEFAULT_MFU = 0.4
SMALLEST_DOLLARS = 0.01
SMALLEST_MFU = 1e-06
LARGEST_DOLLARS = 1e15  # ten times what the world produces in a year
DOLLARS_RULE = f"must be a number of US dollars from {SMALLEST_DOLLARS} to {LARGEST_DOLLARS:g}"


class GpuOption(msgspec.Struct, frozen=True, kw_only=True):
    """What the whole budget buys on one kind of GPU."""

    gpu: str
    price_usd_per_hour: float
    peak_dense_tflop_per_s: float
    training_dtype: str  # the 16-bit format of the peak
    gpu_hours: float
    training_flops: int


class BudgetPlan(Tidy, frozen=True, kw_only=True):
    """The compute-optimal use of a budget, with its assumptions."""

    budget_usd: float
    mfu: float
    scaling_law: str
    law: ScalingLaw
    best_gpu: str  # the option with the most training FLOPs; the first one if several have as many
    gpu_hours: float
    training_flops: int  # rounded down to whole FLOPs
    optimal_parameters: int
    optimal_tokens: int
    tokens_per_parameter: float
    predicted_loss: float  # nats per token
    intervals: OptimumIntervals | None  # 95 %; None for a law without draws of a bootstrap
    extrapolated: bool  # N or D is outside the range of the runs that the law was fitted to
    orders_beyond: float  # by so many orders of magnitude
    apart: LawsApart  # the law and the published ones, at these FLOPs
    options: tuple[GpuOption, ...]
    num_gpus: int | None  # number of `best_gpu` used at the same time
    days: float | None  # `gpu_hours` on `num_gpus` GPUs; None without `num_gpus`
    # Only with the default GPUs: the catalogue's GPU that buys the most FLOPs, if it buys more than `best_gpu`.
    more_on: GpuOption | None


def plan_budget(
    budget_usd: float,
    *,
    gpus: Sequence[str | Gpu] | None = None,
    mfu: float = DEFAULT_MFU,
    scaling_law: str | os.PathLike[str] | ScalingLaw = DEFAULT_LAW.name,
    prices_usd_per_hour: Mapping[str, float] | None = None,
    num_gpus: int | None = None,
) -> BudgetPlan:
    """The best of `gpus` for `budget_usd`, and the compute-optimal N and D for the FLOPs that it buys.

    `gpus` contains names of catalogue entries or `Gpu` objects; if it is None, `DEFAULT_GPUS` are compared.
    `prices_usd_per_hour` maps GPU names to prices that replace or complete those of the catalogue. `scaling_law` is a
    name, the path of a law's file, or a law. Raises UserError for a budget outside 0.01 to 1e15 dollars, an MFU outside
    1e-6 to 1, no GPU or the same one twice, an unknown GPU or law, a file that is no law, a missing or invalid price,
    `num_gpus` below one, and a budget too small to train any model.
    """
    budget_usd = check_dollars(budget_usd)
    mfu = check_mfu(mfu)
    law = find_law(scaling_law)
    if num_gpus is not None:
        check_whole("num_gpus", num_gpus)
    chosen = priced_gpus(DEFAULT_GPUS if gpus is None else gpus, prices_usd_per_hour or {})
    options = tuple(_buy(gpu, price, budget_usd, mfu) for gpu, price in chosen)
    best = _most(options)
    optimum = compute_optimum(law, best.training_flops)
    return BudgetPlan(
        budget_usd=budget_usd,
        mfu=mfu,
        scaling_law=law.name,
        law=law,
        best_gpu=best.gpu,
        gpu_hours=best.gpu_hours,
        training_flops=best.training_flops,
        optimal_parameters=optimum.parameters,
        optimal_tokens=optimum.tokens,
        tokens_per_parameter=optimum.tokens / optimum.parameters,
        predicted_loss=predicted_loss(law, optimum.parameters, optimum.tokens),
        intervals=optimum_intervals(law, best.training_flops),
        extrapolated=extrapolates(law, optimum.parameters, optimum.tokens),
        orders_beyond=orders_beyond(law, optimum.parameters, optimum.tokens),
        apart=laws_apart(law, best.training_flops),
        options=options,
        num_gpus=num_gpus,
        days=None if num_gpus is None else days_on(num_gpus, exactly(budget_usd) / exactly(best.price_usd_per_hour)),
        more_on=_more_on_the_catalogue(best, budget_usd, mfu) if gpus is None else None,
    )


def _most(options: Sequence[GpuOption]) -> GpuOption:
    """The option with the most training FLOPs; the first one if several have as many."""
    return max(options, key=lambda option: option.training_flops)


def _more_on_the_catalogue(best: GpuOption, budget_usd: float, mfu: float) -> GpuOption | None:
    """The option with the most FLOPs among all GPUs with a catalogue price; None if `best` buys as many."""
    priced = [(gpu, gpu.price_usd_per_hour) for gpu in load_gpus()]
    most = _most([_buy(gpu, price, budget_usd, mfu) for gpu, price in priced if price is not None])
    return most if most.training_flops > best.training_flops else None


def days_on(num_gpus: int, hours: Fraction) -> float:
    """The days that `num_gpus` GPUs take for `hours` GPU-hours in total."""
    return float(hours / num_gpus / HOURS_PER_DAY)


def priced_gpus(gpus: Sequence[str | Gpu], prices: Mapping[str, float]) -> list[tuple[Gpu, float]]:
    """Each GPU with its price in dollars per hour: the one in `prices`, else the GPU's own.

    Raises ArgumentError for no GPU, a GPU named twice, and a missing or invalid price.
    """
    found = [gpu if isinstance(gpu, Gpu) else find_gpu(gpu) for gpu in gpus]
    if not found:
        raise ArgumentError("gpus", "", "name at least one GPU")
    considered = [gpu.name for gpu in found]
    lowered = [name.lower() for name in considered]
    for name in considered:
        if lowered.count(name.lower()) > 1:
            raise ArgumentError("gpus", ",".join(gpu_names(gpus)), f"names {name} twice")
    given: dict[str, float] = {}
    for name, price in prices.items():
        spelt = name.strip().lower()
        gpu = found[lowered.index(spelt)] if spelt in lowered else find_gpu(name, "prices_usd_per_hour")
        if gpu.name not in considered:
            rule = f"a price is given for {gpu.name}, but the GPUs considered are {', '.join(considered)}"
            raise ArgumentError("prices_usd_per_hour", name, rule)
        if gpu.name in given:
            raise ArgumentError("prices_usd_per_hour", ",".join(prices), f"give the price of {gpu.name} once")
        if not SMALLEST_DOLLARS <= number_or_nan(price) <= LARGEST_DOLLARS:
            raise ArgumentError("prices_usd_per_hour", f"{name}={price}", DOLLARS_RULE)
        given[gpu.name] = float(price)
    return [(gpu, _price(gpu, given)) for gpu in found]


def gpu_names(gpus: Sequence[str | Gpu]) -> list[str]:
    """The names of `gpus`, as given."""
    return [gpu.name if isinstance(gpu, Gpu) else gpu for gpu in gpus]


def _price(gpu: Gpu, given: Mapping[str, float]) -> float:
    """The price in dollars per hour; raises ArgumentError if there is none."""
    price = given.get(gpu.name, gpu.price_usd_per_hour)
    if price is None:
        rule = f"no price is known for {gpu.name}: give one in US dollars per hour"
        raise ArgumentError("prices_usd_per_hour", gpu.name, rule)
    return price


def _buy(gpu: Gpu, price: float, budget_usd: float, mfu: float) -> GpuOption:
    """The hours and FLOPs that the budget buys at `price` dollars per hour."""
    gpu_hours = exactly(budget_usd) / exactly(price)
    training_flops = gpu_hours * SECONDS_PER_HOUR * gpu.peak_flop_per_s * exactly(mfu)
    return GpuOption(
        gpu=gpu.name,
        price_usd_per_hour=price,
        peak_dense_tflop_per_s=gpu.peak_dense_tflop_per_s,
        training_dtype=gpu.training_dtype,
        gpu_hours=float(gpu_hours),
        training_flops=int(training_flops),
    )


def exactly(value: float) -> Fraction:
    """`value` as the exact fraction of its decimal text: 0.4 gives 2/5, not the nearest binary fraction."""
    return Fraction(repr(value))


def check_dollars(value: object, field: str = "budget_usd") -> float:
    """`value` in US dollars as a float; raises ArgumentError for `field` if it is not between 0.01 and 1e15."""
    if not SMALLEST_DOLLARS <= number_or_nan(value) <= LARGEST_DOLLARS:
        raise ArgumentError(field, value, DOLLARS_RULE)
    return float(number_or_nan(value))


def check_mfu(value: object, field: str = "mfu") -> float:
    """`value`, an MFU, as a float; raises ArgumentError for `field` if it is not between 1e-6 and 1."""
    if not SMALLEST_MFU <= number_or_nan(value) <= 1:
        raise ArgumentError(field, value, f"must be a number from {SMALLEST_MFU} to 1")
    return float(number_or_nan(value))


def check_whole(field: str, value: object) -> None:
    """Raises ArgumentError for `field` if `value` is not a whole number above 0."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ArgumentError(field, value, "must be a whole number, at least 1")


def number_or_nan(value: object) -> float:
    """`value` if it is a number, else NaN, for which every range check fails."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else float("nan")
