"""A Llama-style model designed for a parameter count.

The search is small and deterministic. It tries the hidden sizes whose width-to-depth ratio lies within the range of
published models of that size, and for each of them the SwiGLU widths near 8/3 of the hidden size. The number of layers
follows from the target. Parameters are counted by formula.
"""

from collections.abc import Iterator
from math import ceil, exp, floor, fsum, log

import msgspec

from counting.analysis import count_by_formula
from counting.cost.design.architecture import (
    LARGEST_RELATIVE_ERROR,
    Architecture,
    DesignFamily,
    best_shape,
    hidden_size_rule,
    hidden_sizes,
    sizes_in_range,
    whole_layers,
)
from counting.cost.design.published_models import published_peers
from torch_models.spec import GatedMLPSpec, GroupedQueryAttentionSpec, LayerRun, LayerSpec, ModelSpec, RotarySpec

HEAD_DIM = 128
WIDTH_STEP = 256
KEY_VALUE_HEADS = 8  # as Llama-3 at every size; a design has at most this many
SWIGLU_RATIO = 8 / 3
SWIGLU_TOLERANCE = 0.05
NORM_EPS = 1e-5


class Tier(msgspec.Struct, frozen=True, kw_only=True):
    """The values that a design copies from published models of similar size."""

    vocab_sizes: tuple[int, ...]  # the preferred one first
    tie_word_embeddings: bool
    sequence_length: int
    rope_theta: float
    rule: str


SMALL_TIER = Tier(
    vocab_sizes=(32_000, 32_768, 49_152),
    tie_word_embeddings=True,
    sequence_length=2048,
    rope_theta=10_000.0,
    rule="below 5e9 parameters, 2,048 positions and RoPE base 10,000 as Llama-1 (arXiv 2302.13971); its vocabulary of "
    "32,000, else that of Mistral-7B v0.3 (32,768) or SmolLM2 (49,152), and the head tied to the embedding as in "
    "SmolLM2 and Llama-3.2 1B and 3B, so that the vocabulary does not dominate",
)
LARGE_TIER = Tier(
    vocab_sizes=(128_256,),
    tie_word_embeddings=False,
    sequence_length=8192,
    rope_theta=500_000.0,
    rule="from 5e9 parameters, vocabulary, 8,192 positions, RoPE base 500,000 and a head of its own as Llama-3 8B "
    "(arXiv 2407.21783); a larger model deserves a larger vocabulary (Tao et al. 2024, arXiv 2407.13623)",
)
LARGE_FROM = 5 * 10**9  # the geometric mean of Llama-3.2 3B, which ties its head, and Llama-3 8B, which does not


class LlamaShape(msgspec.Struct, frozen=True, kw_only=True):
    """The sizes that the search chooses."""

    hidden_size: int
    intermediate_size: int
    num_key_value_heads: int
    vocab_size: int
    layers: int = 1

    @property
    def heads(self) -> int:
        """Number of query heads; their total width is the hidden size."""
        return self.hidden_size // HEAD_DIM

    @property
    def swiglu_ratio(self) -> float:
        """SwiGLU width / hidden size."""
        return self.intermediate_size / self.hidden_size


def design_llama(target_parameters: int) -> Architecture:
    """The Llama-style config with the smallest penalty, within 0.5 % of `target_parameters`.

    The penalty is the sum of five terms: (1) the deviation of hidden size / layers from the geometric mean of published
    models of that size and (2) of the SwiGLU width from 8/3 of the hidden size, each divided by the largest deviation
    that its rule allows; (3) a quarter of the same quotient for the number of parameters; (4) 0.5 for each key/value
    head fewer than 8; (5) the relative growth of the vocabulary over the preferred size.
    """
    tier = LARGE_TIER if target_parameters >= LARGE_FROM else SMALL_TIER
    shape = best_shape(_candidates(target_parameters, tier), "llama", target_parameters)
    parameters = count_by_formula(_model_spec(shape, tier)).total
    return Architecture(
        family="llama",
        config=_config(shape, tier),
        parameters=parameters,
        active_parameters=parameters,
        sized_by="total",
        target_parameters=target_parameters,
        relative_error=parameters / target_parameters - 1,
        rules=_rules(shape, target_parameters, tier),
    )


# --- The search ------------------------------------------------------------------------------------------------


def _candidates(target: int, tier: Tier) -> Iterator[tuple[float, LlamaShape]]:
    """(Penalty, shape) of each shape within 0.5 % of the target and the published range of hidden size / layers."""
    log_ratios = [log(model.width_to_depth) for model in published_peers(target)]
    lowest, ideal, highest = min(log_ratios), fsum(log_ratios) / len(log_ratios), max(log_ratios)
    for shape in _one_layer_shapes(target, tier, exp(lowest), exp(highest)):
        layers, parameters = _fill(shape, target, tier)
        error = abs(parameters / target - 1)
        log_ratio = log(shape.hidden_size / layers)
        if error <= LARGEST_RELATIVE_ERROR and lowest <= log_ratio <= highest:
            penalty = (
                abs(log_ratio - ideal) / (highest - ideal if log_ratio > ideal else ideal - lowest)
                + abs(shape.swiglu_ratio / SWIGLU_RATIO - 1) / SWIGLU_TOLERANCE
                + error / LARGEST_RELATIVE_ERROR / 4
                + (KEY_VALUE_HEADS - shape.num_key_value_heads) / 2
                + (shape.vocab_size / tier.vocab_sizes[0] - 1)
            )
            yield penalty, msgspec.structs.replace(shape, layers=layers)


