"""A Llama-style model designed for a parameter count, and the tokens that a compute budget pays for on it.

The search is small and deterministic: the hidden sizes whose depth lies within the range of published models of that
size, and for each the SwiGLU widths near 8/3 of it with the depth that fits. counting.analytic counts them all.
"""

from collections.abc import Iterator
from itertools import count
from math import ceil, exp, floor, fsum, log

import msgspec

from counting.analytic import parameters as count_parameters
from counting.scaling_law import affordable_tokens, find_law, predicted_loss
from torch_models.errors import UserError
from torch_models.spec import GatedMLPSpec, GroupedQueryAttentionSpec, LayerSpec, ModelSpec, RotarySpec

SMALLEST_DESIGN = 10**8  # the smallest and largest published models of the table, give or take an order of magnitude
LARGEST_DESIGN = 10**13
LARGEST_RELATIVE_ERROR = 0.005

HEAD_DIM = 128
WIDTH_STEP = 256
SWIGLU_RATIO = 8 / 3
SWIGLU_TOLERANCE = 0.05
NORM_EPS = 1e-5


class Published(msgspec.Struct, frozen=True):
    """The depth and width of a published dense model."""

    name: str
    parameters: float
    hidden_size: int
    layers: int


# SmolLM2: config.json of HuggingFaceTB/SmolLM2. GPT-3: Brown et al. 2020 (arXiv 2005.14165), table 2.1. Qwen2.5:
# config.json of Qwen/Qwen2.5. Llama-1: Touvron et al. 2023 (arXiv 2302.13971), table 2; Llama-2 kept its shapes.
# Llama-3: Dubey et al. 2024 (arXiv 2407.21783), table 3; Llama-3.2: config.json. Gopher: Rae et al. 2021
# (arXiv 2112.11446), table 1. MT-NLG: Smith et al. 2022 (arXiv 2201.11990), §2. PaLM: Chowdhery et al. 2022
# (arXiv 2204.02311), table 1.
PUBLISHED = (
    Published("GPT-3 125M", 125e6, 768, 12),
    Published("SmolLM2 135M", 135e6, 576, 30),
    Published("GPT-3 350M", 350e6, 1024, 24),
    Published("SmolLM2 360M", 362e6, 960, 32),
    Published("Qwen2.5 0.5B", 494e6, 896, 24),
    Published("GPT-3 760M", 760e6, 1536, 24),
    Published("Llama-3.2 1B", 1.24e9, 2048, 16),
    Published("GPT-3 1.3B", 1.3e9, 2048, 24),
    Published("Qwen2.5 1.5B", 1.54e9, 1536, 28),
    Published("SmolLM2 1.7B", 1.71e9, 2048, 24),
    Published("GPT-3 2.7B", 2.7e9, 2560, 32),
    Published("Qwen2.5 3B", 3.09e9, 2048, 36),
    Published("Llama-3.2 3B", 3.21e9, 3072, 28),
    Published("Llama-1 7B", 6.74e9, 4096, 32),
    Published("Qwen2.5 7B", 7.62e9, 3584, 28),
    Published("Llama-3 8B", 8.03e9, 4096, 32),
    Published("Llama-1 13B", 13.0e9, 5120, 40),
    Published("Qwen2.5 14B", 14.8e9, 5120, 48),
    Published("Llama-1 33B", 32.5e9, 6656, 60),
    Published("Qwen2.5 32B", 32.8e9, 5120, 64),
    Published("Llama-1 65B", 65.3e9, 8192, 80),
    Published("Llama-3 70B", 70.6e9, 8192, 80),
    Published("Qwen2.5 72B", 72.7e9, 8192, 80),
    Published("GPT-3 175B", 175e9, 12288, 96),
    Published("Gopher 280B", 280e9, 16384, 80),
    Published("Llama-3 405B", 405e9, 16384, 126),
    Published("MT-NLG 530B", 530e9, 20480, 105),
    Published("PaLM 540B", 540e9, 18432, 118),
)


