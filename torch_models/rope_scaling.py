"""How the frequencies of a rotary embedding are changed for long sequences: one spec for each `rope_type`.

Torch-free. None of them changes a count of parameters, FLOPs or bytes; the modules compute the angles from them.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from torch_models.errors import ConfigError

Factor = Annotated[float, Meta(gt=0, le=1e12)]
Positions = Annotated[int, Meta(ge=1, le=2**24)]


class _Scaling(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="rope_type"):
    """Base of all scalings; `rope_type` of config.json tells them apart."""


class LinearRopeScaling(_Scaling, frozen=True, kw_only=True, tag="linear"):
    """Position interpolation (Chen et al. 2023): every frequency divided by `factor`."""

    factor: Factor


class DynamicRopeScaling(_Scaling, frozen=True, kw_only=True, tag="dynamic"):
    """NTK-aware scaling: beyond `max_position_embeddings` theta grows with the length of the sequence."""

    factor: Factor
    max_position_embeddings: Positions


class Llama3RopeScaling(_Scaling, frozen=True, kw_only=True, tag="llama3"):
    """Llama-3.1's scaling: low frequencies divided by `factor`, high ones unchanged, a linear blend in between."""

    factor: Factor
    low_freq_factor: Factor
    high_freq_factor: Factor
    original_max_position_embeddings: Positions

    def __post_init__(self) -> None:
        if self.high_freq_factor < self.low_freq_factor:
            raise ConfigError(
                "high_freq_factor",
                self.high_freq_factor,
                f"must be at least low_freq_factor ({self.low_freq_factor})",
            )


class YarnRopeScaling(_Scaling, frozen=True, kw_only=True, tag="yarn"):
    """YaRN (Peng et al. 2023, arXiv 2309.00071), with the two `mscale` fields that DeepSeek adds."""

    factor: Factor
    original_max_position_embeddings: Positions
    beta_fast: Factor = 32.0
    beta_slow: Factor = 1.0
    mscale: Factor | None = None
    mscale_all_dim: Factor | None = None
    attention_factor: Factor | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        if self.beta_fast < self.beta_slow:
            raise ConfigError("beta_fast", self.beta_fast, f"must be at least beta_slow ({self.beta_slow})")


class LongRopeScaling(_Scaling, frozen=True, kw_only=True, tag="longrope"):
    """LongRoPE (Ding et al. 2024, arXiv 2402.13753): each frequency divided by a factor of its own.

    Sequences longer than `original_max_position_embeddings` use the long factors, all others the short ones. `factor`
    is by how much the positions were stretched; it gives the factor of cos and sin, unless that is given.
    """

    short_factor: tuple[Factor, ...]
    long_factor: tuple[Factor, ...]
    original_max_position_embeddings: Positions
    factor: Factor = 1.0
    attention_factor: Factor | None = None


class ProportionalRopeScaling(_Scaling, frozen=True, kw_only=True, tag="proportional"):
    """Only the first `partial_rotary_factor` of the channel pairs turn, at their frequencies among all pairs."""

    partial_rotary_factor: Annotated[float, Meta(ge=0, le=1)] = 1.0
    factor: Factor = 1.0


class UnknownRopeScaling(_Scaling, frozen=True, kw_only=True, tag="unknown"):
    """A `rope_type` whose angles are not known here: its model is measured, but does not run on real tensors."""

    name: str


RopeScaling = (
    LinearRopeScaling
    | DynamicRopeScaling
    | Llama3RopeScaling
    | YarnRopeScaling
    | LongRopeScaling
    | ProportionalRopeScaling
    | UnknownRopeScaling
)
