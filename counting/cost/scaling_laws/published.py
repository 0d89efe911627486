"""The published laws, by name."""

from math import exp

from counting.cost.scaling_laws.law import Constant, ScalingLaw
from torch_models.errors import ArgumentError

# Over 400 models of 70M to 16B parameters on 5 to 500 billion tokens (Hoffmann et al. 2022, abstract and §1).
HOFFMANN_PARAMETERS = (70e6, 16e9)
HOFFMANN_TOKENS = (5e9, 500e9)

LAWS = (
    ScalingLaw(
        name="course",
        irreducible_loss=Constant(value=1.69),
        parameter_coefficient=Constant(value=406.4),
        token_coefficient=Constant(value=410.7),
        parameter_exponent=Constant(value=0.34),
        token_exponent=Constant(value=0.29),
        source="this project's default: Hoffmann et al. 2022, eq. 10, with a token exponent of 0.29 (printed: 0.28)",
        fitted_parameters=HOFFMANN_PARAMETERS,
        fitted_tokens=HOFFMANN_TOKENS,
    ),
    ScalingLaw(
        name="hoffmann-2022",
        irreducible_loss=Constant(value=1.69),
        parameter_coefficient=Constant(value=406.4),
        token_coefficient=Constant(value=410.7),
        parameter_exponent=Constant(value=0.34),
        token_exponent=Constant(value=0.28),
        source="Hoffmann et al. 2022 (arXiv 2203.15556), eq. 10, as printed",
        fitted_parameters=HOFFMANN_PARAMETERS,
        fitted_tokens=HOFFMANN_TOKENS,
    ),
    ScalingLaw(
        name="hoffmann-2022-unrounded",
        irreducible_loss=Constant(value=exp(0.5267228)),
        parameter_coefficient=Constant(value=exp(6.0073404)),
        token_coefficient=Constant(value=exp(6.0179186)),
        parameter_exponent=Constant(value=0.33917084),
        token_exponent=Constant(value=0.2849083),
        source="Hoffmann et al. 2022, constants of the paper's source, quoted by Besiroglu et al. 2024",
        fitted_parameters=HOFFMANN_PARAMETERS,
        fitted_tokens=HOFFMANN_TOKENS,
    ),
    ScalingLaw(
        name="besiroglu-2024",
        irreducible_loss=Constant(value=1.8172),
        parameter_coefficient=Constant(value=482.01),
        token_coefficient=Constant(value=2085.43),
        parameter_exponent=Constant(value=0.3478),
        token_exponent=Constant(value=0.3658),
        source="Besiroglu et al. 2024 (arXiv 2404.10102), refitted to a subset of the runs of Hoffmann et al.",
        fitted_parameters=HOFFMANN_PARAMETERS,
        fitted_tokens=HOFFMANN_TOKENS,
    ),
)

DEFAULT_LAW = LAWS[0]


def find_law(name: str) -> ScalingLaw:
    """The law called `name`, in upper or lower case; raises an ArgumentError that lists the known ones."""
    for law in LAWS:
        if isinstance(name, str) and law.name == name.strip().lower():
            return law
    known = ", ".join(law.name for law in LAWS)
    raise ArgumentError("scaling_law", name, f"is not known: choose from {known}")
