"""What part of a model's weights and FLOPs is not of its vocabulary: laws that leave that out are converted by it."""

from typing import Any

import msgspec

from counting.analysis import Analysis
from counting.cost.conventions import main_attention_core
from counting.cost.design.families.llama import LLAMA_DESIGNS
from counting.cost.scaling_laws.allocation import Allocation, AllocationLaw, allocate
from counting.cost.scaling_laws.optimum import FLOPS_PER_PARAMETER_AND_TOKEN
from counting.counts import model_flops_per_token

OF_THE_VOCABULARY = ("word_embedding", "positional_embedding", "lm_head")
MOST_ROUNDS = 5  # of designing a model for a law's N; the share changes little with N, and three rounds are usual


class LawShape(msgspec.Struct, frozen=True, kw_only=True):
    """The counts of a dense model that laws differ in."""

    model: str
    designed: bool  # for the law's N; else it is the given model's, taken to have the same shares at every N
    parameters: int
    non_embedding_parameters: int  # without embeddings and head
    attention_flops_per_token: float  # training, attention's products on the full square
    sequence_length: int

    @property
    def non_embedding_flops_per_token(self) -> float:
        """M of DeepSeek LLM 2024 (arXiv 2401.02954, eq. 2), training: 6 N' + attention's full square.

        The paper writes 72 layers x width^2 + 12 layers x width x sequence length; its first term is 6 N' of a model
        whose layers have 12 width^2 weights.
        """
        return FLOPS_PER_PARAMETER_AND_TOKEN * self.non_embedding_parameters + self.attention_flops_per_token

    def share(self, law: AllocationLaw) -> float:
        """The FLOPs a token that `law` counts / 6 N; 1 for a law that says D."""
        six_n = FLOPS_PER_PARAMETER_AND_TOKEN * self.parameters
        if law.gives == "non_embedding_parameters":
            return FLOPS_PER_PARAMETER_AND_TOKEN * self.non_embedding_parameters / six_n
        return self.non_embedding_flops_per_token / six_n if law.gives == "non_embedding_flops_per_token" else 1.0


def shape_of(analysis: Analysis) -> LawShape | None:
    """The shape of an analysed model; None for a mixture of experts, as these laws are of dense models."""
    parameters = analysis.parameters
    if parameters.total != parameters.active:
        return None
    vocabulary = sum(parameters.by_component[component] for component in OF_THE_VOCABULARY)
    attention = model_flops_per_token(main_attention_core(analysis).full_square, analysis.setup.tokens)
    return LawShape(
        model=analysis.name,
        designed=False,
        parameters=parameters.total,
        non_embedding_parameters=parameters.total - vocabulary,
        attention_flops_per_token=float(attention),
        sequence_length=analysis.sequence_length,
    )


def designed_shape(parameters: float) -> LawShape:
    """The shape of a Llama-style model designed for `parameters`, or for the nearest number that a design may have."""
    architecture = LLAMA_DESIGNS.design(round(min(max(parameters, LLAMA_DESIGNS.smallest), LLAMA_DESIGNS.largest)))
    config: dict[str, Any] = architecture.config
    vocabularies = 1 if config["tie_word_embeddings"] else 2
    width = config["num_attention_heads"] * config["head_dim"]
    return LawShape(
        model=f"{config['num_hidden_layers']} layers x {config['hidden_size']}",
        designed=True,
        parameters=architecture.parameters,
        non_embedding_parameters=architecture.parameters - vocabularies * config["vocab_size"] * config["hidden_size"],
        # Twice 2 S x width multiply-adds and adds forward (scores, and values), three times that in training.
        attention_flops_per_token=12.0 * config["num_hidden_layers"] * width * config["max_position_embeddings"],
        sequence_length=config["max_position_embeddings"],
    )


def allocate_in_shape(
    law: AllocationLaw, training_flops: float, parameters: int, given: LawShape | None
) -> tuple[Allocation, LawShape | None]:
    """What `law` says, converted by the shape `given`, or by that of a model designed for the law's own N.

    The design is repeated from N = `parameters` until N stays within a thousandth. A law that says D needs no shape.
    """
    if law.gives == "tokens":
        return allocate(law, training_flops, 1.0), None
    if given is not None:
        return allocate(law, training_flops, given.share(law)), given
    for _ in range(MOST_ROUNDS):
        shape = designed_shape(parameters)
        found = allocate(law, training_flops, shape.share(law))
        settled = abs(found.parameters / parameters - 1) < 1e-3
        parameters = found.parameters
        if settled:
            break
    return found, shape
