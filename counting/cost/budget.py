"""What a training budget in US dollars buys: the best GPU, its FLOPs, and the model and tokens to spend them on.

    GPU-hours = budget / price,    C = GPU-hours x 3600 s x peak FLOP/s x MFU

The model FLOPs utilisation (MFU; Chowdhery et al. 2022, arXiv 2204.02311, §4.1) is against the dense peak of the
training dtype. Networking, storage, restarts and failed runs are not in the bill.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction

import msgspec

from counting.cost.hardware import Gpu, find_gpu
from counting.cost.scaling_laws import DEFAULT_LAW, compute_optimum, extrapolates, find_law, predicted_loss
from torch_models.errors import ConfigError, UserError

SECONDS_PER_HOUR = 3600
DEFAULT_GPUS = ("A100", "V100", "T4")
DEFAULT_MFU = 0.4
SMALLEST_DOLLARS = 0.01
SMALLEST_MFU = 1e-06
LARGEST_DOLLARS = 1e15  # ten times what the world produces in a year


class GpuOption(msgspec.Struct, frozen=True, kw_only=True):
    """What the whole budget buys on one kind of GPU."""

    gpu: str
    price_usd_per_hour: float
    peak_dense_tflop_per_s: float
    training_dtype: str  # of the peak
    gpu_hours: float
    training_flops: int


class BudgetPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The compute-optimal use of a budget, with the assumptions it rests on."""

    budget_usd: float
    mfu: float
    scaling_law: str
    best_gpu: str  # the option with the most training FLOPs; of equals, the one named first
    gpu_hours: float
    training_flops: int  # whole ones; the rest of the money buys no further
    optimal_parameters: int
    optimal_tokens: int
    tokens_per_parameter: float
    predicted_loss: float  # nats per token
    extrapolated: bool  # beyond the model sizes or token counts that the law was fitted to
    options: tuple[GpuOption, ...]


def plan_budget(
    budget_usd: float,
    *,
    gpus: Sequence[str] = DEFAULT_GPUS,
    mfu: float = DEFAULT_MFU,
    scaling_law: str = DEFAULT_LAW.name,
    prices_usd_per_hour: Mapping[str, float] | None = None,
) -> BudgetPlan:
    """The best of `gpus` for `budget_usd`, and the N and D that the scaling law makes of its FLOPs.

    `prices_usd_per_hour` replaces or completes the catalogue's prices, by GPU name. Raises UserError for a budget
    outside 0.01 to 1e15 dollars, an MFU outside (0, 1], no GPU or the same one twice, an unknown GPU or law, and a
    GPU without a price.
    """
    budget_usd = check_dollars(budget_usd, "training_budget")
    mfu = check_mfu(mfu)
    law = find_law(scaling_law)
    chosen = priced_gpus(gpus, prices_usd_per_hour or {})
    options = tuple(_buy(gpu, price, budget_usd, mfu) for gpu, price in chosen)
    best = max(options, key=lambda option: option.training_flops)
    optimum = compute_optimum(law, best.training_flops)
    return BudgetPlan(
        budget_usd=budget_usd,
        mfu=mfu,
        scaling_law=law.name,
        best_gpu=best.gpu,
        gpu_hours=best.gpu_hours,
        training_flops=best.training_flops,
        optimal_parameters=optimum.parameters,
        optimal_tokens=optimum.tokens,
        tokens_per_parameter=optimum.tokens / optimum.parameters,
        predicted_loss=predicted_loss(law, optimum.parameters, optimum.tokens),
        extrapolated=extrapolates(law, optimum.parameters, optimum.tokens),
        options=options,
    )


