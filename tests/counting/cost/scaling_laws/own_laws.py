"""Laws of one's own, for tests."""

from random import Random

from counting.cost.scaling_laws import Constant, ScalingLaw

COURSE = (1.69, 406.4, 410.7, 0.34, 0.29)


def law_of(
    constants: tuple[float, float, float, float, float],
    *draws: tuple[float, float, float, float, float],
    name: str = "own",
) -> ScalingLaw:
    """A law with E, A, B, alpha, beta and these draws of a bootstrap."""
    irreducible, of_parameters, of_tokens, alpha, beta = constants
    return ScalingLaw(
        name=name,
        irreducible_loss=Constant(value=irreducible),
        parameter_coefficient=Constant(value=of_parameters),
        token_coefficient=Constant(value=of_tokens),
        parameter_exponent=Constant(value=alpha),
        token_exponent=Constant(value=beta),
        source="a test",
        fitted_parameters=(1e8, 1e10),
        fitted_tokens=(1e9, 1e12),
        bootstrap=draws,
    )


def draws_near(
    constants: tuple[float, float, float, float, float], count: int = 50
) -> list[tuple[float, float, float, float, float]]:
    """Draws whose constants are up to a tenth from the given ones."""
    random = Random(1)
    near = [[number * random.uniform(0.9, 1.1) for number in constants] for _ in range(count)]
    return [(e, a, b, alpha, beta) for e, a, b, alpha, beta in near]
