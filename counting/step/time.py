"""How long one training step takes on a cluster: the result. Torch-free."""

from typing import Literal

import msgspec

from counting.records.tidy import Tidy

NO_TIME_BY_FORMULA = (
    "How long a step takes is not worked out: by Megatron-LM's rules there is an estimate of memory by formula, and no "
    "step is run whose ops could be timed."
)

AtRateOfProducts = Literal["attention", "experts"]
# The beginning of an assumption without which the figure may be far off: the first screen says it too.
HELD_TO_BOUND = "The scale is held to the bound"

# `estimate`: from the catalogue's rates; `calibrated`: scaled by steps that the user has measured.
TimeBasis = Literal["estimate", "calibrated"]


class TimeBreakdown(msgspec.Struct, frozen=True, kw_only=True):
    """Where the time goes, in seconds, on the rank of the pipeline with the most work; the parts sum to the step.

    Products slow down beside collectives: that time is in the part of what is slowed.
    """

    products: float  # matrix products, those of experts too
    attention: float  # fused attention kernels
    memory_bound: float  # ops by bytes: elementwise, norms, gathers; and the launches of all ops, of products too
    communication: dict[str, float]  # exposed, by axis
    bubble: float  # waiting for other stages
    optimizer: float  # clipping and update

    @property
    def total(self) -> float:
        """The seconds of the step."""
        parts = (self.products, self.attention, self.memory_bound, self.bubble, self.optimizer)
        return sum(parts) + sum(self.communication.values())


class NotTimed(msgspec.Struct, frozen=True, kw_only=True):
    """A GPU on which it is not worked out how long a step takes, and why, in words without a full stop."""

    gpu: str
    reason: str
    remedy: str = ""  # what to give so that it is; empty if nothing helps, or if the reason says it


class StepTime(Tidy, frozen=True, kw_only=True):
    """One step on one kind of GPU. `seconds` is the estimate or the calibrated prediction, as `basis` says.

    `bound_seconds` is what no run beats: best products, no launch, all communication hidden. `low_seconds` to
    `high_seconds` is the band: of an estimate the errors of 8 of 10 published runs, of a calibrated prediction the
    spread of the user's own rows; never below the bound.
    """

    gpu: str
    basis: TimeBasis
    seconds: float
    bound_seconds: float
    low_seconds: float
    high_seconds: float
    tokens_per_second_per_gpu: float
    mfu: float  # model FLOPs by the own count / the dense 16-bit peak
    hfu: float  # FLOPs as executed, by the full square of attention / the same peak
    bound_mfu: float  # of a step as long as the bound: no run's is larger
    breakdown: TimeBreakdown
    power_limit_watts: float | None = None  # of the board, that the cluster sets; None: the board's own
    rates_of: str  # the GPU whose rates these are; another one of its family where the catalogue has none
    # What runs as fast as large matrix products, because no rates of its own are known: too fast.
    as_products: tuple[AtRateOfProducts, ...] = ()
    assumptions: tuple[str, ...]

    @property
    def mfus(self) -> tuple[float, ...]:
        """The MFU at the slow end of the band, of `seconds`, and at the fast end; one number if all are the same."""
        seconds = dict.fromkeys((self.high_seconds, self.seconds, self.low_seconds))
        return tuple(self.mfu * (self.seconds / each) for each in seconds)
