"""Layers that several families use: norms, rotary position embedding, MLPs.

Legend of the dimension letters, here and in the other modules: B batch, S sequence, T = B * S tokens,
D hidden_size, F intermediate_size, H query heads, G key/value heads, C channels of a head, E experts,
K experts per token. A tensor's name ends in its shape: ``x_BSD``.

`component` of a module names the row of the tables that counts its own parameters and FLOPs; a module without
`component` belongs to the nearest parent that has one.

There are two kernel profiles, chosen when a model is built: ``fused`` calls torch's fused norm and attention; ``eager``
uses elementary operations, with every intermediate as a tensor in memory. LayerNorm is torch's kernel in both, as in
transformers' models.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_models.errors import UserError
from torch_models.first_values import OwnFirstValues
from torch_models.rope_scaling import (
    DynamicRopeScaling,
    LinearRopeScaling,
    Llama3RopeScaling,
    LongRopeScaling,
    ProportionalRopeScaling,
    UnknownRopeScaling,
    YarnRopeScaling,
)
from torch_models.spec import Activation, GatedMLPSpec, Kernels, LayerSpec, MLPSpec, ModelSpec, RotarySpec

# cos and sin, each of shape (S, rotated channels / 2); () where nothing is rotated
RotaryTables = tuple[Tensor, Tensor] | tuple[()]


class Linear(OwnFirstValues, nn.Linear):
    """`nn.Linear` with uninitialised weights: `initialize` sets them, or a checkpoint is loaded."""

    quantised: tuple[str, ...] = ("weight",)  # the parameters that recipes in fp8 quantise

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        nn.Module.__init__(self)  # that of nn.Linear draws the weights
        self.in_features = in_features
        self.out_features = out_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.register_parameter("bias", nn.Parameter(torch.empty(out_features)) if bias else None)


class RMSNorm(OwnFirstValues):
    """x / sqrt(mean(x²) + eps) * weight, computed in fp32 (Zhang & Sennrich 2019, arXiv 1910.07467, eq. 4).

    With `unit_offset` the factor is 1 + weight (Gemma, arXiv 2403.08295). Eager kernels compute it in fp32. Fused
    kernels take weights in the dtype of their input: they compute it in the wider dtype of the two, as autocast does.
    """

    component = "norm"
    # Where ranks divide the normalised dimension: computes with this rank's part of input and weight.
    over_ranks: Callable[[Tensor, Tensor, float], Tensor] | None = None

    def __init__(self, width: int, eps: float, kernels: Kernels, *, unit_offset: bool = False) -> None:
        super().__init__()
        self.eps = eps
        self.kernels = kernels
        self.unit_offset = unit_offset
        self.first_weight = 0.0 if unit_offset else 1.0
        self.weight = nn.Parameter(torch.full((width,), self.first_weight))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension of `x`; same shape and dtype."""
        if self.over_ranks is not None:
            return self.over_ranks(x, self.weight, self.eps)
        return rms_norm(x, self.weight, self.eps, self.kernels, unit_offset=self.unit_offset)


def rms_norm(x: Tensor, weight: Tensor | None, eps: float, kernels: Kernels, *, unit_offset: bool = False) -> Tensor:
    """Return x / sqrt(mean(x²) + eps) * weight over the last dimension of `x`, in the dtype of `x`; see `RMSNorm`."""
    if kernels == "fused":
        weight = 1 + weight if weight is not None and unit_offset else weight
        if weight is None:
            return F.rms_norm(x, x.shape[-1:], None, eps)
        wider = x.dtype if x.dtype == weight.dtype else torch.promote_types(x.dtype, weight.dtype)
        return F.rms_norm(x.to(wider), weight.shape, weight.to(wider), eps).to(x.dtype)
    x_fp32 = x.float()
    inverse_rms = torch.rsqrt(x_fp32.square().mean(-1, keepdim=True) + eps)
    if weight is None:
        return (x_fp32 * inverse_rms).to(x.dtype)
    if unit_offset:
        return ((x_fp32 * inverse_rms) * (1 + weight.float())).to(x.dtype)
    return (weight * (x_fp32 * inverse_rms).to(x.dtype)).to(x.dtype)


class UnweightedRMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps), computed in fp32: RMSNorm without a weight, which Llama-4 calls L2 norm."""

    component = "norm"

    def __init__(self, eps: float, kernels: Kernels) -> None:
        super().__init__()
        self.eps = eps
        self.kernels = kernels

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension of `x`; same shape and dtype."""
        return rms_norm(x, None, self.eps, self.kernels)