class Tier(msgspec.Struct, frozen=True, kw_only=True):
    """What a design takes over from published models of its order of size."""

    vocab_size: int
    tie_word_embeddings: bool
    sequence_length: int
    rope_theta: float
    rule: str


SMALL_TIER = Tier(
    vocab_size=32_000,
    tie_word_embeddings=True,
    sequence_length=2048,
    rope_theta=10_000.0,
    rule="below 5e9 parameters: vocabulary 32,000, 2,048 positions and RoPE base 10,000 as Llama-1 (arXiv 2302.13971); "
    "head tied to the embedding as Llama-3.2 1B and 3B, so that the vocabulary does not dominate",
)
LARGE_TIER = Tier(
    vocab_size=128_256,
    tie_word_embeddings=False,
    sequence_length=8192,
    rope_theta=500_000.0,
    rule="from 5e9 parameters: vocabulary 128,256, 8,192 positions, RoPE base 500,000 and a head of its own as Llama-3 "
    "8B (arXiv 2407.21783); a larger model deserves a larger vocabulary (Tao et al. 2024, arXiv 2407.13623)",
)
LARGE_FROM = 5 * 10**9  # the geometric mean of Llama-3.2 3B, which ties its head, and Llama-3 8B, which does not


class Architecture(msgspec.Struct, frozen=True, kw_only=True):
    """A designed config.json, and how near it comes to the parameters asked for."""

    config: dict[str, object]  # Hugging Face's Llama fields
    parameters: int
    target_parameters: int
    relative_error: float  # parameters / target - 1
    rules: tuple[str, ...]  # every rule that shaped it, with its source


class Design(Architecture, frozen=True, kw_only=True):
    """An architecture as measured, the tokens that the budget pays for, and the loss that the law predicts."""

    tokens: int
    tokens_per_parameter: float
    training_flops_per_token: int
    training_flops: int  # of all tokens; at most the budget's
    scaling_law: str
    predicted_loss: float  # nats per token


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """The sizes that the search chooses; the penalty is 0 for an ideal one and at most 3."""

    layers: int
    hidden_size: int
    intermediate_size: int
    parameters: int
    penalty: float


def design_model(target_parameters: int) -> Architecture:
    """The soundest Llama-style config within 0.5 % of `target_parameters`, for 10^8 to 10^13 of them.

    Three deviations are weighed, each as a share of what its rule allows: hidden size / layers from the geometric
    mean of published models of that size, SwiGLU width from 8/3 of the hidden size, parameters from the target. The
    smallest sum wins. Raises UserError outside the sizes that the rules hold for.
    """
    if not SMALLEST_DESIGN <= target_parameters <= LARGEST_DESIGN:
        raise UserError(
            f"cannot design a model of {target_parameters:.3g} parameters: the design rules hold from "
            f"{SMALLEST_DESIGN:.0e} to {LARGEST_DESIGN:.0e}; change the budget, the GPUs or the utilisation"
        )
    tier = LARGE_TIER if target_parameters >= LARGE_FROM else SMALL_TIER
    shape = min(_shapes(target_parameters, tier), key=lambda shape: (shape.penalty, shape.hidden_size))
    return Architecture(
        config=_config(shape, tier),
        parameters=shape.parameters,
        target_parameters=target_parameters,
        relative_error=shape.parameters / target_parameters - 1,
        rules=_rules(shape, target_parameters, tier),
    )


