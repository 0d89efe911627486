"""Specs of the feed-forward part of a layer: MLPs, routers, mixtures of experts. Torch-free."""

from typing import Literal

from torch_models.errors import ConfigError
from torch_models.spec.base import Spec
from torch_models.spec.choices import Activation


class GatedMLPSpec(Spec, frozen=True, kw_only=True, tag="gated_mlp"):
    """down(activation(gate(x)) * up(x)); SwiGLU if the activation is silu (Shazeer 2020)."""

    hidden_size: int
    intermediate_size: int
    activation: Activation = "silu"
    bias: bool = False


class MLPSpec(Spec, frozen=True, kw_only=True, tag="mlp"):
    """down(activation(up(x))), without a gate (Vaswani et al. 2017, arXiv 1706.03762, eq. 2; GPT-2)."""

    hidden_size: int
    intermediate_size: int
    activation: Activation
    bias: bool = False


class ClampedMLPSpec(Spec, frozen=True, kw_only=True, tag="clamped_mlp"):
    """gpt-oss's expert: (up + 1) * gate * sigmoid(alpha gate), both clamped to `limit`, with biases.

    Gate and up alternate along the columns of one matrix, stored (in, out).
    """

    hidden_size: int
    intermediate_size: int
    alpha: float
    limit: float


class RouterSpec(Spec, frozen=True, kw_only=True):
    """Selects `top_k` of `num_experts` for each token and weighs them (DeepSeek-V3, arXiv 2412.19437, §2.1.2).

    With `n_group` groups, only experts of the `topk_group` best groups are eligible. Groups are ranked by the sum of
    the scores of their two best experts (DeepSeek-V3), or by the score of their best expert (DeepSeek-V2). The
    `correction_bias` changes which experts are selected but not their weights; the optimiser does not update it.
    Checkpoints store it as the router's or, in MiniMax-M2, as the mixture's: `correction_bias_at`.
    With `learned_scales` the input is normalised and multiplied by a learned scale of each channel over
    sqrt(hidden_size), and the chosen experts' weights by a learned scale of each expert (Gemma-4).
    """

    hidden_size: int
    num_experts: int
    top_k: int
    scoring: Literal["sigmoid", "softmax"] = "sigmoid"
    bias: bool = False
    checkpoint_name: Literal["gate", "router"] = "gate"
    group_rank_experts: Literal[1, 2] = 2
    n_group: int
    topk_group: int
    norm_topk_prob: bool
    routed_scaling_factor: float
    correction_bias: bool
    correction_bias_at: Literal["router", "mixture"] = "router"
    learned_scales: bool = False  # without a bias and a routed_scaling_factor
    norm_eps: float = 1e-6  # of the norm of its input, with `learned_scales`

    def __post_init__(self) -> None:
        def require(holds: bool, field: str, value: int, rule: str) -> None:
            if not holds:
                raise ConfigError(field, value, rule)

        assert not self.learned_scales or (not self.bias and self.routed_scaling_factor == 1)
        experts, groups = self.num_experts, self.n_group
        require(
            self.top_k <= experts,
            "num_experts_per_tok",
            self.top_k,
            f"must be at most the number of experts ({experts})",
        )
        require(experts % groups == 0, "n_group", groups, f"must divide the number of experts ({experts})")
        require(self.topk_group <= groups, "topk_group", self.topk_group, f"must be at most n_group ({groups})")
        require(
            groups == 1 or experts // groups >= self.group_rank_experts,
            "n_group",
            groups,
            f"a group ranks by its two best experts, but a group has {experts // groups}",
        )
        eligible = self.topk_group * (experts // groups)
        require(
            self.top_k <= eligible,
            "num_experts_per_tok",
            self.top_k,
            f"must be at most the {eligible} experts of topk_group ({self.topk_group}) groups",
        )


class MixtureOfExpertsSpec(Spec, frozen=True, kw_only=True, tag="mixture_of_experts"):
    """Routed experts, of which each token uses `router.top_k`, and shared experts that every token uses.

    The router's weights multiply the outputs of the experts, or the inputs if it `weighs_inputs` (Llama-4).

    With `shared_expert_gate` the output of the shared experts is multiplied by the sigmoid of one score per token, a
    product of the token with a vector (Qwen1.5-MoE).
    """

    router: RouterSpec
    expert: GatedMLPSpec | ClampedMLPSpec
    shared_experts: GatedMLPSpec | None  # all shared experts, computed as one wide MLP
    shared_expert_gate: bool = False
    shared_name: Literal["shared_experts", "shared_expert"] = "shared_experts"  # in checkpoints
    weighs_inputs: bool = False

    def __post_init__(self) -> None:
        assert self.shared_experts is not None or not self.shared_expert_gate
        for field, width in (
            ("hidden_size", self.expert.hidden_size),
            ("intermediate_size of an expert", self.expert.intermediate_size),
        ):
            if width % 8:
                raise ConfigError(field, width, "must be a multiple of 8: grouped matrix products need 16-byte rows")
        if isinstance(self.expert, GatedMLPSpec) and self.expert.bias:
            raise ConfigError("mlp_bias", True, "routed experts have no biases")


FeedForwardSpec = GatedMLPSpec | MLPSpec | MixtureOfExpertsSpec
