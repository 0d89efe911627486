"""Mixture of experts: the router, the routed experts as one stacked parameter per projection, the shared experts.

Every shape is static: tokens are sorted by expert and each projection is one grouped matrix product. The same forward
therefore runs on real tensors and on the meta device, for any number of experts and without a loop over them.
The legend of dimension letters is in layers.py.
"""

import math
from collections.abc import Callable
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_models.first_values import OwnFirstValues
from torch_models.modules.autocast import cast_for_products, without_autocast
from torch_models.modules.kernels.grouped_product import grouped_product
from torch_models.modules.layers import GatedMLP, Linear, activation_function, rms_norm
from torch_models.spec import ClampedMLPSpec, GatedMLPSpec, Kernels, MixtureOfExpertsSpec, RouterSpec

CORRECTION_BIAS = "e_score_correction_bias"


class OwnsCorrectionBias(OwnFirstValues):
    """A module that may own the correction bias of a router, (E,).

    It is always fp32: a conversion to another dtype leaves it as it is, and one that is loaded is converted.
    """

    e_score_correction_bias: Tensor

    def register_correction_bias(self, num_experts: int) -> None:
        """Make the bias: a buffer, since it is updated by the experts' load and not by a gradient."""
        self.register_buffer(CORRECTION_BIAS, torch.zeros(num_experts, dtype=torch.float32))
        self.register_load_state_dict_post_hook(_in_fp32)  # type: ignore[no-untyped-call]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Apply a conversion or a move, as every module does; of the correction bias only a move."""
        before = self._buffers.get(CORRECTION_BIAS)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        after = self._buffers.get(CORRECTION_BIAS)
        if before is not None and after is not None and after.dtype != before.dtype:
            self._buffers[CORRECTION_BIAS] = before.to(after.device)  # rounded values cannot be restored
        return self