def priced_gpus(names: Sequence[str], prices: Mapping[str, float]) -> list[tuple[Gpu, float]]:
    """Each GPU with its price in dollars per hour: the one given, else the catalogue's."""
    gpus = [find_gpu(name) for name in names]
    if not gpus:
        raise UserError("gpus: name at least one GPU")
    considered = [gpu.name for gpu in gpus]
    for name in considered:
        if considered.count(name) > 1:
            raise ConfigError("gpus", ",".join(names), f"names {name} twice")
    given: dict[str, float] = {}
    for name, price in prices.items():
        gpu = find_gpu(name)
        if gpu.name not in considered:
            raise UserError(f"a price is given for {gpu.name}, but the GPUs considered are {', '.join(considered)}")
        if gpu.name in given:
            raise ConfigError("gpu_prices", ",".join(prices), f"give the price of {gpu.name} once")
        given[gpu.name] = check_dollars(price, f"price of {gpu.name} per hour")
    return [(gpu, _price(gpu, given)) for gpu in gpus]


def _price(gpu: Gpu, given: Mapping[str, float]) -> float:
    """The price in dollars per hour, or an error that asks for one."""
    price = given.get(gpu.name, gpu.price_usd_per_hour)
    if price is None:
        raise UserError(
            f"no price is known for {gpu.name}: give one in US dollars per hour, as --gpu_prices {gpu.name}=2.50"
        )
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
    """The number as it is written: 0.4 is two fifths, not the nearest binary fraction."""
    return Fraction(repr(value))


# --- What a user types -----------------------------------------------------------------------------------------


def check_dollars(value: object, field: str) -> float:
    """An amount of US dollars between a cent and 10^15, as a float; `field` is what the error calls it."""
    rule = f"must be a number of US dollars from {SMALLEST_DOLLARS} to {LARGEST_DOLLARS:g}"
    return _check_number(value, field, rule, SMALLEST_DOLLARS <= _number(value) <= LARGEST_DOLLARS)


def check_mfu(value: object, field: str = "mfu") -> float:
    """A model FLOPs utilisation between a millionth and 1, as a float."""
    return _check_number(
        value, field, f"must be a number from {SMALLEST_MFU} to 1", SMALLEST_MFU <= _number(value) <= 1
    )


def parse_dollars(text: str, field: str = "--training_budget") -> float:
    """The amount that `text` spells; not a number, NaN, infinite, zero, negative: an error that names the flag."""
    return check_dollars(_parse_float(text), field)


def parse_mfu(text: str, field: str = "--mfu") -> float:
    """The utilisation that `text` spells."""
    return check_mfu(_parse_float(text), field)


def parse_gpus(text: str, field: str = "--gpus") -> tuple[str, ...]:
    """GPU names, as the catalogue spells them, from "H100,H200"."""
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise ConfigError(field, text, "must be GPU names separated by commas, as H100,H200")
    return tuple(find_gpu(name).name for name in names)


def parse_prices(text: str, field: str = "--gpu_prices") -> dict[str, float]:
    """Dollars per hour by GPU, from "A100=1.50,L4=0.70"."""
    prices: dict[str, float] = {}
    for item in text.split(","):
        name, equals, price = item.partition("=")
        if not equals:
            raise ConfigError(field, text, "must be GPU=price pairs separated by commas, as A100=1.50,L4=0.70")
        gpu = find_gpu(name).name
        if gpu in prices:
            raise ConfigError(field, text, f"give the price of {gpu} once")
        prices[gpu] = parse_dollars(price, f"{field} {gpu}")
    return prices


def _parse_float(text: str) -> float | str:
    """The number that `text` spells, else the text itself, which no check lets pass.

    Python's float also takes digits of other scripts, and underscores: 1_0 for 10.
    """
    try:
        return float(text) if text.isascii() and "_" not in text else text
    except ValueError:
        return text


def _number(value: object) -> float:
    """The value where it is a number, else NaN, which fails every comparison."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else float("nan")


def _check_number(value: object, field: str, rule: str, holds: bool) -> float:
    if not holds:
        raise ConfigError(field, value, rule)
    return float(_number(value))
