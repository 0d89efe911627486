"""Training FLOPs per token of an analysed model, under each of the conventions that papers count by.

Training costs three forward passes (`counting.counts.model_flops`); nothing is recomputed. Legend: N active parameters,
those one token uses; N' the same without the input embedding, which is looked up and multiplies nothing (where
embedding and head are one matrix, it is the head, and N' = N); S sequence length.

    6N                      6 N: Kaplan et al. 2020 (arXiv 2001.08361), §2.1
    6N_full_attention       6 N' + attention's products on the full S x S square, in the manner of Chowdhery et al.
                            2022 (arXiv 2204.02311), appendix B, whose N has the embedding in it
    6N_causal_attention     6 N' + half of those (within windows): "Insights into DeepSeek-V3" (ISCA 2025), table 2
    own                     3 x the measured forward pass, attention as its kernels run it (the full square, or a
                            window's band), and multi-token prediction where the setup trains it
"""

from collections.abc import Mapping
from fractions import Fraction
from typing import Literal

from counting.analysis import Analysis
from counting.cost.scaling_laws import FLOPS_PER_PARAMETER_AND_TOKEN
from counting.counts import AttentionCore, model_flops

Convention = Literal["6N", "6N_full_attention", "6N_causal_attention", "own"]


def trains_mtp(analysis: Analysis) -> bool:
    """Whether multi-token prediction is part of training."""
    return analysis.setup.mtp is True


def trained_parameters(analysis: Analysis) -> int:
    """What the optimiser updates: the main model, and multi-token prediction where it is trained."""
    return analysis.parameters.total + trains_mtp(analysis) * analysis.parameters.mtp


def training_flops_per_token(analysis: Analysis) -> Fraction:
    """The model's own count, exact."""
    return _per_token(analysis, analysis.forward_flops + trains_mtp(analysis) * analysis.mtp_forward_flops)


def main_attention_core(analysis: Analysis) -> AttentionCore:
    """FLOPs of the main model's attention core, of one forward pass."""
    return sum((layer.attention_core_flops * layer.count for layer in analysis.layers), AttentionCore())


def flops_by_convention(analysis: Analysis) -> Mapping[Convention, Fraction]:
    """Training FLOPs per token under each convention, exact; multi-token prediction is in `own` alone."""
    core = main_attention_core(analysis)
    matrices = FLOPS_PER_PARAMETER_AND_TOKEN * multiplied_parameters(analysis)
    return {
        "6N": Fraction(FLOPS_PER_PARAMETER_AND_TOKEN * analysis.parameters.active),
        "6N_full_attention": matrices + _per_token(analysis, core.full_square),
        "6N_causal_attention": matrices + _per_token(analysis, core.causal),
        "own": training_flops_per_token(analysis),
    }


def multiplied_parameters(analysis: Analysis) -> int:
    """N': the active parameters without the input embedding, which stays where it is the head too."""
    tied = not analysis.parameters.by_component["lm_head"]
    return analysis.parameters.active if tied else analysis.parameters.active_without_embedding


def _per_token(analysis: Analysis, forward_flops: int) -> Fraction:
    """Of training, from a forward pass over one micro-batch."""
    return Fraction(model_flops(forward_flops), analysis.setup.tokens)
