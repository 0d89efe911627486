"""Kimi-K2 (arXiv 2507.20534): DeepSeek-V3's architecture in other sizes, without multi-token prediction."""

from typing import Annotated

from msgspec import Meta

from torch_models.families import deepseek_v3
from torch_models.families.deepseek_v3 import model_spec

__all__ = ["Config", "model_spec"]


class Config(deepseek_v3.Config, frozen=True, kw_only=True):
    """DeepSeek-V3's fields, but without multi-token prediction by default."""

    num_nextn_predict_layers: Annotated[int, Meta(ge=0, le=64)] = 0