def resolve_tokens(
    architecture: Architecture,
    *,
    training_flops: float,
    scaling_law: str,
    measured_parameters: int,
    measured_forward_flops: int,
) -> Design:
    """The design with D = floor(C / training FLOPs per token), and the loss that the law predicts at (N, D).

    `measured_forward_flops` is one forward pass over one sequence of max_position_embeddings tokens, attention over
    the full square. The backward pass costs twice that (Kaplan et al. 2020, arXiv 2001.08361, §2.1) and nothing is
    computed twice. A fraction of a FLOP per token is rounded up, so that the budget `training_flops` is not exceeded.
    """
    sequence_length = architecture.config["max_position_embeddings"]
    assert isinstance(sequence_length, int)
    flops_per_token = -(-3 * measured_forward_flops // sequence_length)
    tokens = affordable_tokens(training_flops, flops_per_token)
    if not tokens:
        raise UserError(f"{training_flops:.3g} training FLOPs pay for no token of this model at {flops_per_token:.3g} each")
    law = find_law(scaling_law)
    return Design(
        config=architecture.config,
        parameters=measured_parameters,
        target_parameters=architecture.target_parameters,
        relative_error=measured_parameters / architecture.target_parameters - 1,
        rules=architecture.rules,
        tokens=tokens,
        tokens_per_parameter=tokens / measured_parameters,
        training_flops_per_token=flops_per_token,
        training_flops=tokens * flops_per_token,
        scaling_law=law.name,
        predicted_loss=predicted_loss(law, measured_parameters, tokens),
    )


def published_peers(parameters: float) -> tuple[Published, ...]:
    """The published models within a factor of 3 of that size; beyond the table, of its nearest end."""
    size = min(max(parameters, PUBLISHED[0].parameters), PUBLISHED[-1].parameters)
    return tuple(model for model in PUBLISHED if size / 3 <= model.parameters <= size * 3)


# --- The search ------------------------------------------------------------------------------------------------


def _shapes(target: int, tier: Tier) -> Iterator[Shape]:
    """Every candidate within 0.5 % of the target and within the published range of hidden size / layers."""
    log_ratios = [log(model.hidden_size / model.layers) for model in published_peers(target)]
    lowest, ideal, highest = min(log_ratios), fsum(log_ratios) / len(log_ratios), max(log_ratios)
    for hidden_size in _hidden_sizes():
        one_layer, further_layer = _count(hidden_size, round(SWIGLU_RATIO * hidden_size), tier)
        log_ratio = log(hidden_size / max(1, 1 + (target - one_layer) / further_layer))
        if log_ratio > highest + 2 * SWIGLU_TOLERANCE:
            return  # too shallow, and all wider ones more so
        if log_ratio < lowest - 2 * SWIGLU_TOLERANCE:
            continue
        for intermediate_size in _swiglu_widths(hidden_size):
            one_layer, further_layer = _count(hidden_size, intermediate_size, tier)
            layers = max(1, 1 + round((target - one_layer) / further_layer))
            parameters = one_layer + (layers - 1) * further_layer
            error = abs(parameters / target - 1)
            log_ratio = log(hidden_size / layers)
            if error > LARGEST_RELATIVE_ERROR or not lowest <= log_ratio <= highest:
                continue
            penalty = (
                abs(log_ratio - ideal) / (highest - ideal if log_ratio > ideal else ideal - lowest)
                + abs(intermediate_size / (SWIGLU_RATIO * hidden_size) - 1) / SWIGLU_TOLERANCE
                + error / LARGEST_RELATIVE_ERROR
                + (1 - _key_value_heads(hidden_size // HEAD_DIM) / 8)
            )
            yield Shape(
                layers=layers,
                hidden_size=hidden_size,
                intermediate_size=intermediate_size,
                parameters=parameters,
                penalty=penalty,
            )


def _hidden_sizes() -> Iterator[int]:
    """Multiples of 256 from 512, of 512 from 2,048 and of 1,024 from 8,192, without end."""
    yield from range(512, 4096, 256)
    yield from range(4096, 8192, 512)
    yield from count(8192, 1024)


def _swiglu_widths(hidden_size: int) -> range:
    """The multiples of 256 within 5 % of 8/3 `hidden_size`, or within one step where that is more."""
    ideal = SWIGLU_RATIO * hidden_size
    tolerance = max(SWIGLU_TOLERANCE * ideal, WIDTH_STEP)
    return range(ceil((ideal - tolerance) / WIDTH_STEP) * WIDTH_STEP, floor(ideal + tolerance) + 1, WIDTH_STEP)


def _key_value_heads(heads: int) -> int:
    """8 where they divide the query heads into groups of two or more, else 4, else 2."""
    return next(groups for groups in (8, 4, 2) if heads % groups == 0 and heads >= 2 * groups)


def _count(hidden_size: int, intermediate_size: int, tier: Tier) -> tuple[int, int]:
    """Parameters of the model with one layer, and of each further layer."""
    model = _model_spec(1, hidden_size, intermediate_size, tier)
    return count_parameters(model).total, count_parameters(model.layers[0]).total


def _model_spec(layers: int, hidden_size: int, intermediate_size: int, tier: Tier) -> ModelSpec:
    """The spec of a Llama-style model, for counting."""
    heads = hidden_size // HEAD_DIM
    layer = LayerSpec(
        attention=GroupedQueryAttentionSpec(
            hidden_size=hidden_size,
            num_attention_heads=heads,
            num_key_value_heads=_key_value_heads(heads),
            head_dim=HEAD_DIM,
            rotary=RotarySpec(dim=HEAD_DIM, theta=tier.rope_theta),
        ),
        feed_forward=GatedMLPSpec(hidden_size=hidden_size, intermediate_size=intermediate_size),
        norm_eps=NORM_EPS,
    )
    return ModelSpec(
        name="design",
        model_type="llama",
        vocab_size=tier.vocab_size,
        hidden_size=hidden_size,
        layers=(layer,) * layers,
        norm_eps=NORM_EPS,
        tie_word_embeddings=tier.tie_word_embeddings,
        sequence_length=tier.sequence_length,
        sequence_length_source="max_position_embeddings",
    )


# --- What it writes --------------------------------------------------------------------------------------------


def _config(shape: Shape, tier: Tier) -> dict[str, object]:
    """The shape as Hugging Face's config.json of a Llama."""
    heads = shape.hidden_size // HEAD_DIM
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": tier.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": heads,
        "num_key_value_heads": _key_value_heads(heads),
        "head_dim": HEAD_DIM,
        "max_position_embeddings": tier.sequence_length,
        "hidden_act": "silu",
        "rms_norm_eps": NORM_EPS,
        "rope_theta": tier.rope_theta,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tier.tie_word_embeddings,
        "torch_dtype": "bfloat16",
    }


def _rules(shape: Shape, target: int, tier: Tier) -> tuple[str, ...]:
    """Every rule with the value it gave here and its source."""
    peers = published_peers(target)
    ratios = [model.hidden_size / model.layers for model in peers]
    mean = exp(fsum(map(log, ratios)) / len(ratios))
    heads = shape.hidden_size // HEAD_DIM
    groups = _key_value_heads(heads)
    return (
        f"hidden size / layers = {shape.hidden_size / shape.layers:.0f}: within {min(ratios):.0f} to {max(ratios):.0f} "
        f"(mean {mean:.0f}) of published models nearest in size: {', '.join(model.name for model in peers)}",
        f"hidden size {shape.hidden_size}: a multiple of 256, whole tiles of a matrix multiply; from 2,048 on a "
        "multiple of 1,024, so that 8 key/value heads divide the query heads",
        f"{shape.layers} layers: even, so that they split over pipeline stages",
        f"head_dim {HEAD_DIM}: as Llama-1 to 3 from 7B on (arXiv 2302.13971, 2407.21783)",
        f"{heads} query heads share {groups} key/value heads: 8 at every size of Llama-3 (arXiv 2407.21783, table 3), "
        "fewer where a hidden size below 2,048 leaves too few query heads (Ainslie et al. 2023, arXiv 2305.13245)",
        f"SwiGLU width {shape.intermediate_size} = {shape.intermediate_size / shape.hidden_size:.3f} x hidden size: a "
        "multiple of 256 within 5 % of 8/3, or within one step (Shazeer 2020, arXiv 2002.05202; arXiv 2302.13971, §2.2)",
        tier.rule,
        "RMSNorm epsilon 1e-5, silu and no biases: as Llama-2 and Llama-3",
    )
