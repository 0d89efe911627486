"""Kimi-K2 (arXiv 2507.20534): DeepSeek-V3's architecture in other sizes, under a name of its own."""

from torch_models.families.deepseek_v3 import Config, model_spec

__all__ = ["Config", "model_spec"]