class LayerNorm(OwnFirstValues):
    """(x - mean(x)) / sqrt(variance(x) + eps) * weight + bias (Ba et al. 2016, arXiv 1607.06450, eq. 4).

    It is torch's kernel in every kernel profile. Like the fused RMSNorm it computes in the wider dtype of input and
    weight.
    """

    component = "norm"
    first_weight = 1.0

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension of `x`; same shape and dtype."""
        weight, bias = self.weight, self.bias
        wider = x.dtype if x.dtype == weight.dtype else torch.promote_types(x.dtype, weight.dtype)
        return F.layer_norm(x.to(wider), weight.shape, weight.to(wider), bias.to(wider), self.eps).to(x.dtype)


def norm_module(spec: LayerSpec | ModelSpec, kernels: Kernels) -> RMSNorm | LayerNorm:
    """Return a norm of the residual stream, as a layer or a model has them."""
    if spec.norm_type == "layer_norm":
        return LayerNorm(spec.hidden_size, spec.norm_eps)
    return RMSNorm(spec.hidden_size, spec.norm_eps, kernels, unit_offset=spec.norm_unit_offset)


def activation_function(name: Activation, x: Tensor) -> Tensor:
    """Apply the activation that Hugging Face configs call `name` to `x`."""
    if name == "silu":
        return F.silu(x)
    return F.gelu(x, approximate="tanh" if name == "gelu_pytorch_tanh" else "none")


class GatedMLP(nn.Module):
    """down(activation(gate(x)) * up(x)); SwiGLU if the activation is silu (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, spec: GatedMLPSpec, component: str = "mlp") -> None:
        super().__init__()
        self.component = component
        self.activation = spec.activation
        self.gate_proj = Linear(spec.hidden_size, spec.intermediate_size, bias=spec.bias)
        self.up_proj = Linear(spec.hidden_size, spec.intermediate_size, bias=spec.bias)
        self.down_proj = Linear(spec.intermediate_size, spec.hidden_size, bias=spec.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) -> (…, D)."""
        hidden: Tensor = activation_function(self.activation, self.gate_proj(x)) * self.up_proj(x)
        out: Tensor = self.down_proj(hidden)
        return out


class MLP(nn.Module):
    """down(activation(up(x))), without a gate (GPT-2)."""

    component = "mlp"

    def __init__(self, spec: MLPSpec) -> None:
        super().__init__()
        self.activation = spec.activation
        self.up_proj = Linear(spec.hidden_size, spec.intermediate_size, bias=spec.bias)
        self.down_proj = Linear(spec.intermediate_size, spec.hidden_size, bias=spec.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) -> (…, D)."""
        out: Tensor = self.down_proj(activation_function(self.activation, self.up_proj(x)))
        return out


# --- Rotary position embedding (Su et al. 2021, arXiv 2104.09864): no parameters, only angles ------------------


def rotary_tables(
    spec: RotarySpec | None, sequence_length: int, device: torch.device, dtype: torch.dtype
) -> RotaryTables:
    """Return cos and sin of each position's angles, computed in fp32 and returned as `dtype`; (S, dim / 2) each.

    Raises `UserError` for a `rope_type` whose angles are not known, except on the meta device.
    """
    if spec is None:
        return ()
    positions = torch.arange(sequence_length, device=device, dtype=torch.float32)
    angles = positions.unsqueeze(1) * _frequencies(spec, sequence_length, device)
    factor = _table_factor(spec)
    return (angles.cos() * factor).to(dtype), (angles.sin() * factor).to(dtype)