class Router(OwnsCorrectionBias):
    """Selects top_k experts per token and weighs them, in fp32 (DeepSeek-V3, arXiv 2412.19437, eq. 13-16).

    It does so under autocast too.

    With learned scales (Gemma-4) the scale of each channel is the weight of the norm of its input, and the factor
    1 / sqrt(hidden_size) multiplies the logits.
    """

    component = "router"

    def __init__(self, spec: RouterSpec, kernels: Kernels = "fused") -> None:
        super().__init__()
        self.spec = spec
        self.kernels: Kernels = kernels
        if spec.learned_scales:
            self.scale = nn.Parameter(torch.ones(spec.hidden_size))
            self.per_expert_scale = nn.Parameter(torch.ones(spec.num_experts))
            self.proj = RouterProjection(spec.hidden_size, spec.num_experts, bias=False)
        else:
            self.weight = nn.Parameter(torch.empty(spec.num_experts, spec.hidden_size))
        self.bias = nn.Parameter(torch.empty(spec.num_experts)) if spec.bias else None
        if spec.correction_bias and spec.correction_bias_at == "router":
            self.register_correction_bias(spec.num_experts)

    def forward(self, x_TD: Tensor, correction_E: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(T, D) -> weights (T, K) in fp32 and expert indices (T, K); `correction_E` is a bias that it does not own."""
        if correction_E is None and self.spec.correction_bias:
            correction_E = self.e_score_correction_bias
        with without_autocast(x_TD.device):
            scores_TE = self._scores(x_TD)
            experts_TK = self._choose(scores_TE, correction_E)
            weights_TK = scores_TE.gather(1, experts_TK)
            if self.spec.norm_topk_prob:
                weights_TK = weights_TK / (weights_TK.sum(-1, keepdim=True) + 1e-20)
            if self.spec.learned_scales:
                chosen_N = self.per_expert_scale.float().index_select(0, experts_TK.flatten())
                return weights_TK * chosen_N.view_as(weights_TK), experts_TK
            return weights_TK * self.spec.routed_scaling_factor, experts_TK

    def _scores(self, x_TD: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.float()
        if self.spec.learned_scales:
            x_TD = rms_norm(x_TD, self.scale, self.spec.norm_eps, self.kernels)
            logits_TE = F.linear(x_TD.float(), self.proj.weight.float()) / math.sqrt(self.spec.hidden_size)
        else:
            logits_TE = F.linear(x_TD.float(), self.weight.float(), bias)
        return logits_TE.sigmoid() if self.spec.scoring == "sigmoid" else logits_TE.softmax(-1)

    @torch.no_grad()
    def _choose(self, scores_TE: Tensor, correction_E: Tensor | None) -> Tensor:
        """Return the top_k experts of the eligible groups, by corrected score: scores (T, E) -> indices (T, K).

        Groups are ranked by the sum of the scores of their `group_rank_experts` best experts.
        """
        spec = self.spec
        if correction_E is not None:
            scores_TE = scores_TE + correction_E
        if spec.n_group > 1:
            groups = scores_TE.unflatten(1, (spec.n_group, -1))
            rank = groups.topk(spec.group_rank_experts, dim=-1).values.sum(-1)
            eligible = rank.topk(spec.topk_group, dim=-1, sorted=False).indices
            excluded = torch.ones_like(rank, dtype=torch.bool).scatter(1, eligible, 0)
            scores_TE = groups.masked_fill(excluded.unsqueeze(-1), float("-inf")).flatten(1)
        return scores_TE.topk(spec.top_k, dim=-1, sorted=False).indices


class RouterProjection(Linear):
    """Holds the weight of a router's logits under its name in checkpoints; the router multiplies with it in fp32."""

    component = "router"
    quantised = ()


def _in_fp32(owner: OwnsCorrectionBias, keys: object) -> None:
    """Convert a correction bias that `load_state_dict(assign=True)` has put in place in another dtype."""
    del keys
    owner.e_score_correction_bias = owner.e_score_correction_bias.float()


class RoutedExperts(OwnFirstValues):
    """E experts, of which each token uses `top_k`; a subclass defines their weights and their computation."""

    component = "routed_experts"
    quantised = ("gate_up_proj", "down_proj")  # the parameters that recipes in fp8 quantise
    # Where ranks divide the experts: runs `transform` on the ranks that have them. It is given the rows, sorted by
    # expert, and the end of each expert's rows.
    exchange: Callable[["RoutedExperts", Tensor, Tensor], Tensor] | None = None

    def __init__(self, num_experts: int, top_k: int, weighs_inputs: bool) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.top_k = top_k
        self.weighs_inputs = weighs_inputs

    def forward(self, x_TD: Tensor, weights_TK: Tensor, experts_TK: Tensor) -> Tensor:
        """Return the weighted sum of each token's expert outputs, or the sum of the outputs of weighted inputs, (T, D).

        Internally there is one row per pair of token and chosen expert, sorted by expert.
        """
        experts, order = experts_TK.flatten().sort(stable=True)
        all_experts = torch.arange(self.num_experts, device=x_TD.device)
        ends_E = torch.searchsorted(experts, all_experts, right=True, out_int32=True)  # end of each expert's rows
        token = order // self.top_k

        def weighted(rows: Tensor) -> Tensor:
            return rows * weights_TK.flatten().index_select(0, order).to(rows.dtype).unsqueeze(1)

        def gathered() -> Tensor:
            rows = cast_for_products(x_TD).index_select(0, token)
            return weighted(rows) if self.weighs_inputs else rows

        if self.exchange is None:
            rows = self.transform(gathered(), experts, ends_E)
        else:
            rows = self.exchange(self, gathered(), ends_E)
        if not self.weighs_inputs:
            rows = weighted(rows)
        # index_add_ would keep all rows for backward.
        return torch.zeros_like(x_TD, dtype=rows.dtype).scatter_add_(0, token.unsqueeze(1).expand_as(rows), rows)

    def transform(self, rows: Tensor, experts: Tensor, ends_E: Tensor) -> Tensor:
        """Apply each row's expert to it, (T K, D) -> (T K, D), in the dtype of the rows.

        That is the dtype of the weights or, under autocast, the one in which it runs products.
        """
        raise NotImplementedError


class GatedExperts(RoutedExperts):
    """Gated MLPs without bias; `gate_up_proj` stacks gate above up, (E, 2F, D), and `down_proj` is (E, D, F)."""

    def __init__(self, spec: GatedMLPSpec, num_experts: int, top_k: int, weighs_inputs: bool) -> None:
        super().__init__(num_experts, top_k, weighs_inputs)
        self.activation = spec.activation
        self.gate_up_proj = nn.Parameter(torch.empty(num_experts, 2 * spec.intermediate_size, spec.hidden_size))
        self.down_proj = nn.Parameter(torch.empty(num_experts, spec.hidden_size, spec.intermediate_size))

    def transform(self, rows: Tensor, experts: Tensor, ends_E: Tensor) -> Tensor:
        """down(activation(gate(x)) * up(x)) of each row's expert."""
        del experts
        gate, up = grouped_product(rows, cast_for_products(self.gate_up_proj).transpose(1, 2), ends_E).chunk(2, dim=-1)
        hidden = activation_function(self.activation, gate) * up
        return grouped_product(hidden, cast_for_products(self.down_proj).transpose(1, 2), ends_E)


class ClampedExperts(RoutedExperts):
    """gpt-oss's experts: weights stored (E, in, out) with biases, gate and up in alternating columns."""

    def __init__(self, spec: ClampedMLPSpec, num_experts: int, top_k: int, weighs_inputs: bool) -> None:
        super().__init__(num_experts, top_k, weighs_inputs)
        self.alpha = spec.alpha
        self.limit = spec.limit
        width, hidden = spec.hidden_size, spec.intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(num_experts, width, 2 * hidden))
        self.gate_up_proj_bias = nn.Parameter(torch.empty(num_experts, 2 * hidden))
        self.down_proj = nn.Parameter(torch.empty(num_experts, hidden, width))
        self.down_proj_bias = nn.Parameter(torch.empty(num_experts, width))

    def transform(self, rows: Tensor, experts: Tensor, ends_E: Tensor) -> Tensor:
        """Apply (up + 1) * gate * sigmoid(alpha gate), gate and up clamped, between two projections with biases."""
        gate_up = self._projected(rows, self.gate_up_proj, self.gate_up_proj_bias, experts, ends_E)
        gate = gate_up[..., 0::2].clamp(max=self.limit)
        up = gate_up[..., 1::2].clamp(min=-self.limit, max=self.limit)
        hidden = (up + 1) * (gate * torch.sigmoid(gate * self.alpha))
        return self._projected(hidden, self.down_proj, self.down_proj_bias, experts, ends_E)

    @staticmethod
    def _projected(rows: Tensor, weights: Tensor, biases: Tensor, experts: Tensor, ends_E: Tensor) -> Tensor:
        product = grouped_product(rows, cast_for_products(weights), ends_E)
        return product + cast_for_products(biases).index_select(0, experts)


