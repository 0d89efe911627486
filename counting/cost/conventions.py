"""Training FLOPs per token of an analysed model, under each convention that papers use.

Training costs three forward passes, an indexer's one (`counting.counts.model_flops`); recomputation is not counted.
Legend: N: active parameters, those that one token uses. N': N without the input embedding, which is a lookup and not a
multiplication (if embedding and head are one matrix, the head still multiplies, so N' = N). S: sequence length.

    6N                      6 N: Kaplan et al. 2020 (arXiv 2001.08361), §2.1
    6N_full_attention       6 N' + attention's products on the full S x S square, similar to Chowdhery et al.
                            2022 (arXiv 2204.02311), appendix B, whose N includes the embedding
    6N_causal_attention     6 N' + half of those products (within windows): "Insights into DeepSeek-V3" (ISCA
                            2025), table 2
    own                     3 x the measured forward pass, an indexer's once, with attention as its kernels run it
                            (the full square, or a window's band), and with multi-token prediction if the setup
                            trains it
"""

from collections.abc import Mapping
from fractions import Fraction
from typing import Literal

from counting.analysis import Analysis
from counting.cost.scaling_laws import FLOPS_PER_PARAMETER_AND_TOKEN
from counting.counts import FORWARD_ONLY, AttentionCore, model_flops_per_token

Convention = Literal["6N", "6N_full_attention", "6N_causal_attention", "own"]
FEWEST_FLOPS: Convention = "6N_causal_attention"  # counts what a causal kernel computes, and the norms' few weights


def trains_mtp(analysis: Analysis) -> bool:
    """Whether multi-token prediction is part of training."""
    return analysis.setup.mtp is True


def has_indexer(analysis: Analysis) -> bool:
    """Whether the model has an indexer, whose FLOPs count once and whose parameters are not trained."""
    return bool(analysis.forward_only_flops)


def trained_parameters(analysis: Analysis) -> int:
    """The number of parameters that the optimiser updates: main model, plus multi-token prediction if it is trained."""
    parameters, with_mtp = analysis.parameters, trains_mtp(analysis)
    return parameters.total - parameters.frozen + with_mtp * (parameters.mtp - parameters.mtp_frozen)


def untrained_parameters(analysis: Analysis) -> int:
    """The number of parameters that no gradient reaches, but that are there."""
    return analysis.parameters.frozen + trains_mtp(analysis) * analysis.parameters.mtp_frozen


def training_flops_per_token(analysis: Analysis) -> Fraction:
    """Training FLOPs per token under the convention `own`, exact."""
    trained = trains_mtp(analysis)
    forward = analysis.forward_flops + trained * analysis.mtp_forward_flops
    return _per_token(analysis, forward, analysis.forward_only_flops + trained * analysis.mtp_forward_only_flops)


def training_flops_by_component(analysis: Analysis) -> dict[str, Fraction]:
    """The parts of `training_flops_per_token`, exact; `mtp`, if it is trained, is one of them."""
    parts = {
        name: _per_token(analysis, flops, flops if name == FORWARD_ONLY else 0)
        for name, flops in analysis.forward_flops_by_component.items()
    }
    if not trains_mtp(analysis):
        return parts
    return {**parts, "mtp": _per_token(analysis, analysis.mtp_forward_flops, analysis.mtp_forward_only_flops)}


def main_attention_core(analysis: Analysis) -> AttentionCore:
    """FLOPs of the attention core in one forward pass of the main model, summed over its layers."""
    return sum((layer.attention_core_flops * layer.count for layer in analysis.layers), AttentionCore())


def flops_by_convention(analysis: Analysis) -> Mapping[Convention, Fraction]:
    """Training FLOPs per token under each convention, exact; only `own` includes multi-token prediction."""
    core = main_attention_core(analysis)
    matrices = FLOPS_PER_PARAMETER_AND_TOKEN * multiplied_parameters(analysis)
    return {
        "6N": Fraction(FLOPS_PER_PARAMETER_AND_TOKEN * analysis.parameters.active),
        "6N_full_attention": matrices + _per_token(analysis, core.full_square),
        "6N_causal_attention": matrices + _per_token(analysis, core.causal),
        "own": training_flops_per_token(analysis),
    }


def multiplied_parameters(analysis: Analysis) -> int:
    """N': the active parameters without the input embedding, or with it if it is tied to the head."""
    tied = not analysis.parameters.by_component["lm_head"]
    return analysis.parameters.active if tied else analysis.parameters.active_without_embedding


def _per_token(analysis: Analysis, forward_flops: int, forward_only: int = 0) -> Fraction:
    """Training FLOPs per token, from the FLOPs of a forward pass over one micro-batch."""
    return model_flops_per_token(forward_flops, analysis.setup.tokens, forward_only)
