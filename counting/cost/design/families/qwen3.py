"""A dense Qwen3 designed for a parameter count (Qwen3, arXiv 2505.09388).

Three ratios follow the published models, in between by interpolation: hidden size / layers, width of all query heads /
hidden size, and SwiGLU width / hidden size. At the size of a published model, the design is that model.
"""

from collections.abc import Iterator
from functools import cache

import msgspec

from counting.analysis import count_by_formula
from counting.cost.design.architecture import (
    LARGEST_RELATIVE_ERROR,
    Architecture,
    DesignFamily,
    best_shape,
    hidden_size_rule,
    hidden_sizes,
    multiples_near,
    sizes_in_range,
    whole_layers,
)
from counting.cost.design.published_models import published_rows
from counting.cost.design.trend import Trend, trend_at
from torch_models.spec import GatedMLPSpec, GroupedQueryAttentionSpec, LayerRun, LayerSpec, ModelSpec, RotarySpec

_HEAD_DIM = 128
_KEY_VALUE_HEADS = 8
_FEWEST_HEADS = 2 * _KEY_VALUE_HEADS
_SWIGLU_TOLERANCE = 0.2
_HEADS_TOLERANCE = 0.25
_VOCABULARY = 151_936
_POSITIONS = 4096
_ROPE_THETA = 10_000.0
_NORM_EPS = 1e-6


class PublishedQwen3(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The sizes of a published model, in the names of its config.json, and its number of parameters."""

    name: str
    parameters: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    tie_word_embeddings: bool
    source: str


class Qwen3Shape(msgspec.Struct, frozen=True, kw_only=True):
    """The sizes that the search chooses."""

    hidden_size: int
    intermediate_size: int
    heads: int
    tied: bool
    layers: int = 1


class Qwen3Trends(msgspec.Struct, frozen=True, kw_only=True):
    """What the three ratios are at one size."""

    width_to_depth: Trend
    heads_to_width: Trend  # width of all query heads / hidden size
    swiglu_to_width: Trend


@cache
def published_qwen3() -> tuple[PublishedQwen3, ...]:
    """The table `configs/published_qwen3.json`, by size; the file is read on the first call."""
    return tuple(sorted(published_rows("published_qwen3.json", PublishedQwen3), key=lambda model: model.parameters))


def design_qwen3(target_parameters: int) -> Architecture:
    """The Qwen3 config with the smallest penalty, within 0.5 % of `target_parameters`.

    The penalty is the sum of the deviations of the three ratios from those of the published models, in units of 10 %,
    and a quarter of the deviation of the number of parameters, in units of 0.5 %.
    """
    trends = _trends(target_parameters)
    shape = best_shape(_candidates(target_parameters, trends), "qwen3", target_parameters)
    parameters = count_by_formula(_model_spec(shape)).total
    return Architecture(
        family="qwen3",
        config=_config(shape),
        parameters=parameters,
        active_parameters=parameters,
        sized_by="total",
        target_parameters=target_parameters,
        relative_error=parameters / target_parameters - 1,
        rules=_rules(shape, trends),
    )


def _trends(target: int) -> Qwen3Trends:
    models = published_qwen3()

    def trend(ratios: list[float]) -> Trend:
        return trend_at(target, list(zip((model.parameters for model in models), ratios, strict=True)))

    return Qwen3Trends(
        width_to_depth=trend([model.hidden_size / model.num_hidden_layers for model in models]),
        heads_to_width=trend([model.num_attention_heads * _HEAD_DIM / model.hidden_size for model in models]),
        swiglu_to_width=trend([model.intermediate_size / model.hidden_size for model in models]),
    )


# --- The search ------------------------------------------------------------------------------------------------


def _candidates(target: int, trends: Qwen3Trends) -> Iterator[tuple[float, Qwen3Shape]]:
    """(Penalty, shape) of each shape within 0.5 % of the target and the ranges of the published models."""
    for shape in _one_layer_shapes(target, trends):
        further, parameters = _fill(shape, target)
        error = abs(parameters / target - 1)
        width_to_depth = shape.hidden_size / (1 + further)
        if error <= LARGEST_RELATIVE_ERROR and trends.width_to_depth.admits(width_to_depth):
            penalty = (
                trends.width_to_depth.penalty(width_to_depth)
                + trends.heads_to_width.penalty(shape.heads * _HEAD_DIM / shape.hidden_size)
                + trends.swiglu_to_width.penalty(shape.intermediate_size / shape.hidden_size)
                + error / LARGEST_RELATIVE_ERROR / 4
            )
            yield penalty, msgspec.structs.replace(shape, layers=1 + further)


def _one_layer_shapes(target: int, trends: Qwen3Trends) -> Iterator[Qwen3Shape]:
    """The shapes to try, each with one layer: those near the published range of hidden size / layers."""
    tied = target < tied_below()

    def typical_ratio(hidden_size: int) -> float:
        heads = trends.heads_to_width.ideal * hidden_size / _HEAD_DIM
        shape = Qwen3Shape(
            hidden_size=hidden_size,
            intermediate_size=round(trends.swiglu_to_width.ideal * hidden_size),
            heads=max(1, round(heads / _KEY_VALUE_HEADS)) * _KEY_VALUE_HEADS,
            tied=tied,
        )
        return hidden_size / (1 + _fill(shape, target)[0])

    lowest, highest = trends.width_to_depth.lowest, trends.width_to_depth.highest
    for hidden_size in sizes_in_range(hidden_sizes(), typical_ratio, lowest, highest):
        ideal_heads = trends.heads_to_width.ideal * hidden_size / _HEAD_DIM
        ideal_swiglu = trends.swiglu_to_width.ideal * hidden_size
        for heads in multiples_near(ideal_heads, _KEY_VALUE_HEADS, _HEADS_TOLERANCE):
            if heads < _FEWEST_HEADS or not trends.heads_to_width.admits(heads * _HEAD_DIM / hidden_size):
                continue
            for intermediate_size in multiples_near(ideal_swiglu, _swiglu_step(hidden_size), _SWIGLU_TOLERANCE):
                if trends.swiglu_to_width.admits(intermediate_size / hidden_size):
                    yield Qwen3Shape(
                        hidden_size=hidden_size, intermediate_size=intermediate_size, heads=heads, tied=tied
                    )


def _swiglu_step(hidden_size: int) -> int:
    """What the SwiGLU width is a multiple of."""
    return 128 if hidden_size < 2048 else 256


def tied_below() -> float:
    """The size below which the head is tied: the geometric mean of the largest that is and the smallest that is not."""
    models = published_qwen3()
    largest = max(model.parameters for model in models if model.tie_word_embeddings)
    smallest = min(model.parameters for model in models if not model.tie_word_embeddings)
    mean: float = (largest * smallest) ** 0.5
    return mean


def _fill(shape: Qwen3Shape, target: int) -> tuple[int, int]:
    """(Layers after the first, parameters): the whole number of layers that brings the shape nearest to the target."""
    first, second = (
        count_by_formula(_model_spec(msgspec.structs.replace(shape, layers=layers))).total for layers in (1, 2)
    )
    return whole_layers(first, second, target)


def _model_spec(shape: Qwen3Shape) -> ModelSpec:
    """The spec of the model, for counting."""
    layer = LayerSpec(
        attention=GroupedQueryAttentionSpec(
            hidden_size=shape.hidden_size,
            num_attention_heads=shape.heads,
            num_key_value_heads=_KEY_VALUE_HEADS,
            head_dim=_HEAD_DIM,
            rotary=RotarySpec(dim=_HEAD_DIM, theta=_ROPE_THETA),
            query_key_norm="head",
            norm_eps=_NORM_EPS,
        ),
        feed_forward=GatedMLPSpec(hidden_size=shape.hidden_size, intermediate_size=shape.intermediate_size),
        norm_eps=_NORM_EPS,
    )
    return ModelSpec(
        name="design",
        model_type="qwen3",
        vocab_size=_VOCABULARY,
        hidden_size=shape.hidden_size,
        layer_runs=(LayerRun(layer=layer, count=shape.layers),),
        norm_eps=_NORM_EPS,
        tie_word_embeddings=shape.tied,
        sequence_length=_POSITIONS,
        sequence_length_source="max_position_embeddings",
    )


# --- What it writes --------------------------------------------------------------------------------------------


def _config(shape: Qwen3Shape) -> dict[str, object]:
    """The shape as the fields of Hugging Face's Qwen3 config.json."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": _VOCABULARY,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": _KEY_VALUE_HEADS,
        "head_dim": _HEAD_DIM,
        "max_position_embeddings": _POSITIONS,
        "hidden_act": "silu",
        "rms_norm_eps": _NORM_EPS,
        "rope_theta": _ROPE_THETA,
        "attention_bias": False,
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": shape.layers,
        "tie_word_embeddings": shape.tied,
        "torch_dtype": "bfloat16",
    }


