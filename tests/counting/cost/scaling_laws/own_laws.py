"""Laws of one's own, for tests."""

from counting.cost.scaling_laws import Constant, ScalingLaw


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
