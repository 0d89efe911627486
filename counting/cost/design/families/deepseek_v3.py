"""A mixture of experts with latent attention for a number of active parameters (DeepSeek-V3, arXiv 2412.19437).

Four ratios follow the published models of this architecture, from the smallest to the largest and in between by
interpolation: hidden size / layers, width of all heads / hidden size, active feed-forward width / hidden size, and
routed experts / active routed experts. At the size of DeepSeek-V3, the design is DeepSeek-V3.
"""

from collections.abc import Callable, Iterator
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
from torch_models.spec import (
    GatedMLPSpec,
    LayerSpec,
    MixtureOfExpertsSpec,
    ModelSpec,
    MultiHeadLatentAttentionSpec,
    RotarySpec,
    RouterSpec,
    runs_of,
)

_HEAD_DIM = 128  # of a value, and of a query and key without the rotated channels
_ROTATED = 64
_KEY_VALUE_RANK = 512
_HEADS_STEP = 4
_FINEST_SIZE = 128
_SMALL_SIZE = 2560
_EXPERTS_STEP = 32
_POSITIONS = 4096
_ROPE_THETA = 10_000.0
_NORM_EPS = 1e-6


class PublishedMixture(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The sizes of a published mixture of experts, in the names of its config.json, and its number of parameters."""

    name: str
    parameters: int
    active_parameters: int
    hidden_size: int
    num_hidden_layers: int
    first_k_dense_replace: int
    num_attention_heads: int
    q_lora_rank: int | None
    intermediate_size: int
    moe_intermediate_size: int
    n_routed_experts: int
    num_experts_per_tok: int
    n_shared_experts: int
    vocab_size: int
    source: str

    @property
    def active_width(self) -> int:
        """The feed-forward width that one token uses in a layer of experts: that of its routed and shared experts."""
        return (self.num_experts_per_tok + self.n_shared_experts) * self.moe_intermediate_size


class MixtureTier(msgspec.Struct, frozen=True, kw_only=True):
    """The values that a design copies from the published model that is nearest in kind."""

    like: str
    top_k: int
    shared_experts: int
    dense_layers: int
    query_rank: int | None
    groups: int
    eligible_groups: int
    routed_scaling_factor: float
    vocabularies: tuple[int, ...]  # the preferred one first
    rule: str

    @property
    def granularity(self) -> int:
        """Width of a dense layer / width of an expert: as many as a token's routed and shared experts."""
        return self.top_k + self.shared_experts


_SMALL = MixtureTier(
    like="DeepSeek-V2-Lite",
    top_k=6,
    shared_experts=2,
    dense_layers=1,
    query_rank=None,
    groups=1,
    eligible_groups=1,
    routed_scaling_factor=2.446,
    vocabularies=(102_400, 129_280, 163_840),
    rule="queries projected directly, as DeepSeek-V2-Lite (arXiv 2405.04434, appendix B); experts in one group, "
    "weights scaled by 2.446, as Moonlight-16B-A3B (arXiv 2502.16982)",
)
_LARGE = MixtureTier(
    like="DeepSeek-V3",
    top_k=8,
    shared_experts=1,
    dense_layers=3,
    query_rank=1536,
    groups=8,
    eligible_groups=4,
    routed_scaling_factor=2.5,
    vocabularies=(129_280,),
    rule="queries from a latent of 1,536, a token's experts from 4 of 8 groups, weights scaled by 2.5, as DeepSeek-V3 "
    "(arXiv 2412.19437, §4.2)",
)


class MixtureShape(msgspec.Struct, frozen=True, kw_only=True):
    """The sizes that the search chooses; the other ones are those of `tier`."""

    tier: MixtureTier
    hidden_size: int
    heads: int
    expert_width: int
    experts: int
    vocabulary: int
    layers: int


class MixtureTrends(msgspec.Struct, frozen=True, kw_only=True):
    """What the four ratios are at one size."""

    width_to_depth: Trend
    heads_to_width: Trend  # width of all value heads / hidden size
    active_to_width: Trend  # width of the experts that one token uses / hidden size
    sparsity: Trend  # routed experts / those that one token uses


@cache
def published_mixtures() -> tuple[PublishedMixture, ...]:
    """The table `configs/published_deepseek_v3.json`, by active size; the file is read on the first call."""
    models = published_rows("published_deepseek_v3.json", PublishedMixture)
    return tuple(sorted(models, key=lambda model: model.active_parameters))


def design_deepseek_v3(target_parameters: int) -> Architecture:
    """The DeepSeek-V3 config with the smallest penalty, its active parameters within 0.5 % of `target_parameters`.

    The penalty is the sum of the deviations of the first three ratios from those of the published models, in units of
    10 %, and a quarter of the deviation of the number of active parameters, in units of 0.5 %. The number of experts is
    not searched: it is the multiple of 32 that is nearest to what the fourth ratio says.
    """
    trends = _trends(target_parameters)
    shape = best_shape(_candidates(target_parameters, trends), "deepseek_v3", target_parameters)
    parameters, active = count_by_formula(_model_spec(shape)).total, _active(shape)
    return Architecture(
        family="deepseek_v3",
        config=_config(shape),
        parameters=parameters,
        active_parameters=active,
        sized_by="active",
        target_parameters=target_parameters,
        relative_error=active / target_parameters - 1,
        rules=_rules(shape, trends, parameters, active),
    )


def _trends(target: int) -> MixtureTrends:
    models = published_mixtures()

    def trend(ratio: Callable[[PublishedMixture], float]) -> Trend:
        ends = [(model.active_parameters, ratio(model)) for model in (models[0], models[-1])]
        return trend_at(target, ends, published=[ratio(model) for model in models])

    return MixtureTrends(
        width_to_depth=trend(lambda model: model.hidden_size / model.num_hidden_layers),
        heads_to_width=trend(lambda model: model.num_attention_heads * _HEAD_DIM / model.hidden_size),
        active_to_width=trend(lambda model: model.active_width / model.hidden_size),
        sparsity=trend(lambda model: model.n_routed_experts / model.num_experts_per_tok),
    )


def large_from() -> float:
    """The active size from which a design is like DeepSeek-V3: the geometric mean of DeepSeek-V2-Lite and V2."""
    sizes = {model.name: model.active_parameters for model in published_mixtures()}
    mean: float = (sizes["DeepSeek-V2-Lite"] * sizes["DeepSeek-V2"]) ** 0.5
    return mean


# --- The search ------------------------------------------------------------------------------------------------


def _candidates(target: int, trends: MixtureTrends) -> Iterator[tuple[float, MixtureShape]]:
    """(Penalty, shape) of each shape within 0.5 % of the target and the ranges of the published models."""
    for shape in _shallow_shapes(target, trends):
        further, active = _fill(shape, target)
        layers = shape.layers + further
        error = abs(active / target - 1)
        width_to_depth = shape.hidden_size / layers
        if error <= LARGEST_RELATIVE_ERROR and trends.width_to_depth.admits(width_to_depth):
            penalty = (
                trends.width_to_depth.penalty(width_to_depth)
                + trends.heads_to_width.penalty(shape.heads * _HEAD_DIM / shape.hidden_size)
                + trends.active_to_width.penalty(shape.tier.granularity * shape.expert_width / shape.hidden_size)
                + (shape.vocabulary / shape.tier.vocabularies[0] - 1)
                + error / LARGEST_RELATIVE_ERROR / 4
            )
            yield penalty, msgspec.structs.replace(shape, layers=layers)


def _shallow_shapes(target: int, trends: MixtureTrends) -> Iterator[MixtureShape]:
    """The shapes to try, each with one layer of experts: those near the published range of hidden size / layers."""
    tier = _LARGE if target >= large_from() else _SMALL
    experts = round(trends.sparsity.ideal * tier.top_k / _EXPERTS_STEP) * _EXPERTS_STEP

    def typical(hidden_size: int) -> MixtureShape:
        return MixtureShape(
            tier=tier,
            hidden_size=hidden_size,
            heads=round(trends.heads_to_width.ideal * hidden_size / _HEAD_DIM),
            expert_width=8 * round(trends.active_to_width.ideal * hidden_size / tier.granularity / 8),
            experts=experts,
            vocabulary=tier.vocabularies[0],
            layers=tier.dense_layers + 1,
        )

    def typical_ratio(hidden_size: int) -> float:
        shape = typical(hidden_size)
        return hidden_size / (shape.layers + _fill(shape, target)[0])

    lowest, highest = trends.width_to_depth.lowest, trends.width_to_depth.highest
    for hidden_size in sizes_in_range(hidden_sizes(_FINEST_SIZE), typical_ratio, lowest, highest):
        ideal_heads = trends.heads_to_width.ideal * hidden_size / _HEAD_DIM
        ideal_width = trends.active_to_width.ideal * hidden_size / tier.granularity
        tolerance = 0.4 if hidden_size < _SMALL_SIZE else 0.15  # small models have few shapes to choose from
        for heads in multiples_near(ideal_heads, _HEADS_STEP, tolerance):
            if not trends.heads_to_width.admits(heads * _HEAD_DIM / hidden_size):
                continue
            for expert_width in multiples_near(ideal_width, _expert_step(hidden_size), tolerance):
                if trends.active_to_width.admits(tier.granularity * expert_width / hidden_size):
                    for vocabulary in tier.vocabularies:
                        yield msgspec.structs.replace(
                            typical(hidden_size), heads=heads, expert_width=expert_width, vocabulary=vocabulary
                        )


def _expert_step(hidden_size: int) -> int:
    """What the width of an expert is a multiple of."""
    return 64 if hidden_size < _SMALL_SIZE else 128


def _fill(shape: MixtureShape, target: int) -> tuple[int, int]:
    """(Further layers, active parameters): the layers of experts that bring the shape nearest to the target."""
    deeper = msgspec.structs.replace(shape, layers=shape.layers + 1)
    return whole_layers(_active(shape), _active(deeper), target)


def _active(shape: MixtureShape) -> int:
    """The active parameters: all but gate, up and down of the experts that a token does not use."""
    unused = (shape.layers - shape.tier.dense_layers) * (shape.experts - shape.tier.top_k)
    return count_by_formula(_model_spec(shape)).total - unused * 3 * shape.hidden_size * shape.expert_width


def _model_spec(shape: MixtureShape) -> ModelSpec:
    """The spec of the main model, for counting: without multi-token prediction, which no count of it includes."""
    tier, width = shape.tier, shape.hidden_size
    attention = MultiHeadLatentAttentionSpec(
        hidden_size=width,
        num_attention_heads=shape.heads,
        q_lora_rank=tier.query_rank,
        kv_lora_rank=_KEY_VALUE_RANK,
        qk_nope_head_dim=_HEAD_DIM,
        qk_rope_head_dim=_ROTATED,
        v_head_dim=_HEAD_DIM,
        rotary=RotarySpec(dim=_ROTATED, theta=_ROPE_THETA, interleaved=True, scores_scaled=True),
    )
    mixture = MixtureOfExpertsSpec(
        router=RouterSpec(
            hidden_size=width,
            num_experts=shape.experts,
            top_k=tier.top_k,
            n_group=tier.groups,
            topk_group=tier.eligible_groups,
            norm_topk_prob=True,
            routed_scaling_factor=tier.routed_scaling_factor,
            correction_bias=True,
        ),
        expert=GatedMLPSpec(hidden_size=width, intermediate_size=shape.expert_width),
        shared_experts=GatedMLPSpec(hidden_size=width, intermediate_size=tier.shared_experts * shape.expert_width),
    )
    dense_mlp = GatedMLPSpec(hidden_size=width, intermediate_size=tier.granularity * shape.expert_width)
    dense = LayerSpec(attention=attention, feed_forward=dense_mlp, norm_eps=_NORM_EPS)
    moe = LayerSpec(attention=attention, feed_forward=mixture, norm_eps=_NORM_EPS)
    return ModelSpec(
        name="design",
        model_type="deepseek_v3",
        vocab_size=shape.vocabulary,
        hidden_size=width,
        layer_runs=runs_of([dense] * tier.dense_layers + [moe] * (shape.layers - tier.dense_layers)),
        norm_eps=_NORM_EPS,
        tie_word_embeddings=False,
        sequence_length=_POSITIONS,
        sequence_length_source="max_position_embeddings",
    )


# --- What it writes --------------------------------------------------------------------------------------------


def _config(shape: MixtureShape) -> dict[str, object]:
    """The shape as the fields of Hugging Face's DeepSeek-V3 config.json."""
    tier = shape.tier
    return {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden_size,
        "intermediate_size": tier.granularity * shape.expert_width,
        "moe_intermediate_size": shape.expert_width,
        "num_hidden_layers": shape.layers,
        "first_k_dense_replace": tier.dense_layers,
        "moe_layer_freq": 1,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "q_lora_rank": tier.query_rank,
        "kv_lora_rank": _KEY_VALUE_RANK,
        "qk_nope_head_dim": _HEAD_DIM,
        "qk_rope_head_dim": _ROTATED,
        "v_head_dim": _HEAD_DIM,
        "n_routed_experts": shape.experts,
        "num_experts_per_tok": tier.top_k,
        "n_shared_experts": tier.shared_experts,
        "n_group": tier.groups,
        "topk_group": tier.eligible_groups,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "norm_topk_prob": True,
        "routed_scaling_factor": tier.routed_scaling_factor,
        "num_nextn_predict_layers": 1,
        "max_position_embeddings": _POSITIONS,
        "hidden_act": "silu",
        "rms_norm_eps": _NORM_EPS,
        "rope_theta": _ROPE_THETA,
        "attention_bias": False,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }


def _rules(shape: MixtureShape, trends: MixtureTrends, parameters: int, active: int) -> tuple[str, ...]:
    """Every rule, with its value for this shape and its source."""
    tier, width = shape.tier, shape.hidden_size
    names = ", ".join(model.name for model in published_mixtures())
    return (
        f"N is taken as the active parameters, {active:,} of {parameters:,}: the N of C = 6 N D, as in laws of "
        "mixtures (Ludziejewski et al. 2025, arXiv 2502.05172). A law of dense models predicts the loss of a dense "
        "model of this N: it does not count the experts that a token does not use, and they usually lower the loss",
        "ratios follow the published models of this architecture by active size, from the smallest to the largest, and "
        f"in between by interpolation of their logarithms; they keep to the range of them all: {names}",
        f"hidden size / layers = {width / shape.layers:.0f}: {trends.width_to_depth.words(0)}",
        hidden_size_rule(width, _FINEST_SIZE),
        f"{shape.heads} heads, their values together {shape.heads * _HEAD_DIM / width:.2f} x hidden size: "
        f"{trends.heads_to_width.words(2)}; a multiple of {_HEADS_STEP}",
        f"latent attention: keys and values from a latent of {_KEY_VALUE_RANK}, heads of {_HEAD_DIM} channels and "
        f"{_ROTATED} rotated, as at every published size (arXiv 2405.04434, §2.1)",
        f"granularity {tier.granularity}, width of a dense layer / width of an expert = "
        f"{tier.granularity * shape.expert_width} / {shape.expert_width}: {tier.top_k} routed and "
        f"{tier.shared_experts} shared experts of a token are together as wide as a dense layer, as in {tier.like}",
        f"expert width {shape.expert_width}, those of a token together "
        f"{tier.granularity * shape.expert_width / width:.2f} x hidden size: {trends.active_to_width.words(2)}; a "
        f"multiple of {_expert_step(width)}",
        f"sparsity {shape.experts / tier.top_k:.1f}, {tier.top_k} of {shape.experts} routed experts: "
        f"{trends.sparsity.words(1)}; a multiple of {_EXPERTS_STEP} experts; the total number of parameters follows",
        f"first layers dense, {tier.dense_layers}: as {tier.like}",
        f"sigmoid scores and a correction bias without gradient (arXiv 2412.19437, §2.1.2); {tier.rule}",
        "multi-token prediction: one module, as DeepSeek-V3 (arXiv 2412.19437, §2.2); the budget pays for it, and no N "
        "includes it",
        f"vocabulary {shape.vocabulary:,}, head of its own: as {tier.like}, or where a small model needs it to meet "
        "its size, a larger published one",
        f"what is copied, is of DeepSeek-V3 from {large_from() / 1e9:.1f}e9 active parameters on (the geometric mean "
        "of DeepSeek-V2-Lite and DeepSeek-V2), and of DeepSeek-V2-Lite below",
        f"{_POSITIONS:,} positions and RoPE base 10,000: as in pre-training, before the stages of long contexts (arXiv "
        "2405.04434, §3.1.2; 2412.19437, §4.2)",
        "RMSNorm epsilon 1e-6, silu and no biases: as DeepSeek-V3",
    )


DEEPSEEK_V3_DESIGNS = DesignFamily(
    name="deepseek_v3",
    smallest=10**9,
    largest=100 * 10**9,
    sized_by="active",
    range_source="from a third of DeepSeek-V2-Lite to three times DeepSeek-V3",
    design=design_deepseek_v3,
)
