"""What a run costs, and how long it takes, at other utilisations and prices than those of its outcomes.

GPU-hours = hours of the outcome x its MFU / MFU,    cost = GPU-hours x price
"""

from collections.abc import Sequence

import msgspec

from counting.cost.budget import HOURS_PER_DAY
from counting.cost.run import GpuRun, TrainingRun

POINTS_OF_A_BILL = 41
LEAST_MFU, MOST_MFU = 0.2, 0.7  # shown, unless an outcome is beyond
BEYOND = 1.15  # times an outcome's MFU, where it is
MOST_OF_THE_PRICE = 2.0


class BillCurves(msgspec.Struct, frozen=True, kw_only=True):
    """A run on one kind of GPU over a range of utilisations, and over a range of prices at one of them.

    `days` is None without a number of GPUs. `prices` and `costs_at_prices` are the ends of a straight line through
    nothing, at the MFU `priced_at`: that of the middle outcome.
    """

    model: str
    gpu: str
    mfus: tuple[float, ...]
    gpu_hours: tuple[float, ...]
    costs_usd: tuple[float, ...]
    days: tuple[float, ...] | None
    priced_at: float
    prices_usd_per_hour: tuple[float, ...]
    costs_at_prices_usd: tuple[float, ...]


def bill_curves(runs: Sequence[TrainingRun]) -> tuple[BillCurves, ...]:
    """The curves of each run on each of its GPUs, all over the same ranges."""
    outcomes = [outcome for run in runs for on_gpu in run.gpus for outcome in on_gpu.outcomes]
    low = min(LEAST_MFU, *(outcome.mfu / BEYOND for outcome in outcomes))
    high = min(1.0, max(MOST_MFU, *(outcome.mfu * BEYOND for outcome in outcomes)))
    mfus = [low + (high - low) * point / (POINTS_OF_A_BILL - 1) for point in range(POINTS_OF_A_BILL)]
    dearest = MOST_OF_THE_PRICE * max(on_gpu.price_usd_per_hour for run in runs for on_gpu in run.gpus)
    return tuple(_curves(run, on_gpu, mfus, dearest) for run in runs for on_gpu in run.gpus)


def _curves(run: TrainingRun, on_gpu: GpuRun, mfus: Sequence[float], dearest: float) -> BillCurves:
    middle = on_gpu.outcomes[len(on_gpu.outcomes) // 2]
    hours = [middle.gpu_hours * (middle.mfu / mfu) for mfu in mfus]
    number = on_gpu.num_gpus
    return BillCurves(
        model=run.model,
        gpu=on_gpu.gpu,
        mfus=tuple(mfus),
        gpu_hours=tuple(hours),
        costs_usd=tuple(each * on_gpu.price_usd_per_hour for each in hours),
        days=None if number is None else tuple(each / number / HOURS_PER_DAY for each in hours),
        priced_at=middle.mfu,
        prices_usd_per_hour=(0.0, dearest),
        costs_at_prices_usd=(0.0, middle.gpu_hours * dearest),
    )