def _rules(shape: Qwen3Shape, trends: Qwen3Trends) -> tuple[str, ...]:
    """Every rule, with its value for this shape and its source."""
    names = ", ".join(model.name for model in published_qwen3())
    width, query_width = shape.hidden_size, shape.heads * _HEAD_DIM
    tied = "tied to the embedding" if shape.tied else "of its own"
    return (
        f"ratios follow the dense models of the family by size, in between by interpolation of their logarithms: "
        f"{names} (arXiv 2505.09388, table 1; their config.json)",
        f"hidden size / layers = {width / shape.layers:.0f}: {trends.width_to_depth.words(0)}",
        hidden_size_rule(width),
        f"{shape.heads} query heads of {_HEAD_DIM} channels, together {query_width / width:.2f} x hidden size: "
        f"{trends.heads_to_width.words(2)}; a multiple of 8",
        f"{_KEY_VALUE_HEADS} key/value heads, and norms of each query and key head: as at every size (arXiv "
        "2505.09388, §2)",
        f"SwiGLU width {shape.intermediate_size} = {shape.intermediate_size / width:.3f} x hidden size: "
        f"{trends.swiglu_to_width.words(2)}; a multiple of {_swiglu_step(width)}",
        f"vocabulary {_VOCABULARY:,} (Qwen3's tokenizer of 151,669 and room for more), head {tied}: tied below "
        f"{tied_below() / 1e9:.1f}e9 parameters, between Qwen3 4B, which ties it, and Qwen3 8B, which does not",
        f"{_POSITIONS:,} positions and RoPE base 10,000: as in the first two stages of pre-training, before the stage "
        "of long contexts (arXiv 2505.09388, §3.2)",
        "RMSNorm epsilon 1e-6, silu and no biases: as at every size",
    )


QWEN3_DESIGNS = DesignFamily(
    name="qwen3",
    smallest=500_000_000,
    largest=100 * 10**9,
    sized_by="total",
    range_source="from just below Qwen3 0.6B to three times Qwen3 32B",
    design=design_qwen3,
)