def apply_rotary(x_BSHC: Tensor, tables: RotaryTables, interleaved: bool) -> Tensor:
    """Rotate channel pairs of every head by the angles of their position; same shape and dtype.

    A pair is (c, c + C/2), or (2c, 2c + 1) if `interleaved`. In both cases the result contains the first members of all
    pairs, then the second members. Without tables `x_BSHC` itself is returned.
    """
    if not tables:
        return x_BSHC
    cos, sin = (table.to(x_BSHC.dtype).unsqueeze(1) for table in tables)
    if interleaved:
        first, second = x_BSHC[..., 0::2], x_BSHC[..., 1::2]
    else:
        first, second = x_BSHC.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def yarn_mscale(factor: float, mscale: float) -> float:
    """Return YaRN's sqrt(1 / t) = 0.1 m ln(s) + 1 for temperature t (arXiv 2309.00071, eq. 22; m is DeepSeek's)."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def softmax_scale(spec: RotarySpec | None, channels: int) -> float:
    """Return 1 / sqrt(channels), times YaRN's squared factor if `scores_scaled` and `mscale_all_dim` are set.

    The factor is squared because DeepSeek's `mscale_all_dim` scales both queries and keys. The tables are scaled only
    by the ratio of the factors of `mscale` and `mscale_all_dim`.
    """
    scale: float = channels**-0.5
    if (
        spec is not None
        and spec.scores_scaled
        and isinstance(spec.scaling, YarnRopeScaling)
        and spec.scaling.mscale_all_dim
    ):
        scale *= yarn_mscale(spec.scaling.factor, spec.scaling.mscale_all_dim) ** 2
    return scale


def _table_factor(spec: RotarySpec) -> float:
    scaling = spec.scaling
    if isinstance(scaling, YarnRopeScaling | LongRopeScaling) and scaling.attention_factor is not None:
        return scaling.attention_factor
    if isinstance(scaling, LongRopeScaling) and scaling.factor > 1:
        # As in the published code of Phi-3: the logits grow with the logarithm of the stretched length.
        return math.sqrt(1 + math.log(scaling.factor) / math.log(scaling.original_max_position_embeddings))
    if not isinstance(scaling, YarnRopeScaling):
        return 1.0
    if scaling.mscale and scaling.mscale_all_dim:
        return yarn_mscale(scaling.factor, scaling.mscale) / yarn_mscale(scaling.factor, scaling.mscale_all_dim)
    return yarn_mscale(scaling.factor, 1.0)


def _frequencies(spec: RotarySpec, sequence_length: int, device: torch.device) -> Tensor:
    """Radians per position of each channel pair in a sequence of this length, fp32, (dim / 2,)."""
    exponents = torch.arange(0, spec.dim, 2, device=device, dtype=torch.float32) / spec.dim
    scaling = spec.scaling
    frequencies = 1.0 / _theta(spec, sequence_length) ** exponents
    match scaling:
        case None | DynamicRopeScaling():
            return frequencies
        case LinearRopeScaling():
            return frequencies / scaling.factor
        case LongRopeScaling():
            is_long = sequence_length > scaling.original_max_position_embeddings
            factors = scaling.long_factor if is_long else scaling.short_factor
            return frequencies / torch.tensor(factors, device=device, dtype=torch.float32)
        case ProportionalRopeScaling():
            turning = int(scaling.partial_rotary_factor * spec.dim // 2)
            pairs = torch.arange(spec.dim // 2, device=device)
            return frequencies / scaling.factor * (pairs < turning)
        case Llama3RopeScaling():
            # Turns over the original context: slowed below low_freq_factor, kept above high_freq_factor, else blended.
            turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
            span = scaling.high_freq_factor - scaling.low_freq_factor
            kept = ((turns - scaling.low_freq_factor) / span).clamp(0, 1)
        case YarnRopeScaling():
            low, high = _yarn_range(spec, scaling)
            pairs = torch.arange(spec.dim // 2, device=device, dtype=torch.float32)
            kept = 1 - ((pairs - low) / (high - low)).clamp(0, 1)
        case UnknownRopeScaling():
            if device.type != "meta":
                raise UserError(f"rope_type {scaling.name!r}: its angles are not known, so the model does not run")
            return frequencies
    return frequencies / scaling.factor * (1 - kept) + frequencies * kept


def _theta(spec: RotarySpec, sequence_length: int) -> float:
    """Return theta; with dynamic scaling, that of a sequence of this length."""
    scaling = spec.scaling
    if not isinstance(scaling, DynamicRopeScaling) or spec.dim <= 2:  # one pair turns by 1 radian at any theta
        return spec.theta
    stretched = max(sequence_length / scaling.max_position_embeddings, 1.0)
    growth: float = (scaling.factor * stretched - (scaling.factor - 1)) ** (spec.dim / (spec.dim - 2))
    return spec.theta * growth


def _yarn_range(spec: RotarySpec, scaling: YarnRopeScaling) -> tuple[float, float]:
    """Return the channel pairs between which YaRN blends: those that turn beta_fast and beta_slow times (eq. 17-18).

    The paper blends linearly in the number of turns; its code, DeepSeek's code and this code blend linearly in the
    index of the pair.
    """

    def pair_that_turns(times: float) -> float:
        wavelength = scaling.original_max_position_embeddings / (times * 2 * math.pi)
        return spec.dim * math.log(wavelength) / (2 * math.log(spec.theta))

    low, high = pair_that_turns(scaling.beta_fast), pair_that_turns(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, spec.dim - 1)
    return low, high if high != low else low + 0.001  # equal ends would divide by zero