def _one_layer_shapes(target: int, tier: Tier, lowest_ratio: float, highest_ratio: float) -> Iterator[LlamaShape]:
    """The shapes to try, each with one layer: those near the published range of hidden size / layers."""

    def typical_ratio(hidden_size: int) -> float:
        shape = LlamaShape(
            hidden_size=hidden_size,
            intermediate_size=round(SWIGLU_RATIO * hidden_size),
            num_key_value_heads=_key_value_heads(hidden_size // HEAD_DIM)[0],
            vocab_size=tier.vocab_sizes[0],
        )
        return hidden_size / _fill(shape, target, tier)[0]

    for hidden_size in sizes_in_range(hidden_sizes(), typical_ratio, lowest_ratio, highest_ratio):
        for intermediate_size in _swiglu_widths(hidden_size):
            for num_key_value_heads in _key_value_heads(hidden_size // HEAD_DIM):
                for vocab_size in tier.vocab_sizes:
                    yield LlamaShape(
                        hidden_size=hidden_size,
                        intermediate_size=intermediate_size,
                        num_key_value_heads=num_key_value_heads,
                        vocab_size=vocab_size,
                    )


def _fill(shape: LlamaShape, target: int, tier: Tier) -> tuple[int, int]:
    """(Layers, parameters): the whole number of layers that brings the shape nearest to the target."""
    first, second = (
        count_by_formula(_model_spec(msgspec.structs.replace(shape, layers=layers), tier)).total for layers in (1, 2)
    )
    further, parameters = whole_layers(first, second, target)
    return 1 + further, parameters


def _swiglu_widths(hidden_size: int) -> range:
    """The multiples of 256 within 5 % of 8/3 `hidden_size`, or within one step of 256 if that is more."""
    ideal = SWIGLU_RATIO * hidden_size
    tolerance = max(SWIGLU_TOLERANCE * ideal, WIDTH_STEP)
    return range(ceil((ideal - tolerance) / WIDTH_STEP) * WIDTH_STEP, floor(ideal + tolerance) + 1, WIDTH_STEP)


def _key_value_heads(heads: int) -> tuple[int, ...]:
    """The numbers from 8 down to 2 that divide `heads` into groups of two or more; only 8 from 64 heads on."""
    if heads >= 64:  # here the number of heads is always a multiple of 8
        return (KEY_VALUE_HEADS,)
    return tuple(groups for groups in range(KEY_VALUE_HEADS, 1, -1) if heads % groups == 0 and heads >= 2 * groups)


def _model_spec(shape: LlamaShape, tier: Tier) -> ModelSpec:
    """The spec of a Llama-style model, for counting."""
    layer = LayerSpec(
        attention=GroupedQueryAttentionSpec(
            hidden_size=shape.hidden_size,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.num_key_value_heads,
            head_dim=HEAD_DIM,
            rotary=RotarySpec(dim=HEAD_DIM, theta=tier.rope_theta),
        ),
        feed_forward=GatedMLPSpec(hidden_size=shape.hidden_size, intermediate_size=shape.intermediate_size),
        norm_eps=NORM_EPS,
    )
    return ModelSpec(
        name="design",
        model_type="llama",
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        layer_runs=(LayerRun(layer=layer, count=shape.layers),),
        norm_eps=NORM_EPS,
        tie_word_embeddings=tier.tie_word_embeddings,
        sequence_length=tier.sequence_length,
        sequence_length_source="max_position_embeddings",
    )


# --- What it writes --------------------------------------------------------------------------------------------


def _config(shape: LlamaShape, tier: Tier) -> dict[str, object]:
    """The shape as the fields of Hugging Face's Llama config.json."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.num_key_value_heads,
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


def _rules(shape: LlamaShape, target: int, tier: Tier) -> tuple[str, ...]:
    """Every rule, with its value for this shape and its source."""
    peers = published_peers(target)
    ratios = [model.width_to_depth for model in peers]
    mean = exp(fsum(map(log, ratios)) / len(ratios))
    return (
        f"hidden size / layers = {shape.hidden_size / shape.layers:.0f}: within {min(ratios):.0f} to {max(ratios):.0f} "
        f"(mean {mean:.0f}) of published models nearest in size: {', '.join(model.name for model in peers)}",
        hidden_size_rule(shape.hidden_size),
        f"head_dim {HEAD_DIM}: as Llama-1 to 3 from 7B on (arXiv 2302.13971, 2407.21783)",
        f"{shape.heads} query heads share {shape.num_key_value_heads} key/value heads (Ainslie et al. 2023, arXiv "
        "2305.13245): 8 as Llama-3 at every size (arXiv 2407.21783, table 3), fewer where 8 do not divide the query "
        "heads in twos or more, or a small model needs it to meet its size, as in SmolLM2 (3, 5) and Qwen2.5 (2, 4)",
        f"SwiGLU width {shape.intermediate_size} = {shape.swiglu_ratio:.3f} x hidden size: a multiple of 256 within 5 "
        "% of 8/3, or within one step (Shazeer 2020, arXiv 2002.05202; Touvron et al. 2023, arXiv 2302.13971, §2.2)",
        f"vocabulary {shape.vocab_size:,}: {tier.rule}",
        "RMSNorm epsilon 1e-5, silu and no biases: as Llama-2 and Llama-3",
    )


LLAMA_DESIGNS = DesignFamily(
    name="llama",
    smallest=250_000_000,
    largest=10**13,
    sized_by="total",
    range_source="below, steps of whole layers and tiles are too coarse; above, no published dense model is near",
    design=design_llama,
)