def experts_module(spec: MixtureOfExpertsSpec) -> RoutedExperts:
    """Return the module of the routed experts of `spec`."""
    experts = (spec.router.num_experts, spec.router.top_k, spec.weighs_inputs)
    if isinstance(spec.expert, GatedMLPSpec):
        return GatedExperts(spec.expert, *experts)
    return ClampedExperts(spec.expert, *experts)


def experts_of(layer: nn.Module) -> RoutedExperts | None:
    """Return the routed experts of a layer, if it has some."""
    return next((module for module in layer.modules() if isinstance(module, RoutedExperts)), None)


class SharedExpertGate(Linear):
    """One score for each token, (…, D) -> (…, 1); recipes in fp8 do not quantise a matrix of one row."""

    component = "shared_experts"
    quantised = ()

    def __init__(self, hidden_size: int) -> None:
        super().__init__(hidden_size, 1, bias=False)


class MixtureOfExperts(OwnsCorrectionBias):
    """The output of the routed experts plus that of the shared experts, which every token uses."""

    def __init__(self, spec: MixtureOfExpertsSpec) -> None:
        super().__init__()
        self.router_name = spec.router.checkpoint_name
        self.add_module(self.router_name, Router(spec.router))
        self.experts = experts_module(spec)
        self.shared_name = spec.shared_name
        self.has_shared_experts = spec.shared_experts is not None
        if spec.shared_experts is not None:
            self.add_module(self.shared_name, GatedMLP(spec.shared_experts, "shared_experts"))
        self.shared_expert_gate = SharedExpertGate(spec.router.hidden_size) if spec.shared_expert_gate else None
        self.owns_correction_bias = spec.router.correction_bias and spec.router.correction_bias_at == "mixture"
        if self.owns_correction_bias:
            self.register_correction_bias(spec.router.num_experts)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """(B, S, D) -> (B, S, D)."""
        x_TD = x_BSD.flatten(0, 1)
        correction = (self.e_score_correction_bias,) if self.owns_correction_bias else ()
        routed = self.experts(x_TD, *self.get_submodule(self.router_name)(x_TD, *correction))
        routed_BSD: Tensor = routed.view_as(x_BSD)
        return routed_BSD + self._shared(x_BSD) if self.has_shared_experts else routed_BSD

    def _shared(self, x_BSD: Tensor) -> Tensor:
        shared_BSD: Tensor = self.get_submodule(self.shared_name)(x_BSD)
        if self.shared_expert_gate is None:
            return shared_BSD
        gate_BS1: Tensor = self.shared_expert_gate(x_BSD).sigmoid()
        return shared_BSD * gate_BS1
