"""What makes one GPU slower than the catalogue says: a power limit below its board's, and being the slowest of many."""

from statistics import NormalDist


def power_factor(limit_watts: float | None, board_watts: float | None, exponent: float | None) -> float:
    """The share of its rate that arithmetic keeps at a power limit: (limit / board's)^exponent, at most 1.

    Matrix products draw the most power, so a limit lowers the clock while they run; copies stay at the memory's speed.
    1 without a limit, and where the board's limit or the exponent is unknown.
    """
    if limit_watts is None or board_watts is None or exponent is None:
        return 1.0
    return float(min(limit_watts / board_watts, 1.0) ** exponent)


def expected_maximum(number: int) -> float:
    """The expected largest of `number` independent standard normal numbers, in standard deviations above the mean.

    Blom's approximation, the quantile (n - 3/8) / (n + 1/4) (Blom 1958, "Statistical Estimates and Transformed
    Beta-Variables", pp. 68-75; Royston 1982, Algorithm AS 177); the error is below 0.03.
    """
    return NormalDist().inv_cdf((number - 0.375) / (number + 0.25))


def slowest_factor(spread: float | None, number: int) -> float:
    """How much longer the slowest of `number` equal GPUs takes than the average one.

    Their times are taken as normal with the relative standard deviation `spread`: 1 + spread x `expected_maximum`.
    Ranks wait for each other in collectives, so the slowest sets the pace of all.
    """
    return 1.0 if spread is None else 1.0 + spread * expected_maximum(number)
